"""Debian's Chromium, headless: found, or fetched for the tests and kept in the user's cache; Playwright drives it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

OPT_OUT = "HEAD2TOE_TESTS_WITHOUT_CHROMIUM"
PROGRAM = "usr/lib/chromium/chromium"
T = TypeVar("T")


class Visit(NamedTuple, Generic[T]):
    """What was found on a page, what the browser complained of, and what it asked for."""

    found: T
    complaints: list[str]
    requests: list[str]


class Browser:
    """One process of Chromium.

    Playwright's own event loop would be found running by whatever else is tested, so it has a thread to itself.
    """

    def __init__(self) -> None:
        if os.environ.get(OPT_OUT) == "1":
            pytest.skip(f"left out, because {OPT_OUT}=1")
        program, environment = find_chromium()
        self._thread = ThreadPoolExecutor(1, "browser")
        self._thread.submit(self._start, program, environment).result()

    def _start(self, program: Path, environment: dict[str, str]) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=program, env={**os.environ, **environment}, args=["--no-sandbox"]
        )

    def visit(self, path: Path, look: Callable[[Page], T], **context: Any) -> Visit[T]:
        """Open a file in a window of its own and return what `look` finds there.

        Parameters
        ----------
        path : Path
            The file.
        look : callable
            Called with the page.
        **context
            As Playwright's `new_context` takes it, such as ``viewport`` and ``color_scheme``.
        """
        return self._thread.submit(self._visit, path, look, context).result()

    def _visit(self, path: Path, look: Callable[[Page], T], context: dict[str, Any]) -> Visit[T]:
        with self._browser.new_context(**context) as window:
            page = window.new_page()
            complaints: list[str] = []
            requests: list[str] = []
            page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
            page.on("request", lambda request: requests.append(request.url))
            page.goto(path.as_uri())
            return Visit(look(page), complaints, requests)

    def close(self) -> None:
        """End the process."""
        self._thread.submit(self._end).result()
        self._thread.shutdown()

    def _end(self) -> None:
        self._browser.close()
        self._playwright.stop()


def find_chromium() -> tuple[Path, dict[str, str]]:
    """Return the program, and what its environment needs besides the system's.

    What is not installed is fetched from Debian and unpacked in the user's cache; the system stays as it is.
    """
    installed = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if installed is not None:
        return Path(installed), {}
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    system = base / "head2toe-tests" / "chromium"
    if not (system / PROGRAM).exists():
        try:
            _fetch(system)
        except (OSError, subprocess.SubprocessError) as error:
            said = (getattr(error, "stderr", None) or b"").decode().strip()
            # No fault of what is tested; pytest's summary names what was left out.
            pytest.skip(f"Chromium is not installed and could not be fetched from Debian ({said or error})")
    libraries = [place for part in ("", "/pulseaudio") for place in system.glob(f"*/lib/*-linux-gnu{part}")]
    environment = {"LD_LIBRARY_PATH": ":".join(map(str, libraries))}
    if not Path("/etc/fonts/fonts.conf").exists():
        environment["FONTCONFIG_SYSROOT"] = str(system)
    return system / PROGRAM, environment


def _fetch(system: Path) -> None:
    system.parent.mkdir(parents=True, exist_ok=True)
    # There only once it is whole, whoever else fetches it at the same time.
    work = Path(tempfile.mkdtemp(dir=system.parent))
    try:
        archives = work / "archives"
        (archives / "partial").mkdir(parents=True)
        options = ["-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root"]
        install = ["install", "--yes", "--no-install-recommends", "--download-only", "chromium", "fonts-liberation"]
        for words in (["update"], [*options, *install]):
            subprocess.run(["apt-get", "--quiet", *words], check=True, capture_output=True, timeout=600)
        for archive in archives.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, work], check=True, capture_output=True)
        shutil.rmtree(archives)
        if not system.exists():
            work.rename(system)
    finally:
        shutil.rmtree(work, ignore_errors=True)
