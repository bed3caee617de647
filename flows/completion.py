"""Values that the shell offers when Tab is pressed; cheap to find, without PyTorch, Prefect or a network.

Where nothing is offered, the shell offers files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from glob import escape
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path

import typer

PRESETS = ("head2toe", "blocks", "embedding", "logits", "input")
SCORERS = (
    "group_lasso",
    "adam",
    "l1",
    "l2",
    "variance",
    "chi2",
    "f_classif",
    "mutual_info",
    "extra_trees",
    "random",
)
NORMALIZATIONS = ("standardize", "unit_norm", "none")
OPTIMIZERS = ("lbfgs", "adam")
WEIGHTS = ("pretrained", "shipped", "random:0")


def offer(names: Iterable[str], plugins: str | None = None) -> Callable[[str], list[str]]:
    """Return a completion by names, and by those of installed plug-ins of an entry point group."""

    def complete(incomplete: str) -> list[str]:
        found = [*names, *(entry.name for entry in (entry_points(group=plugins) if plugins else ()))]
        return [name for name in found if name.startswith(incomplete)]

    return complete


complete_scorer = offer(SCORERS, "head2toe.scorers")
complete_tap = offer(PRESETS, "head2toe.tap_presets")
complete_pooling = offer(("average",), "head2toe.poolings")
complete_normalization = offer(NORMALIZATIONS)
complete_optimizer = offer(OPTIMIZERS)
complete_weights = offer(WEIGHTS)


def complete_backbone(incomplete: str) -> list[str]:
    """Return the backbones whose weights ship with this package."""
    packaged = files("pipeline").joinpath("packaged").iterdir()
    names = sorted(place.name.removesuffix(".safetensors") for place in packaged if place.name.endswith(".safetensors"))
    return [name for name in names if name.startswith(incomplete)]


def complete_data(incomplete: str) -> list[str]:
    """Return ``digits``, the offline tasks' prefix and plug-ins' sources; folders are the shell's."""
    return offer(("digits", "offline/"), "head2toe.data_sources")(incomplete)


def offer_results(kind: str) -> Callable[[typer.Context, str], list[str]]:
    """Return a completion by the results of a kind in the store that is named already, if it is a local one."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            # An option whose value is missing yet ends the parsing, and leaves what came before it as it is.
            store = _find_store(next(iter([*filter(None, map(ctx.params.get, ("uri", "place"))), *ctx.args]), ""))
            names = [place.parent.name for place in store.glob(f"results/{kind}/*/zarr.json")]
        except (OSError, ValueError, KeyError):
            return []
        return sorted(name for name in names if name.startswith(incomplete))

    return complete


complete_selection = offer_results("selections")
complete_head = offer_results("heads")


def _find_store(text: str) -> Path:
    """Return the folder of the store that is meant by a path, an alias or the beginning of a fingerprint."""
    path = Path(text).expanduser()
    if path.is_dir():
        return path
    alias = path.parent / "aliases" / f"{path.name}.json"
    if alias.is_file():
        return path.parent / str(json.loads(alias.read_text(encoding="utf-8"))["store"])
    [store] = path.parent.glob(f"{escape(path.name)}*.zarr")
    return store


def complete_store(incomplete: str) -> list[str]:
    """Return the stores and aliases in the folder that is being typed."""
    root, slash, beginning = incomplete.rpartition("/")
    if "://" in incomplete:
        return []
    folder = Path(f"{root}/").expanduser() if slash else Path()
    try:
        stores = [place.name for place in folder.glob("*.zarr")]
        aliases = [place.stem for place in folder.glob("aliases/*.json")]
    except OSError:
        return []
    return [f"{root}{slash}{name}" for name in sorted([*aliases, *stores]) if name.startswith(beginning)]


def complete_config(incomplete: str) -> list[str]:
    """Return YAML files, and folders on the way to them."""
    root, slash, beginning = incomplete.rpartition("/")
    folder = Path(f"{root}/").expanduser() if slash else Path()
    try:
        places = sorted(folder.iterdir())
    except OSError:
        return []
    shown = [p for p in places if p.name.startswith(beginning) and p.name.startswith(".") <= beginning.startswith(".")]
    return [f"{root}{slash}{p.name}{'/' * p.is_dir()}" for p in shown if p.is_dir() or p.suffix == ".yaml"]
