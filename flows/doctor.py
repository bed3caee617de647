"""Looks whether what the commands need is there: versions, devices, room, rights, servers, shipped files."""

from __future__ import annotations

import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from store.errors import Head2ToeError, InvalidInputError
from store.local import LocalObjects
from store.objects import join, open_objects
from store.units import human_bytes

DISTRIBUTION = "head2toe-store"
INSTALL = "pip install --upgrade {}"
FOR_DEVELOPERS = {"dev", "docs"}
"""Extras that no command needs."""
LITTLE_SPACE = 5 * 10**9
"""Bytes free at the root below which a store of common size does not fit."""
LITTLE_MEMORY = 4 * 2**30
"""Bytes of memory below which the default of ``--memory``, with the program itself, is too much."""
MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup/memory.max")
DRIVER = Path("/proc/driver/nvidia/version")


class State(StrEnum):
    """How a check ended."""

    ok = "ok"
    warning = "warning"
    problem = "problem"


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes
    ----------
    check : str
        What was looked at.
    state : State
        ``problem`` if some command fails for it; ``warning`` if one is slow, or lacks something.
    found : str
        What is there.
    advice : str
        The next step, if there is one.
    """

    check: str
    state: State
    found: str
    advice: str = ""


Check = Callable[[], Iterator[Finding]]
ok = partial(Finding, state=State.ok)
warning = partial(Finding, state=State.warning)
problem = partial(Finding, state=State.problem)


def checks(root: str, dask_address: str | None = None) -> dict[str, Check]:
    """Return all checks by what they look at, in order; each yields its findings when it is called.

    Parameters
    ----------
    root : str
        Folder or URL under which stores shall lie.
    dask_address : str, optional
        Scheduler of a Dask cluster that shall be used.
    """
    found: dict[str, Check] = {
        "packages": check_packages,
        "extras": check_extras,
        "devices": check_devices,
        "machine": check_machine,
        "root": partial(check_root, root),
        "weights": check_weights,
        "plug-ins": check_plugins,
        "pictures": check_pictures,
        "Prefect": check_prefect,
    }
    if dask_address is not None:
        found["Dask"] = partial(check_dask, dask_address)
    return found


def examine(check: Check, name: str) -> list[Finding]:
    """Return what a check finds; a check that fails itself is a problem, with its reason."""
    try:
        return list(check())
    except Head2ToeError as error:
        return [problem(name, found=str(error))]
    except Exception as error:  # noqa: BLE001  (a broken installation may raise anything, and is to be described)
        reason = " ".join(str(error).split())
        return [
            problem(name, found=f"{type(error).__name__}: {reason}", advice="install again, or repair what it names")
        ]


# -------------------------------------------------------------------- versions


def check_packages() -> Iterator[Finding]:
    """Compare Python and packages with what the installed release requires."""
    try:
        about = metadata.metadata(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        yield problem("installation", found="is no installed package", advice="pip install --editable .")
        return
    python, wanted = platform.python_version(), str(about["Requires-Python"])
    if python in SpecifierSet(wanted):
        yield ok("Python", found=python)
    else:
        yield problem("Python", found=f"{python}, but {wanted} is required", advice="make a new environment")
    required = [r for r in _requirements() if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong = [(r, found) for r in required if (found := _unfit(r))]
    for requirement, found in wrong:
        yield problem(
            requirement.name, found=found, advice=INSTALL.format(f"'{requirement.name}{requirement.specifier}'")
        )
    if not wrong:
        yield ok("packages", found=f"{about['Version']} and all {len(required)} packages it requires")


def check_extras() -> Iterator[Finding]:
    """Look which optional extras are installed."""
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        if extra in FOR_DEVELOPERS:
            continue
        asked = [r for r in _requirements() if r.marker is not None and r.marker.evaluate({"extra": extra})]
        parts = [r for r in asked if not r.marker.evaluate({"extra": ""})]  # type: ignore[union-attr]  # all of them have one
        wrong = [found for r in parts if (found := _unfit(r))]
        advice = f"pip install '{DISTRIBUTION}[{extra}]'"
        if not wrong:
            yield ok(f"extra {extra}", found=", ".join(f"{r.name} {metadata.version(r.name)}" for r in parts))
        elif all("not installed" in found for found in wrong):
            yield ok(f"extra {extra}", found="not installed, which is optional", advice=advice)
        else:
            yield warning(f"extra {extra}", found="; ".join(wrong), advice=advice)


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]


def _unfit(requirement: Requirement) -> str:
    """Return what is wrong with the installed version of a package, if anything is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} is installed, but {requirement.specifier} is required"


# -------------------------------------------------------------------- the machine


def check_devices() -> Iterator[Finding]:
    """Look for GPUs, and whether PyTorch and the driver fit them."""
    import torch

    built = (
        f"PyTorch {torch.__version__}, built for {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'the CPU'}"
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable and not DRIVER.exists():
        advice = "extraction of a large backbone takes long; nothing else needs a GPU"
        yield warning("GPU", found=f"none here; {built}", advice=advice)
        return
    if not usable:
        why = f" ({' '.join(str(said[0].message).split())})" if said else ""
        advice = "install a driver for this CUDA, or PyTorch for that driver: pytorch.org/get-started"
        yield problem("GPU", found=f"there is a driver, but PyTorch cannot use it{why}; {built}", advice=advice)
        return
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        found = f"{about.name}, {human_bytes(free)} of {human_bytes(total)} free; {built}"
        if _computes(number):
            yield ok(f"GPU cuda:{number}", found=found)
        else:
            advice = "install a PyTorch that is built for it: pytorch.org/get-started"
            yield problem(f"GPU cuda:{number}", found=f"{found}, but nothing can be computed on it", advice=advice)


def _computes(number: int) -> bool:
    import torch

    try:
        return bool((torch.ones(2, device=f"cuda:{number}") + 1).sum().item() == 4)
    except RuntimeError:
        return False


def check_machine() -> Iterator[Finding]:
    """Count cores and memory."""
    from pipeline.compute import n_cores

    yield ok("cores", found=f"{n_cores()} for this process")
    free = _memory()
    if free is None:
        yield warning("memory", found="unknown here", advice="give --memory if a selection runs out of it")
    elif free < LITTLE_MEMORY:
        advice = f"give --memory {max(free // 4 // 10**6, 1)}MB to `head2toe select`"
        yield warning("memory", found=f"{human_bytes(free)} available", advice=advice)
    else:
        yield ok("memory", found=f"{human_bytes(free)} available")


def _memory() -> int | None:
    """Return bytes of memory that a process may take; None where the system does not say."""
    try:
        lines = dict(line.split(":") for line in MEMINFO.read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    limit = CGROUP.read_text(encoding="ascii").strip() if CGROUP.is_file() else "max"
    return min(free, int(limit)) if limit.isdigit() else free


# -------------------------------------------------------------------- places


def check_root(root: str) -> Iterator[Finding]:
    """Write, replace, refuse to replace, list and remove a small object where stores shall lie, and look for room."""
    local = isinstance(open_objects(root), LocalObjects)
    place = str(_existing(Path(root).expanduser().absolute())) if local else root
    objects = open_objects(join(place, f".head2toe-doctor-{uuid.uuid4().hex}"))
    try:
        objects.write("replaced", [b"first"])
        objects.write("replaced", [b"second"])
        created = objects.create("created", b"first")
        again = objects.create("created", b"second")
        kept = objects.read("replaced") == b"second" and objects.read("created") == b"first"
        listed = objects.names("") == ["created", "replaced"]
    except (Head2ToeError, OSError) as error:
        yield problem("root", found=f"{place}: {error}", advice="choose a root that is writable, or mend what it names")
        return
    finally:
        _remove(objects.remove)
    if created and not again and kept and listed:
        yield ok("root", found=f"{place}: objects are written whole, replaced at once, and created once only")
    else:
        advice = "choose another place: one that replaces at once, and creates only what is not there"
        yield problem("root", found=f"{place} does not keep what is written as a store needs it", advice=advice)
    if not local:
        yield ok("room", found="no limit is known of object storage")
        return
    free = shutil.disk_usage(place).free
    if free < LITTLE_SPACE:
        advice = "`head2toe extract … --dry-run` says what a store takes; make room, or choose another root"
        yield warning("room", found=f"{human_bytes(free)} free at {place}", advice=advice)
    else:
        yield ok("room", found=f"{human_bytes(free)} free at {place}")


def _existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _remove(remove: Callable[[], None]) -> None:
    try:
        remove()
    except (Head2ToeError, OSError):
        return  # what could not be written there cannot be removed either


def check_weights() -> Iterator[Finding]:
    """Compare the shipped weights with their digests, and look whether others can be fetched."""
    from pipeline.weights import hub_is_reachable, shipped_backbones, shipped_weights

    names = shipped_backbones()
    for name in names:
        try:
            shipped_weights(name)
        except (InvalidInputError, OSError, ValueError, KeyError) as error:
            yield problem(
                f"weights {name}", found=str(error), advice=INSTALL.format(f"--force-reinstall {DISTRIBUTION}")
            )
            return
    yield ok("shipped weights", found=f"{', '.join(names)}, with the recorded digests")
    if hub_is_reachable():
        yield ok("hub", found="its name is known; pretrained weights can be fetched")
    else:
        advice = "connect to the network, or give --weights a file, 'shipped' or 'random:0'"
        yield warning("hub", found="is out of reach; only weights fetched before can be had", advice=advice)


def check_plugins() -> Iterator[Finding]:
    """Import what other packages add."""
    from pipeline.plugins import GROUPS, find_plugin, plugin_names

    good = []
    for kind in GROUPS:
        for name in plugin_names(kind):
            try:
                good.append(str(find_plugin(kind, name)))
            except InvalidInputError as error:
                yield problem(f"{kind} {name}", found=str(error))
    yield ok("plug-ins", found=", ".join(good) or "none")


def check_pictures() -> Iterator[Finding]:
    """Look for the font of the pictures and a place for Matplotlib's cache."""
    import matplotlib
    from matplotlib import font_manager

    cache, font = matplotlib.get_cachedir(), matplotlib.rcParams["font.sans-serif"][0]
    if cache is None or not os.access(cache, os.W_OK):
        advice = "set MPLCONFIGDIR to a folder that is writable"
        yield warning("pictures", found=f"Matplotlib's cache {cache} is not writable", advice=advice)
        return
    font_manager.findfont(font, fallback_to_default=False)
    yield ok("pictures", found=f"Matplotlib {matplotlib.__version__}, font {font}, cache {cache}")


# -------------------------------------------------------------------- servers


def check_prefect() -> Iterator[Finding]:
    """Ask the Prefect server that is named for an answer, or look whether one could be started; none is."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME

    from flows.deploying import open_server
    from flows.redaction import redact

    home = _existing(Path(str(PREFECT_HOME.value())).expanduser().absolute())
    if not os.access(home, os.W_OK):
        advice = "set PREFECT_HOME to a folder that is writable"
        yield problem("Prefect", found=f"its folder {home} is not writable", advice=advice)
    elif PREFECT_API_URL.value():
        with open_server():
            yield ok("Prefect", found=f"the server at {redact(str(PREFECT_API_URL.value()))} answers")
    else:
        yield ok("Prefect", found="no server is named; each run starts one of its own, which ends with it")


def check_dask(address: str) -> Iterator[Finding]:
    """Connect to a Dask scheduler, and wait for a worker."""
    from pipeline.compute import workers

    with workers(address):
        yield ok("Dask", found=f"the scheduler at {address} answers, and has workers")
