"""What stands before every request, whatever it asks for.

A page in a browser on this machine can send requests to loopback. So a name that is not ours in `Host` (DNS
rebinding) and a foreign `Origin` are refused, there is no CORS, and nothing may be cached. Bodies are bounded while
they are read, each in size and in time, and all together in what is kept of them: whoever is asked for a token may send
one first. An exception that nobody expected is logged here, once, and only here.
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
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from cu_fleet.api.auth import SOCKET_OWNER
from cu_fleet.api.problems import answer, on_http_exception, on_unexpected, stopping
from cu_fleet.model.errors import DeniedError, FleetError

MAX_BODY = 32 << 20
MAX_FILE = 1 << 30
MAX_BODIES = 256 << 20  # of all that are being answered, but for those that are passed on as they come
BODY_WITHIN = 30.0  # seconds for a body to come, and one more for each
BODY_RATE = 10_000  # bytes
_FILE = re.compile(r"/v1/leases/[^/]+/files/")
_INPUT = re.compile(r"/v1/desktops/[^/]+/exec/[^/]+/input")  # goes straight on, and is kept nowhere
_READ = {b"host", b"origin", b"content-length"}
_ALWAYS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
_log = logging.getLogger("cu_fleet.api")


class TooLargeError(FleetError):
    status, exit_code, default_code = 413, 2, "too_large"


class TooSlowError(FleetError):
    status, exit_code, default_code = 408, 1, "too_slow"


class TooMuchError(FleetError):
    status, exit_code, default_code = 503, 1, "too_much"


_CUT = (TooLargeError.status, TooSlowError.status)  # do not read what was refused


class Guard:
    def __init__(self, app: ASGIApp, hosts: Collection[str], closing: asyncio.Event) -> None:
        """`hosts`: names, beside loopback's, that this controller is reached by; `*` is any address of this machine."""
        self._app, self._closing = app, closing
        self._hosts = {host.lower() for host in hosts}
        self._usual = "localhost"  # the last name that was ours
        self._bodies = 0  # bytes of them that are held now

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"the door speaks HTTP and WebSocket, not {scope['type']}")
        answering, body = _Answering(scope, send), _Body(self, receive, scope)
        try:
            self._check(scope, body.limit)
            await self._app(scope, body.receive, answering.send)
        except FleetError as error:
            await answer(error)(scope, receive, answering.send)
        except HTTPException as error:
            await (await on_http_exception(Request(scope), error))(scope, receive, answering.send)
        except asyncio.CancelledError:
            if not self._closing.is_set() or answering.began:
                raise
            await answer(stopping())(scope, receive, answering.send)  # the door cuts what is still here at its end
        except ClientDisconnect:
            _log.debug("%s %s: the client left", scope["method"], scope["path"])
        except Exception as error:
            if answering.began and not answering.complete:
                raise  # in the middle of a body: the server logs it and cuts the connection, so that it shows
            _log.exception("%s %s failed", scope["method"], scope["path"])
            if not answering.began:
                await (await on_unexpected(Request(scope), error))(scope, receive, answering.send)
        finally:
            self._bodies -= body.held

    def hold(self, size: int) -> None:
        """So much more of a body is kept until it is answered."""
        if self._bodies + size > MAX_BODIES:
            raise TooMuchError(
                "others are sending so much that there is no room for this now", remedy="ask again in a moment"
            )
        self._bodies += size

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A viewer's: a browser asks nobody before it opens one to us from a page of elsewhere, so we look."""
        try:
            self._check(scope, 0)
        except FleetError as error:
            await WebSocket(scope, receive, send).send_denial_response(answer(error))
        else:
            await self._app(scope, receive, send)

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
            if message["status"] in _CUT:
                message["headers"].append((b"connection", b"close"))
            elapsed = 1000 * (time.monotonic() - self._since)
            _log.debug("%s %s: %d in %.1f ms", self._scope["method"], self._scope["path"], message["status"], elapsed)
        self.complete = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)


class _Body:
    """A request's body as it comes."""

    def __init__(self, guard: Guard, receive: Receive, scope: Scope) -> None:
        self._guard, self._receive = guard, receive
        self.limit, self._passed_on = _limit(scope)
        self._until = asyncio.get_running_loop().time() + BODY_WITHIN
        self._whole = False
        self.seen = self.held = 0

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # that the client leaves
        try:
            async with asyncio.timeout_at(None if self.limit == math.inf else self._until + self.seen / BODY_RATE):
                message = await self._receive()
        except TimeoutError:
            error: FleetError = TooSlowError("the body came too slowly", remedy="send it without pauses")
            raise _for_frameworks(error) from None
        size = len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        self.seen += size
        if self.seen > self.limit:
            raise _for_frameworks(_too_large(self.limit))
        if not self._passed_on:
            try:
                self._guard.hold(size)
            except TooMuchError as error:
                raise _for_frameworks(error) from None
            self.held += size
        return message


def _limit(scope: Scope) -> tuple[float, bool]:
    """How much is taken, and whether it is passed on as it comes."""
    if scope["method"] == "PUT" and _INPUT.fullmatch(scope["path"]):
        return math.inf, True
    return (MAX_FILE, True) if scope["method"] == "PUT" and _FILE.match(scope["path"]) else (MAX_BODY, False)


def _for_frameworks(error: FleetError) -> HTTPException:
    """The one kind that they let through while they read."""
    return HTTPException(error.status, str(error))


def _too_large(limit: float) -> TooLargeError:
    return TooLargeError(
        f"the body is larger than {int(limit) >> 20} MiB",
        remedy="send less at once, or a file under …/files",
        limit=limit,
    )
