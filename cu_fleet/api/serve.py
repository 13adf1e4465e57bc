"""Opening the door: one uvicorn server for the unix socket and one for TCP, in the caller's loop.

What came through the socket is known by the protocol object that accepted it, which asks the kernel who is at the
other end; only the controller's own user and root are heard. The servers differ in nothing else. When it is time to
stop, whatever waits is told so first; what still runs after the grace is cut.
"""

import asyncio
import os
import pwd
import resource
import socket
import struct
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from cu_fleet.api.app import build
from cu_fleet.api.auth import SOCKET_OWNER
from cu_fleet.api.listen import tcp_listener, unix_listener, url_of

if TYPE_CHECKING:
    from cu_fleet.controller import Controller

GRACE = 3
MAX_HEAD = 64 << 10  # bytes of request line and headers that do not come in one piece
MAX_CONNECTIONS = 1000  # at each door
HEAD_WITHIN = 30.0  # seconds for a request's line and headers to come
READ_WITHIN = 60.0  # seconds in which the client must have read something of an answer
MAX_MESSAGE = 2 << 20  # bytes of one message of a WebSocket: a viewer's clipboard and then some
LAST_WORDS = 1.0  # seconds for what is still to be sent there
_PEER = struct.Struct("3i")  # pid, uid, gid


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with bounds on headers that never end or never come, on answers that nobody reads, and in number.

    One connection too many ends the one on which nothing goes on: first the oldest that never asked anything whole,
    then the one whose last answer is longest ago. If something goes on on each, it is ended itself. So whoever opens
    many locks out nobody who is at work.
    """

    share = 2  # one of so many parts of the descriptors; the rest is for desktops, files and the other door
    since = (False, 0.0)  # whether it has had an answer, and when it came here or had the last
    _head = 0
    _in_head = False
    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self.since = (False, self.loop.time())
        self._expect_head()
        if len(self.connections) > min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // self.share):
            self._make_room()

    def _make_room(self) -> None:
        others = (one for one in self.connections if isinstance(one, _Protocol) and one is not self)
        idle = min((one for one in others if one.idle), key=lambda one: one.since, default=self)
        self.connections.discard(idle)  # the next to come must not count it, and hears of its end only later
        idle.transport.abort()

    @property
    def idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        self.since = (True, self.loop.time())
        super().on_response_complete()

    def _expect_head(self) -> None:
        self._head_came()
        self._late = self.loop.call_later(HEAD_WITHIN, self.timeout_keep_alive_handler)

    def _head_came(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_came()
        self._it_reads()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head, self._in_head = 0, True
        self._head_came()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_came()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._part_of_head(len(data))

    def _part_of_head(self, size: int) -> None:
        """Nearly every head comes whole, and needs no timer."""
        self._head += size
        if self._head > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The headers are too long.")
        elif self._late is None:
            self._expect_head()

    def timeout_keep_alive_handler(self) -> None:
        """Close it; what is still unread then would hold it open."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    # an answer that is not read would keep its picture, and a file's its descriptor

    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_reading()

    def resume_writing(self) -> None:
        self._it_reads()
        super().resume_writing()

    def _expect_reading(self) -> None:
        self._it_reads()
        left = self.transport.get_write_buffer_size()
        self._unread = self.loop.call_later(READ_WITHIN, self._has_read, left)

    def _has_read(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._expect_reading()
        else:
            self.transport.abort()

    def _it_reads(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class TcpProtocol(_Protocol):
    """On TCP."""


class SocketProtocol(_Protocol):
    """On the unix socket: marks each request with the user at the other end."""

    share = 4
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


class _Socket(WebSocketsSansIOProtocol):
    """A viewer's WebSocket, which ends when we are through with it, whatever the viewer has not taken by then."""

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(LAST_WORDS, self.transport.abort)


class _Door(uvicorn.Server):
    """A uvicorn server that stops when told and leaves the process's signals alone."""

    def __init__(self, app: ASGIApp, protocol: type[HttpToolsProtocol], closing: asyncio.Event) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol,
                ws=_Socket,
                ws_max_size=MAX_MESSAGE,
                ws_per_message_deflate=False,  # pictures are deflated already
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
