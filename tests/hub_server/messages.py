"""HTTP for the loopback Hub: origins, routes, refusals as the Hub words them, and requests that fail on purpose."""

import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

ROUTES: dict[str, list[tuple[str, re.Pattern, Callable]]] = {"api": [], "storage": []}


def route(method: str, pattern: str, origin: str = "api") -> Callable:
    """Registers `function(hub, request) -> Response` for the paths that match in full; groups become arguments."""

    def register(function: Callable) -> Callable:
        ROUTES[origin].append((method, re.compile(pattern), function))
        return function

    return register


@dataclass
class Request:
    query: dict[str, str]
    headers: Any
    body: bytes
    arguments: dict[str, str]  # of the path, unquoted

    def json(self) -> dict:
        return json.loads(self.body)


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @classmethod
    def of(cls, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> "Response":
        """An answer in JSON."""
        return cls(status, {"Content-Type": "application/json", **(headers or {})}, json.dumps(content).encode())


class Refusal(Exception):
    """An answer that says no, as the Hub does: a status, a code and a message in headers, and a JSON body."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body: Any):
        super().__init__(message)
        told = {"X-Error-Message": message.replace("\n", " "), **({"X-Error-Code": code} if code else {})}
        self.response = Response.of({"error": message, **body}, status, {**told, **(headers or {})})


@dataclass
class Fault:
    """The next `times` requests of `method` whose path matches `path` lose their connection.

    `moment` is "during" (half of the body was read, nothing done) or "after" (all was done, the answer is lost). With
    `kills` the Hub stays down from then on.
    """

    method: str
    path: str
    moment: str = "during"
    times: int = 1
    kills: bool = False

    def strikes(self, method: str, path: str) -> bool:
        if self.times == 0 or self.method != method or not re.search(self.path, path):
            return False
        self.times -= 1
        return True


class Origin:
    """An HTTP server on a free port of the loopback that answers one table of routes for a Hub.

    `host` is what its address calls the loopback: huggingface_hub 1 tells origins apart by their host alone.
    """

    def __init__(self, hub: Any, name: str, host: str):
        handler = type("Handler", (_Handler,), {"hub": hub, "routes": ROUTES[name]})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://{host}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Any
    routes: list

    def _serve(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        fault = next((fault for fault in self.hub.faults if fault.strikes(self.command, self.path)), None)
        if self.hub.down or (fault and fault.moment == "during"):
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            return self._drop(fault)
        response = self._answer(self._body())
        if self.hub.down or fault:
            return self._drop(fault)
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, body: bytes) -> Response:
        path, _, query = self.path.partition("?")
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in self.routes:
            found = pattern.fullmatch(path)
            if found and wanted == method:
                arguments = {name: unquote(value) for name, value in found.groupdict().items() if value is not None}
                try:
                    return function(self.hub, Request(dict(parse_qsl(query)), self.headers, body, arguments))
                except Refusal as refusal:
                    return refusal.response
        self.hub.unknown.append(f"{self.command} {self.path}")
        return Refusal(404, "Sorry, we can't find the page you are looking for.").response

    def _drop(self, fault: Fault | None) -> None:
        if fault and fault.kills:
            self.hub.down = True
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *arguments: Any) -> None:
        """Nothing: a test that fails shows what its client said."""
