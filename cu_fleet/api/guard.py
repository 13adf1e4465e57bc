"""What stands before every request, whatever it asks for.

A page in a browser on this machine can send requests to loopback. So a name that is not ours in `Host` (DNS
rebinding) and a foreign `Origin` are refused, there is no CORS, and nothing may be cached. Bodies are bounded while
they are read. An exception that nobody expected is logged here, once, and only here.
"""

import asyncio
import ipaddress
import logging
import math
import re
import socket
import time
from collections.abc import Collection

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cu_fleet.api.auth import SOCKET_OWNER
from cu_fleet.api.problems import answer, stopping
from cu_fleet.model.errors import DeniedError, FleetError

MAX_BODY = 32 << 20
MAX_FILE = 1 << 30
_FILE = re.compile(r"/v1/leases/[^/]+/files/")
_INPUT = re.compile(r"/v1/desktops/[^/]+/exec/[^/]+/input")  # goes straight on, and is kept nowhere
_READ = {b"host", b"origin", b"content-length"}
_ALWAYS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
_log = logging.getLogger("cu_fleet.api")


class TooLargeError(FleetError):
    status, exit_code, default_code = 413, 2, "too_large"


class Guard:
    def __init__(self, app: ASGIApp, hosts: Collection[str], closing: asyncio.Event) -> None:
        """`hosts`: names, beside loopback's, that this controller is reached by; `*` is any address of this machine."""
        self._app, self._closing = app, closing
        self._hosts = {host.lower() for host in hosts}
        self._usual = "localhost"  # the last name that was ours

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"the door speaks HTTP, not {scope['type']}")
        answering = _Answering(scope, send)
        try:
            limit = _limit(scope) if scope["method"] == "PUT" else MAX_BODY
            self._check(scope, limit)
            await self._app(scope, _bounded(receive, limit), answering.send)
        except FleetError as error:
            await answer(error)(scope, receive, answering.send)
        except asyncio.CancelledError:
            if not self._closing.is_set() or answering.began:
                raise
            await answer(stopping())(scope, receive, answering.send)  # the door cuts what is still here at its end
        except ClientDisconnect:
            _log.debug("%s %s: the client left", scope["method"], scope["path"])
        except Exception:
            if not answering.complete:
                raise  # in the middle of a body: the server logs it and cuts the connection, so that it shows
            _log.exception("%s %s failed", scope["method"], scope["path"])

    def _check(self, scope: Scope, limit: float) -> None:
        headers = {name: value.decode("latin-1") for name, value in reversed(scope["headers"]) if name in _READ}
        host = headers.get(b"host", "")
        if SOCKET_OWNER not in scope and host != self._usual:
            if not self._ours(host):
                raise DeniedError(
                    f"this controller is not called {host[:100]!r}",
                    remedy="use its address, or set CU_FLEET_HOST to this name",
                    code="wrong_host",
                )
            self._usual = host
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            raise DeniedError("a page from elsewhere may not reach this controller", code="foreign_origin")
        length = headers.get(b"content-length", "0")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit)

    def _ours(self, host: str) -> bool:
        name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
        name = name.strip("[]").lower()
        if name == "localhost" or name in self._hosts:
            return True
        if "*" in self._hosts and name == socket.gethostname().lower():
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or "*" in self._hosts


class _Answering:
    """Follows the answer as it goes out."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send, self._since = scope, send, time.monotonic()
        self.began = self.complete = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.began = True
            message["headers"] = [*message["headers"], *_ALWAYS]
            if message["status"] == TooLargeError.status:
                message["headers"].append((b"connection", b"close"))  # do not read what was refused
            elapsed = 1000 * (time.monotonic() - self._since)
            _log.debug("%s %s: %d in %.1f ms", self._scope["method"], self._scope["path"], message["status"], elapsed)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


def _limit(scope: Scope) -> float:
    if _INPUT.fullmatch(scope["path"]):
        return math.inf
    return MAX_FILE if _FILE.match(scope["path"]) else MAX_BODY


def _bounded(receive: Receive, limit: float) -> Receive:
    seen = 0

    async def receive_some() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            error = _too_large(limit)
            raise HTTPException(error.status, str(error))  # the one kind that frameworks let through from here
        return message

    return receive_some


def _too_large(limit: float) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than {int(limit) >> 20} MiB",
        remedy="send less at once, or a file under …/files",
        limit=limit,
    )
