"""Debian's PostgreSQL in a temporary folder: found, or fetched for the time of the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from cluster.processes import free_port, wait

OPT_OUT = "HEAD2TOE_TESTS_WITHOUT_POSTGRESQL"
PASSWORD = "of-the-tests: 1 &%"


class PostgreSQL:
    """A server with one user and one database of Prefect's, reached with a password from this machine only."""

    def __init__(self) -> None:
        # Its user must reach its folder, which pytest's folders do not allow: PostgreSQL refuses to run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="head2toe-postgresql-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, Any] = {}
        if os.getuid() == 0:
            user = next(pwd.getpwnam(name) for name in ("postgres", "nobody") if _is_user(name))
            self._as_user = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self.environment = {
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": "127.0.0.1",
            "PREFECT_SERVER_DATABASE_PORT": str(self.port),
            "PREFECT_SERVER_DATABASE_NAME": "postgres",
            "PREFECT_SERVER_DATABASE_USER": "prefect",
            "PREFECT_SERVER_DATABASE_PASSWORD": PASSWORD,
        }
        try:
            self._programs, self._libraries = find_programs(self.folder)
            password = self.folder / "password"
            password.write_text(PASSWORD)
            password.chmod(0o644)
            made = self._run("initdb", "-D", "data", "-U", "prefect", "-A", "scram-sha-256", f"--pwfile={password}")
            assert made.returncode == 0, made.stdout.decode()
            self.start()
        except BaseException:
            self.remove()
            raise

    def start(self) -> None:
        """Start it, and return once it answers."""
        # What is written to disk need not outlive the machine, only the process.
        settings = ["fsync=off", "unix_socket_directories=", "listen_addresses=127.0.0.1", f"port={self.port}"]
        command = [self._programs / "postgres", "-D", "data", *(word for each in settings for word in ("-c", each))]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, stdout=log, stderr=log, env=self._environment(), **self._as_user
            )
        wait(lambda: self._run("pg_isready", "-h", "127.0.0.1", "-p", str(self.port)).returncode == 0)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT is orderly, SIGQUIT like a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(timeout=30)
            self.process = None

    def restart(self, seconds: float = 0.0) -> None:
        """Stop it as a crash would, and start it again after so many seconds."""
        self.stop(signal.SIGQUIT)
        time.sleep(seconds)
        self.start()

    def remove(self) -> None:
        """Stop it, and remove all of it."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._programs / program, *arguments],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment(),
            **self._as_user,
        )

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": self._libraries}


def find_programs(folder: Path) -> tuple[Path, str]:
    """Return the folder of PostgreSQL's programs, and of libraries they need besides the system's.

    What is not installed is fetched from Debian and unpacked below `folder`; the system stays as it is.
    """
    found = _newest(Path("/"))
    if found is not None:
        return found, ""
    # In a folder of its own, for unpacking changes whose it is.
    system = folder / "system"
    try:
        _fetch(system)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode().strip()
        pytest.fail(
            f"PostgreSQL is not installed and could not be fetched from Debian ({said or error}); install it with "
            f"`apt-get install postgresql`, or leave these tests out by {OPT_OUT}=1."
        )
    programs = _newest(system)
    assert programs is not None
    return programs, ":".join(map(str, sorted((system / "usr/lib").glob("*-linux-gnu*"))))


def _newest(root: Path) -> Path | None:
    installed = [path.parent for path in root.glob("usr/lib/postgresql/*/bin/initdb")]
    return max(installed, key=lambda path: float(path.parent.name), default=None)


def _fetch(system: Path) -> None:
    archives = system / "archives"
    (archives / "partial").mkdir(parents=True)
    install = ["install", "--yes", "--no-install-recommends", "--download-only", "postgresql"]
    for words in (["update"], ["-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root", *install]):
        subprocess.run(["apt-get", "--quiet", *words], check=True, capture_output=True, timeout=300)
    for archive in archives.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", archive, system], check=True, capture_output=True)
    shutil.rmtree(archives)


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
