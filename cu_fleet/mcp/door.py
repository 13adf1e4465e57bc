"""The tools over streamable HTTP: what stands at `/mcp` in the controller's own HTTP server.

Stateless: each POST is one message, whose bearer says which lease it is about, looked up every time. Whoever is not
known is refused with 401. A token of a lease that is over is known: its calls answer why, as a tool's error, since
clients take a bare 401 for a failed login. An agent's own token lists tools and does nothing else.

The SDK serves both kinds of client, those that begin with `initialize` and those of 2026-07-28 that do not. A client
that leaves in the middle of a call has it cancelled: what was held down goes up.
"""

import asyncio
import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cu_fleet.model.access import Caller
from cu_fleet.model.errors import DeniedError, FleetError, UnauthorizedError, UnavailableError

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from cu_fleet.controller import Controller

CALLER = "cu_fleet.mcp_caller"  # scope key
PROFILE = "cu_fleet.mcp_profile"
MOST_BODY = 16 << 20
_KNOWN = ("forgotten_lease", "outdated_token")  # refusals of a token that was ours
_log = logging.getLogger("cu_fleet.mcp")


class Door:
    """An ASGI app for one path. `socket_owner` is the scope key that marks who is at the unix socket's other end."""

    def __init__(self, fleet: "Controller", socket_owner: str) -> None:
        self._fleet, self._socket_owner = fleet, socket_owner
        self._starting = asyncio.Lock()
        self._manager: StreamableHTTPSessionManager | None = None
        self._running: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await PlainTextResponse("POST a message", 405, {"Allow": "POST"})(scope, receive, send)
            return
        scope[CALLER] = await self._caller(scope)
        scope[PROFILE] = parse_qs(scope["query_string"].decode("latin-1")).get("profile", [None])[0]
        manager = await self._served()
        body = await _read(receive)
        await _unless_gone(self._short(scope, body) or manager.handle_request, scope, body, receive, send)

    def _short(self, scope: Scope, body: bytes) -> ASGIApp | None:
        from cu_fleet.mcp import server, short

        call = short.read(scope, body)
        if call is None:
            return None

        async def app(scope: Scope, _: Receive, send: Send) -> None:
            await short.answer(call, await server.called(self._fleet, scope, call.tool, call.arguments), send)

        return app

    async def _caller(self, scope: Scope) -> Caller | FleetError:
        """Who calls, or why their token opens nothing any more; refuses whoever is not known."""
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind and kind.lower() != "bearer":
            raise UnauthorizedError(
                "the Authorization header is not understood", remedy="send: Authorization: Bearer TOKEN"
            )
        try:
            return await self._fleet.caller(token.strip() or None, socket_owner=scope.get(self._socket_owner))
        except UnauthorizedError as error:
            if error.code not in _KNOWN:
                raise
            return error

    async def _served(self) -> "StreamableHTTPSessionManager":
        """The SDK's side, begun with the first message."""
        async with self._starting:
            if self._manager is None:
                manager = await asyncio.to_thread(_manager, self._fleet)
                ready = asyncio.Event()
                self._running = asyncio.create_task(_run(manager, ready), name="the MCP door")
                await ready.wait()
                self._manager = manager
        return self._manager

    async def close(self) -> None:
        if self._running:
            self._running.cancel()
            await asyncio.wait({self._running})


def _manager(fleet: "Controller") -> "StreamableHTTPSessionManager":
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

    from cu_fleet.mcp.server import leased

    return StreamableHTTPSessionManager(
        leased(fleet), json_response=True, stateless=True, max_request_body_size=MOST_BODY
    )


async def _run(manager: "StreamableHTTPSessionManager", ready: asyncio.Event) -> None:
    async with manager.run():
        ready.set()
        await asyncio.Event().wait()


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return bytes(body)


async def _unless_gone(app: Any, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Answer, but stop if the client leaves meanwhile."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.create_task(_gone(receive), name="mcp: watch the client")

    async def replayed() -> Message:
        if rest:
            return rest.pop()
        await asyncio.wait({gone})
        return {"type": "http.disconnect"}

    answering = asyncio.create_task(app(scope, replayed, send), name="mcp: answer")
    try:
        await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if not answering.done():
            _log.debug("the client left in the middle of a call")
            answering.cancel()
        await asyncio.wait({answering, gone})
    if not answering.cancelled():
        answering.result()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def at_desk(scope: Scope) -> tuple[Caller, str]:
    """The caller and its lease, if it has one."""
    who = scope[CALLER]
    if isinstance(who, FleetError):
        raise DeniedError(who.what, remedy="stop; a person has to give you a new lease", code=who.code)
    if who.lease is None:
        raise UnavailableError(
            f"this is {who.who}'s own token, which opens no desktop",
            remedy="connect with the token of a lease: cu-fleet lease acquire, or cu-fleet mcp",
            code="needs_lease_token",
        )
    return who, who.lease
