"""A controller that says whatever a test tells it to, over real HTTP: also what an honest one never would."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit


@dataclass
class Asked:
    method: str
    path: str
    query: dict[str, str]
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


Answer = Any  # JSON-able (200), bytes, an iterator of them as they come, or (status, one of these)


@dataclass
class Fake:
    """Routes are tried in order; what no route knows is answered with 404."""

    routes: list[tuple[str, str, Callable[..., Answer]]] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def on(self, method: str, pattern: str, answer: Answer | Callable[..., Answer]) -> "Fake":
        self.routes.append((method, pattern, answer if callable(answer) else lambda *_: answer))
        return self

    def answer(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        for method, pattern, answer in self.routes:
            if method == asked.method and (found := re.fullmatch(pattern, asked.path)):
                return answer(asked, *found.groups())
        return 404, problem(404, "not_found", f"there is no {asked.path}")

    def of(self, method: str, pattern: str) -> list[Asked]:
        return [a for a in self.asked if a.method == method and re.fullmatch(pattern, a.path)]

    @property
    def env(self) -> dict[str, str]:
        return {"CU_FLEET_URL": self.url, "CU_FLEET_TOKEN": "cfo_test"}


def problem(status: int, code: str, detail: str, remedy: str = "", **facts: object) -> dict[str, object]:
    said = f"{detail}; {remedy}" if remedy else detail
    shape = {"type": "about:blank", "title": "", "status": status, "detail": said, "code": code, "remedy": remedy}
    return {**facts, **shape}


def _handler(fake: Fake) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            parts = urlsplit(self.path)
            query = dict(parse_qsl(parts.query))
            asked = Asked(self.command, unquote(parts.path), query, self._body(), dict(self.headers))
            answer = fake.answer(asked)
            status, said = answer if isinstance(answer, tuple) else (200, answer)
            self.send_response(status)
            self.send_header("Cu-Fleet-Frame", "fr_0123456789")
            self._send(said)

        def _send(self, said: Any) -> None:
            if not isinstance(said, Iterator):
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                return
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for part in said:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part))
            self.wfile.write(b"0\r\n\r\n")

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        do_GET = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815 -- the names http.server looks for

        def log_message(self, *_: object) -> None:
            """Tests say what they need."""

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that leaves is what some tests are about."""


@contextmanager
def controller() -> Iterator[Fake]:
    fake = Fake()
    server = _Server(("127.0.0.1", 0), _handler(fake))
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, name="fake controller")
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lease(state: str = "active", **more: object) -> dict[str, object]:
    """A lease as a controller shows it."""
    held = {"desktop": "dk_0123456789", "generation": 1, "width": 1280, "height": 800, "token": "cfl_secret"}
    held |= {"expires_at": "2026-01-01T12:00:00Z", "remaining": 600.0, "granted_at": "2026-01-01T11:45:00Z"}
    view: dict[str, object] = {
        "lease": "ls_0123456789",
        "agent": "b",
        "state": state,
        "control": "agent" if state == "active" else "none",
        "profile": "local",
        "backend": "local",
        "desktop_name": None,
        "resources": [],
        "asked_at": "2026-01-01T11:45:00Z",
        "ended_at": None,
        "ttl": 900.0,
        "reason": "",
        "by": "",
        "place": None,
        "message": None,
        "holder": None,
        "waiters": 0,
        "url": "http://127.0.0.1:8700",
        "mcp_url": "http://127.0.0.1:8700/mcp",
    }
    empty = dict.fromkeys(held)
    return {**view, **(held if state == "active" else empty), **more}
