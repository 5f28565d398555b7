"""A local S3 server (moto's) for tests, and a proxy before it that throttles, fails and drops connections."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",  # botocore's own pauses would make the tests slow
}
DROP = -1
_BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'
_FAILED = b'<?xml version="1.0"?><Error><Code>InternalError</Code><Message>We are sorry.</Message></Error>'

Fails = Callable[[str, str], int]
"""From method and path to the status to answer with: 0 to let it through, ``DROP`` to close the connection."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@contextmanager
def s3_server(log: Path, bucket: str) -> Iterator[str]:
    """moto's server in a process of its own, with a bucket; its address."""
    port = free_port()
    with log.open("wb") as file:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{address}/{bucket}", method="PUT"), timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline, log.read_text()
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        server.kill()
        server.wait()


@contextmanager
def failing_proxy(address: str, fails: Fails) -> Iterator[str]:
    """A proxy before an S3 server that fails as ``fails`` says; its address."""
    behind = urlsplit(address).netloc

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status = fails(self.command, self.path)
            if status == DROP:
                self.close_connection = True
                return
            if status:
                self.reply(status, [("Content-Type", "application/xml")], _BUSY if status == 503 else _FAILED)
                return
            connection = http.client.HTTPConnection(behind, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers))
            found = connection.getresponse()
            data = found.read()
            self.reply(found.status, found.getheaders(), data)
            connection.close()

        def reply(self, status: int, headers: list[tuple[str, str]], data: bytes) -> None:
            self.send_response_only(status)
            dropped = ("transfer-encoding", "connection", "content-length")
            for name, value in headers:
                if name.lower() not in dropped or (self.command == "HEAD" and name.lower() == "content-length"):
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

        def log_message(self, format: str, *arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
