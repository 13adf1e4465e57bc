"""HTTP as anyone speaks it: one kept connection and the standard library, nothing of our client's."""

import http.client
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from cu_fleet.model.errors import BrokenError


class Plain:
    """Blocks: call it in a thread. The time is taken here, from the request to the last byte of the answer."""

    def __init__(self, url: str, token: str) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
        self._connection.connect()
        self._connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._headers = {"Authorization": f"Bearer {token}"}

    def ask(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> tuple[float, bytes, str]:
        """The seconds, the answer and its `Cu-Fleet-Frame`."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers if data is None else {**self._headers, "Content-Type": "application/json"}
        began = time.perf_counter()
        self._connection.request(method, path, data, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != expect:
            raise BrokenError(f"{method} {path}: expected {expect}, found {answer.status}: {content[:500]!r}")
        return seconds, content, answer.headers.get("Cu-Fleet-Frame", "")

    def close(self) -> None:
        self._connection.close()
