"""S3 on this machine behind a relay, which can be slow, stand still, or be away for a while as a server in restart is.

The server itself keeps its objects in memory, so ending it would be a loss of all data and not a restart. What clients
see of a restart they see here: connections cut in mid-request, a port that refuses, the same objects afterwards.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time

from cluster.processes import free_port
from loopback import BUCKET as BUCKET
from loopback import ENVIRONMENT as ENVIRONMENT
from s3fs import S3FileSystem

PIECE = 1 << 16


class Storage:
    """The relay: its URL, and what is in the bucket.

    Parameters
    ----------
    upstream : str
        URL of the server.
    """

    def __init__(self, upstream: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.delay = 0.0
        """Seconds that every request, or 64 kB of it, takes longer."""
        self._upstream = int(upstream.rpartition(":")[2])
        self._flowing = threading.Event()
        self._flowing.set()
        self._open: set[socket.socket] = set()
        self._files = S3FileSystem(
            key=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            secret=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=upstream,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
        self.start()

    def start(self) -> None:
        """Accept connections."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Cut all connections and refuse new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in list(self._open):
            _cut(each)

    def restart(self, seconds: float) -> None:
        """Be away for so many seconds."""
        self.stop()
        time.sleep(seconds)
        self.start()

    def hold(self) -> None:
        """Let nothing through any more."""
        self._flowing.clear()

    def release(self) -> None:
        """Let everything through, at full speed."""
        self.delay = 0.0
        self._flowing.set()

    def blocks(self, root: str) -> int:
        """Return how many blocks of the stores below a root are committed, asked past the relay."""
        return sum("/blocks/" in key and key.endswith(".json") for key in self._files.find(root.removeprefix("s3://")))

    def written(self, root: str, but: str) -> dict[str, str]:
        """Return when each object below a root was written, but for those with this in their keys."""
        found = self._files.find(root.removeprefix("s3://"), detail=True)
        return {key: str(about["LastModified"]) for key, about in found.items() if but not in key}

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._upstream))
            self._open |= {client, server}
            for pair, slow in (((client, server), True), ((server, client), False)):
                threading.Thread(target=self._pump, args=(*pair, slow), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                if slow:
                    time.sleep(self.delay)
                    self._flowing.wait()
                target.sendall(piece)
        for each in (source, target):
            _cut(each)
            self._open.discard(each)


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
