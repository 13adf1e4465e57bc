"""Opening the door: one uvicorn server for the unix socket and one for TCP, in the caller's loop.

What came through the socket is known by the protocol object that accepted it, which asks the kernel who is at the
other end; only the controller's own user and root are heard. The servers differ in nothing else. When it is time to
stop, whatever waits is told so first; what still runs after the grace is cut.
"""

import asyncio
import os
import pwd
import socket
import struct
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cu_fleet.api.app import build
from cu_fleet.api.auth import SOCKET_OWNER
from cu_fleet.api.listen import tcp_listener, unix_listener, url_of

if TYPE_CHECKING:
    from cu_fleet.controller import Controller

GRACE = 3
MAX_HEAD = 64 << 10  # bytes of request line and headers that do not come in one piece
MAX_CONNECTIONS = 1000  # over TCP; the socket's owner is never locked out
HEAD_WITHIN = 30.0  # seconds for a request's line and headers to come
_PEER = struct.Struct("3i")  # pid, uid, gid


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds on headers that never end or never come."""

    _head = 0
    _in_head = False
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def _expect_head(self) -> None:
        self._head_came()
        self._late = self.loop.call_later(HEAD_WITHIN, self.transport.close)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head, self._in_head = 0, True
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_came()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")


class TcpProtocol(_Protocol):
    """On TCP: bounded in number, so that whoever opens many cannot lock out the socket's owner."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()


class SocketProtocol(_Protocol):
    """On the unix socket: marks each request with the user at the other end."""

    _owner = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if uid not in (0, os.geteuid()):
            transport.abort()
        self._owner = _user_name(uid)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[SOCKET_OWNER] = self._owner  # type: ignore[literal-required]  # the ASGI scope is open


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid-{uid}"


class _Door(uvicorn.Server):
    """A uvicorn server that stops when told and leaves the process's signals alone."""

    def __init__(self, app: ASGIApp, protocol: type[HttpToolsProtocol], closing: asyncio.Event) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=75,
            )
        )
        self._closing = closing

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def main_loop(self) -> None:
        stopping = asyncio.create_task(self._closing.wait(), name="door: stop")
        try:
            while not stopping.done():
                await self.on_tick(0)  # keeps the Date header
                await asyncio.wait([stopping], timeout=1)
        finally:
            stopping.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what is being answered end, cut what does not; uvicorn's own way does it in slow steps."""
        for server in self.servers:
            server.close()
        state = self.server_state
        for connection in list(state.connections):
            connection.shutdown()
        if state.tasks:
            _, late = await asyncio.wait(state.tasks, timeout=GRACE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for connection in list(state.connections):
            connection.transport.close()


async def serve(
    controller: "Controller",
    *,
    socket_path: Path,
    host: str,
    port: int,
    ready: Callable[[str], None],
    stop: asyncio.Event,
    shutdown: Callable[[], None],
    port_fallback: bool = False,
    doors: Mapping[str, ASGIApp] | None = None,
) -> None:
    """Serve until `stop` is set, then end within a few seconds. `ready` hears the URL once both sockets listen.

    A client that asks for the end of it all makes `shutdown` be called; it should set `stop`.
    """
    with ExitStack() as stack:
        tcp = stack.enter_context(tcp_listener(host, port, fallback=port_fallback))
        unix = stack.enter_context(unix_listener(socket_path))
        url = url_of(tcp)
        hosts = {"*"} if host in ("", "0.0.0.0", "::") else {host}  # noqa: S104 - compared, not bound
        app = build(controller, shutdown=shutdown, closing=stop, hosts=hosts, doors=doors)
        controller.url = url
        await _both(app, unix, tcp, stop, lambda: ready(url))


async def _both(
    app: ASGIApp, unix: socket.socket, tcp: socket.socket, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    doors = [(_Door(app, SocketProtocol, stop), unix), (_Door(app, TcpProtocol, stop), tcp)]
    async with asyncio.TaskGroup() as tasks:
        for door, listener in doors:
            kind = "socket" if listener is unix else "tcp"
            tasks.create_task(_run(door, listener, stop), name=f"door: {kind}")
        ready()  # the sockets listen already: whoever connects now is served in a moment


async def _run(door: _Door, listener: socket.socket, stop: asyncio.Event) -> None:
    """One door's end is the other's too."""
    try:
        await door.serve(sockets=[listener])
    finally:
        stop.set()
