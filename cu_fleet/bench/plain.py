"""HTTP over one kept connection and as little around it as can be: nothing of our client's, nor of anyone's.

What is measured is the controller; the standard library's client alone takes a quarter of a millisecond to read a dozen
headers.
"""

import json
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cu_fleet.model.errors import BrokenError

_PIECE = 1 << 20


class Plain:
    """Blocks: call it in a thread. The time is taken here, from the request to the last byte of the answer."""

    def __init__(self, url: str, token: str, more: Mapping[str, str] | None = None) -> None:
        where = urlsplit(url)
        self._socket = socket.create_connection((where.hostname, where.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        headers = {"Host": where.netloc, "Authorization": f"Bearer {token}", **(more or {})}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def ask(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> tuple[float, bytes, str]:
        """The seconds, the answer and its `Cu-Fleet-Frame`."""
        data = b"" if body is None else json.dumps(body).encode()
        more = f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n" if data else ""
        began = time.perf_counter()
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\n{self._headers}{more}\r\n".encode() + data)
        head, content = self._answer()
        seconds = time.perf_counter() - began
        status = int(head.split(b" ", 2)[1])
        if status != expect:
            raise BrokenError(f"{method} {path}: expected {expect}, found {status}: {content[:500]!r}")
        return seconds, content, _header(head, b"cu-fleet-frame").decode()

    def _answer(self) -> tuple[bytes, bytes]:
        """Headers and content; whoever does not say how long that is has none."""
        found = self._socket.recv(_PIECE)
        while b"\r\n\r\n" not in found:
            found += self._more()
        head, _, content = found.partition(b"\r\n\r\n")
        pieces, left = [content], int(_header(head, b"content-length") or 0) - len(content)
        while left > 0:
            pieces.append(self._more())
            left -= len(pieces[-1])
        return head, b"".join(pieces)

    def _more(self) -> bytes:
        piece = self._socket.recv(_PIECE)
        if not piece:
            raise BrokenError("the controller broke off in the middle of an answer")
        return piece

    def close(self) -> None:
        self._socket.close()


def _header(head: bytes, name: bytes) -> bytes:
    at = head.lower().find(b"\r\n" + name + b":")
    return head[at + len(name) + 3 :].split(b"\r\n", 1)[0].strip() if at >= 0 else b""
