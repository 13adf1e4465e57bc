"""The socket under a screen: what asyncio says and hears, and who waits for it.

Whoever waits for an answer waits here, so that the end of the connection reaches all of them with its reason.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar, cast

from cu_fleet.model.errors import TooLongError
from cu_fleet.rfb.handshake import RfbError

T = TypeVar("T")
_MOST_UNSENT = 16 << 20  # bytes; a server that does not read is given up
_REST = 0.02  # seconds for others, when what came has kept us busy for a turn


class Link(asyncio.Protocol):
    def __init__(self, feed: Callable[[bytes], None], fail: Callable[[RfbError], None]) -> None:
        self.lost: asyncio.Future[RfbError] = asyncio.get_running_loop().create_future()
        self.error: RfbError | None = None
        self._feed = feed
        self._fail = fail
        self._transport: asyncio.Transport | None = None
        self._waits: set[asyncio.Future[Any]] = set()
        self._held: bytearray | None = None

    async def take(self, sock: socket.socket) -> None:
        """Take over a connected stream socket."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        connect = loop.create_unix_connection if sock.family == socket.AF_UNIX else loop.create_connection
        await connect(lambda: self, sock=sock)

    def answer(self) -> asyncio.Future[Any]:
        """A future that fails when the connection does."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.error:
            raise self.error
        self._waits.add(future)
        future.add_done_callback(self._waits.discard)
        return future

    def over(self, error: RfbError) -> None:
        self.error = error
        for future in list(self._waits):
            if not future.done():
                future.set_exception(error)
                future.exception()  # nobody may be waiting any more

    def write(self, data: bytes) -> None:
        if self.error:
            raise self.error
        if self._held is not None:
            self._held += data
        elif self._transport is not None:
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > _MOST_UNSENT:
                self._fail(RfbError("the screen's server does not read what is sent to it", code="screen_lost"))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is written meanwhile goes in one piece, so that its reader is woken once."""
        self._held = bytearray()
        try:
            yield
        finally:
            data, self._held = bytes(self._held), None
            if not self.error:
                self.write(data)

    def loseConnection(self) -> None:  # noqa: N802 - Twisted's name
        if self._transport:
            self._transport.abort()

    def rest(self) -> None:
        if self._transport and not self.error:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(_REST, self._go_on)

    def _go_on(self) -> None:
        if self._transport and not self.error:
            self._transport.resume_reading()
            self._feed(b"")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but its class

    def data_received(self, data: bytes) -> None:
        self._feed(data)

    def connection_lost(self, exc: Exception | None) -> None:
        why = f": {exc}" if exc else ""
        self._fail(RfbError(f"the screen's server closed the connection{why}", code="screen_lost"))
        if self.error and not self.lost.done():
            self.lost.set_result(self.error)


def settle(future: asyncio.Future[T] | None, result: T) -> None:
    if future and not future.done():
        future.set_result(result)


class deadline:  # noqa: N801 - used like a function
    """Raise TooLongError saying `what` when the seconds have passed."""

    def __init__(self, seconds: float, what: str, code: str = "screen_slow") -> None:
        self._seconds, self._what, self._code = seconds, what, code

    async def __aenter__(self) -> None:
        self._timeout = asyncio.timeout(self._seconds)
        await self._timeout.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
            if isinstance(error, TimeoutError):
                raise error
        except TimeoutError:
            words = f"{self._what} within {self._seconds:g} s"
            raise TooLongError(words, code=self._code, seconds=self._seconds) from None
