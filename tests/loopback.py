"""S3 on this machine: a moto server in a process of its own, and a proxy before it that fails as it is told."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
BUCKET = "bucket"


@contextlib.contextmanager
def moto(delay: float = 0.0) -> Iterator[str]:
    """Run a moto server that has one bucket, and yield its URL; every request takes `delay` seconds longer."""
    command = [sys.executable, str(Path(__file__)), str(delay)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = f"http://127.0.0.1:{process.stdout.readline().strip()}"
        request(url, "PUT", f"/{BUCKET}")
        try:
            yield url
        finally:
            process.stdin.close()  # the server ends with its standard input, however this process ends
            process.wait(timeout=10)


def request(url: str, method: str, path: str, headers: dict[str, str] | None = None) -> int:
    """Send one request past s3fs and return its status."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20250101/us-east-1/s3/aws4_request"}
    connection.request(method, path, headers=signed | (headers or {}))
    status = connection.getresponse().status
    connection.close()
    return status


@dataclass
class Fault:
    """What shall go wrong, for which requests, and how often.

    `kind` is a status to answer, ``"drop"`` (close without an answer), ``"lost"`` (do it, then close without an
    answer), ``"cut"`` (close in the middle of the body) or ``"slow"`` (answer after `seconds`).
    """

    kind: int | str
    method: str = "GET"
    path: str = ""
    times: int = 10**9
    code: str = "InternalError"
    seconds: float = 0.0


@dataclass
class Proxy:
    """A loopback proxy before an S3 server: its URL, what shall go wrong, and every request it saw."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, method: str, path: str, ranges: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path, ranges))
            for fault in self.faults:
                if fault.method == method and fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


@contextlib.contextmanager
def proxy(upstream: str) -> Iterator[Proxy]:
    """Run a proxy in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            fault = running.next_fault(self.command, self.path, self.headers.get("Range", ""))
            kind = fault.kind if fault else None
            if fault and kind == "slow":
                time.sleep(fault.seconds)
            if fault and isinstance(kind, int):
                text = f"<Error><Code>{fault.code}</Code><Message>told to</Message></Error>".encode()
                self.answer(kind, {"Content-Type": "application/xml"}, text)
                return
            if kind == "drop":
                self.close_connection = True
                return
            connection = http.client.HTTPConnection(upstream.removeprefix("http://"), timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content, headers = response.read(), dict(response.headers)
            connection.close()
            if kind == "lost":
                self.close_connection = True
                return
            self.answer(response.status, headers, content, cut=kind == "cut")

        def answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
            self.send_response_only(status)
            length = headers.get("Content-Length") if self.command == "HEAD" else None
            for name, value in headers.items():
                if name.lower() not in {"content-length", "connection", "transfer-encoding"}:
                    self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: len(content) // 2] if cut else content)
            if cut:
                self.close_connection = True

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def handle(self) -> None:
            # A client that gave up waiting is part of what is tested.
            with contextlib.suppress(ConnectionError):
                super().handle()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    running = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def serve(delay: float) -> None:
    """Run moto until standard input ends; one request at a time, as S3 makes each one atomic."""
    import logging

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None:
            pass

    logging.disable()
    application = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def atomic(environ: dict[str, Any], start_response: Any) -> Any:
        time.sleep(delay)
        with lock:
            return application(environ, start_response)

    server = make_server("127.0.0.1", 0, atomic, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)  # noqa: T201  (whoever started this process reads it)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    serve(float(sys.argv[1]))
