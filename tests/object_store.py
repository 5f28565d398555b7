"""A local S3 server for tests, and a proxy before it that misbehaves as it is told."""

from __future__ import annotations

import atexit
import http.client
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Fault = str | None
"""slow_down (503), broken (500), forbidden and bad_key (403), gone (404), refused (412), throttled, incomplete and
expired (400), stall (silence), None, or drop: half of the body, or no answer to what was done where it has none."""
_ANSWERS = {
    "slow_down": (503, "SlowDown"),
    "broken": (500, "InternalError"),
    "forbidden": (403, "AccessDenied"),
    "bad_key": (403, "InvalidAccessKeyId"),
    "gone": (404, "NoSuchKey"),
    "refused": (412, "PreconditionFailed"),
    "throttled": (400, "ThrottlingException"),
    "incomplete": (400, "IncompleteBody"),
    "expired": (400, "ExpiredToken"),
}
STALL_S = 4.0
_MOTO = """
from moto import backends, server
names = list(backends.list_of_moto_modules())
backends.list_of_moto_modules = lambda: names
server.main()
"""
"""moto's server without a look at its folder for each request, which takes a fifth of the request's time."""


class Proxy:
    """Before a server on a port of this machine.

    ``fault`` decides what becomes of a request by its method and key (S3's ``bucket/name``, with a / at its end for a
    listing; else the path of the URL), and may take its time; ``requests`` are those that were made.  Headers in
    ``unknown`` are not passed on, as by a server that does not know them.  ``refuses`` decides by method, path with
    query and body whether a request's condition does not hold, for a server that has none; nothing is done meanwhile.
    """

    def __init__(self, port: int) -> None:
        self.fault: Callable[[str, str], Fault] = lambda method, key: None
        self.requests: list[tuple[str, str]] = []
        self.unknown: tuple[str, ...] = ()
        self.refuses: Callable[[str, str, bytes], bool] | None = None
        self.one_at_a_time = threading.Lock()
        self.port = port
        self._proxy = _Server(("127.0.0.1", 0), _handler(self, port))
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._proxy.server_address[1]}"

    def behave(self) -> None:
        """No faults from now on, and no requests so far."""
        self.unknown, self.refuses = (), None
        self.fault = lambda method, key: None
        self.requests.clear()

    def close(self) -> None:
        """End it."""
        self._proxy.shutdown()
        self._proxy.server_close()


class StoreServer(Proxy):
    """moto's S3 server, behind the proxy."""

    def __init__(self) -> None:
        super().__init__(_server_port())
        self.environment = {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client that goes past the proxy."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
        )

    def bucket(self, name: str, objects: dict[str, bytes]) -> None:
        """Make a bucket that holds these objects."""
        client = self.client()
        client.create_bucket(Bucket=name)
        for key, data in objects.items():
            client.put_object(Bucket=name, Key=key, Body=data)

    def reads(self) -> list[str]:
        """The keys of the objects that were asked for, in order."""
        return [key for method, key in self.requests if method == "GET" and key.count("/") and not key.endswith("/")]

    def close(self) -> None:
        """End the proxy, and leave the server as empty as it was."""
        super().close()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/moto-api/reset", method="POST")
        urllib.request.urlopen(request, timeout=30).close()


@contextmanager
def object_store() -> Iterator[StoreServer]:
    """A store for the time of a ``with``, empty at first, and the drivers' environment set to it; one at a time."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # of another proxy's
    store = StoreServer()
    before = {key: os.environ.get(key) for key in store.environment}
    os.environ.update(store.environment)
    try:
        yield store
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value
        s3fs.S3FileSystem.clear_instance_cache()
        store.close()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@cache
def _server_port() -> int:
    """Where moto's server listens: one process for all tests of this process, ended with it, since it starts slowly."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    atexit.register(server.kill)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return port
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("moto's server did not start")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # of a command that was killed
            super().handle_error(request, client_address)


def _refusal(fault: str) -> tuple[int, list[tuple[str, str]], bytes]:
    status, code = _ANSWERS[fault]
    return status, [], f"<Error><Code>{code}</Code><Message>{fault}</Message></Error>".encode()


def _handler(store: Proxy, port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = unquote(urlsplit(self.path).path).lstrip("/")
            if "list-type" in urlsplit(self.path).query:
                key = f"{key.rstrip('/')}/"
            store.requests.append((self.command, key))
            fault = store.fault(self.command, key)
            if fault in _ANSWERS:
                self._answer(*_refusal(fault))
                return
            if fault == "stall":
                time.sleep(STALL_S)
                self.close_connection = True
                return
            with store.one_at_a_time if store.refuses else nullcontext():
                if store.refuses and store.refuses(self.command, self.path, body):
                    self._answer(*_refusal("refused"))
                    return
                status, headers, data = self._ask(body)
            if fault == "drop" and not data:
                self.close_connection = True
            elif fault == "drop":
                self._answer(status, headers, data, len(data) // 2)
            else:
                self._answer(status, headers, data)

        def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            left_out = ("host", "connection", "expect", *store.unknown)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in left_out}
            upstream.request(self.command, self.path, body, headers | {"Host": self.headers["Host"]})
            answer = upstream.getresponse()
            data = answer.read()
            headers_back = [(name, value) for name, value in answer.getheaders() if name.lower() != "connection"]
            upstream.close()
            return answer.status, headers_back, data

        def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, cut: int | None = None) -> None:
            self.send_response_only(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding"):
                    self.send_header(name, value)
            length = {name.lower(): value for name, value in headers}.get("content-length")
            self.send_header("Content-Length", length if self.command == "HEAD" and length else str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:cut])
            if cut is not None:
                self.wfile.flush()
                self.close_connection = True

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

    return Handler
