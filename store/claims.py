"""Claims: how writers that know nothing of each other divide the missing blocks of one store.

A claim is a small object per block and generation. It is created only if absent, so exactly one writer gets a
generation; a writer that finds the newest claim abandoned creates the next generation. Nothing is compared with
another machine's clock: a claim is abandoned when its process is dead on this machine, or when its content has not
changed for `LEASE` seconds by this machine's own clock, because living holders renew it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from store.errors import Head2ToeError
from store.objects import Objects

LEASE = 60.0
"""Seconds without a renewal after which a claim of another machine may be taken over."""

Block = tuple[str, int]


class Claims:
    """The blocks one writer has claimed; a context that renews them in the background and releases them at its end.

    Parameters
    ----------
    objects : Objects
        The store's objects.
    lease : float
        Seconds without a renewal after which a claim counts as abandoned.
    """

    def __init__(self, objects: Objects, lease: float = LEASE) -> None:
        self._objects = objects
        self._lease = lease
        self._owner = uuid.uuid4().hex
        self._held: dict[Block, int] = {}
        self._seen: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._renewing = threading.Thread(target=self._renew, name="claims", daemon=True)

    def __enter__(self) -> Self:
        self._renewing.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._renewing.join()
        for split, block in list(self._held):
            self.release(split, block)

    def take(self, split: str, block: int) -> bool:
        """Claim a block; return whether it is this writer's now."""
        if (split, block) in self._held:
            return True
        generation = self._newest(split, block)
        if generation is not None and not self._abandoned(_key(split, block, generation)):
            return False
        following = 0 if generation is None else generation + 1
        if not self._objects.create(_key(split, block, following), self._content()):
            return False
        with self._lock:
            self._held[split, block] = following
        return True

    def holds(self, split: str, block: int) -> bool:
        """Return whether the claim is still this writer's, and not taken over while it was asleep."""
        return self._held.get((split, block), -1) == self._newest(split, block)

    def release(self, split: str, block: int) -> None:
        """Give a block back, written or not."""
        ours = self.holds(split, block)
        with self._lock:
            self._held.pop((split, block), None)
            if ours:
                self._objects.remove(_folder(split, block))

    def _newest(self, split: str, block: int) -> int | None:
        generations = [int(n.removesuffix(".json")) for n in self._objects.names(_folder(split, block))]
        return max(generations, default=None)

    def _abandoned(self, key: str) -> bool:
        try:
            content = self._objects.read(key)
        except FileNotFoundError:
            return False  # released this moment; the next attempt finds it free
        holder = json.loads(content)
        if holder["host"] == socket.gethostname() and not _alive(holder["pid"]):
            return True
        before, since = self._seen.get(key, (b"", 0.0))
        if before != content:
            self._seen[key] = content, time.monotonic()
            return False
        return time.monotonic() - since > self._lease

    def _renew(self) -> None:
        while not self._ended.wait(self._lease / 4):
            with self._lock:
                for (split, block), generation in self._held.items():
                    # A failed renewal costs nothing before the lease is over, and the next one may succeed.
                    with contextlib.suppress(OSError, Head2ToeError):
                        self._objects.write(_key(split, block, generation), [self._content()])

    def _content(self) -> bytes:
        holder = {"owner": self._owner, "host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time_ns()}
        return json.dumps(holder).encode()


def _folder(split: str, block: int) -> str:
    return f"claims/{split}/{block:06d}"


def _key(split: str, block: int, generation: int) -> str:
    return f"{_folder(split, block)}/{generation:06d}.json"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    # One that has ended but whose parent has not asked how still has its number; only Linux tells here.
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    return True
