"""How the two sides speak on one stream: JSON, and bytes beside it that nobody has to hurry with.

A frame is four bytes of length, a letter, and what it says: `j` JSON; a digit, bytes of that channel; `z`, that a
channel has ended; `a`, how many bytes of a channel were read, for which others may come. A side always reads, and
holds of each channel what it gave room for and no more: so a stream that is full of bytes that nobody wants still
carries a word, and its end is noticed at once. Whoever sends more than there is room for is not listened to any more.

The end of the stream says that this side wants no more of it: that is how a call is cancelled. Whoever serves one hears
of that only so, by being cancelled, and only once: what cleans up is not disturbed by an error besides.
"""

import asyncio
import contextlib
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import NoReturn, Protocol, Self

from cu_fleet.backends.libvirt.far.words import Words, nonsense
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError

WINDOW = 1 << 20  # bytes of one channel that may be under way
MOST = 64 << 10  # bytes of a channel in one frame
MOST_WORDS = 8 << 20  # bytes of one piece of JSON
_MOST_WAITING = 1000  # pieces of it that nobody has read yet
_CHANNELS = "012"
IN, OUT, ERR = 0, 1, 2  # to the other host, from it, and a command's errors


class Reader(Protocol):
    async def read(self, n: int = -1, /) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...

    def write_eof(self) -> None: ...

    def close(self) -> None: ...


class Talk:
    """One side of one stream. What it heard before the stream ended can still be read."""

    def __init__(self, reader: Reader, writer: Writer, with_whom: str, *, serves: bool = False) -> None:
        self.with_whom, self._serves = with_whom, serves
        self.words: deque[Words] = deque()
        self.lost: FleetError | None = None
        self._reader, self._writer = reader, writer
        self._news = asyncio.Event()
        self._chunks: deque[tuple[int, bytearray]] = deque()
        self._ended: set[int] = set()
        self._room = dict.fromkeys(range(3), WINDOW)  # that may still be sent
        self._held = dict.fromkeys(range(3), 0)  # that was not read yet
        self._owed = dict.fromkeys(range(3), 0)  # that was read, which the other side does not know yet
        self._left = False
        self._task = asyncio.create_task(self._hear(), name=f"hear {with_whom}")
        self._task.add_done_callback(self._unheard)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        await asyncio.wait([self._task])

    def close(self) -> None:
        """Nobody wants any more of it. Also from another thread's garbage collection, by way of the loop."""
        self._task.cancel()
        self._end(UnavailableError(f"the talk with {self.with_whom} is over", code="lost"))
        self._writer.close()

    def leave(self) -> None:
        """Say that nothing more is wanted, and hear what there still is."""
        if not self._left and not self.lost:
            self._left = True
            with contextlib.suppress(OSError):
                self._writer.write_eof()

    # hearing

    async def _hear(self) -> None:
        try:
            buffer = bytearray()
            while data := await self._reader.read(MOST):
                buffer += data
                while (size := _whole(buffer, self.with_whom)) is not None:
                    kind, body = chr(buffer[4]), bytes(memoryview(buffer)[5:size])
                    del buffer[:size]
                    self._take(kind, body)
                self._wake()
        except OSError as e:
            self._end(self._broken(str(e)))
        except FleetError as e:
            self._end(e)
        else:
            self._end(self._broken("it hung up"))

    def _unheard(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            self._writer.close()

    def _broken(self, why: str) -> UnavailableError:
        return UnavailableError(f"the connection to {self.with_whom} broke: {why}", code="host_lost")

    def _end(self, error: FleetError) -> None:
        self.lost = self.lost or error
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _take(self, kind: str, body: bytes) -> None:
        if kind == "j":
            self._take_words(body)
        elif kind in _CHANNELS:
            self._take_bytes(int(kind), body)
        elif kind == "z" and body.decode("latin-1") in _CHANNELS:
            self._ended.add(int(body))
        elif kind == "a" and len(body) == 5 and body[0] in self._room:
            self._room[body[0]] = min(WINDOW, self._room[body[0]] + int.from_bytes(body[1:], "big"))
        else:
            raise nonsense(self.with_whom, f"a frame {kind!r}")

    def _take_words(self, body: bytes) -> None:
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            said = None
        too_much = len(self.words) >= _MOST_WAITING or (self.words and len(body) > MOST)
        if not isinstance(said, dict) or too_much:
            raise nonsense(self.with_whom, "words that are none, or too many")
        self.words.append(said)

    def _take_bytes(self, channel: int, body: bytes) -> None:
        self._held[channel] += len(body)
        if self._held[channel] > WINDOW or channel in self._ended:
            raise nonsense(self.with_whom, "more bytes than there is room for")
        if self._chunks and self._chunks[-1][0] == channel and len(self._chunks[-1][1]) < MOST:
            self._chunks[-1][1].extend(body)  # so that many small ones take no more room than large ones
        elif body:
            self._chunks.append((channel, bytearray(body)))

    async def change(self) -> None:
        """Wait until there is something new. Whoever waits has looked before, without a pause between."""
        if self.lost:
            await self._no_more(self.lost)
        await self._news.wait()

    async def _no_more(self, why: FleetError) -> NoReturn:
        if self._serves:
            await asyncio.get_running_loop().create_future()  # until cancelled
        raise why

    async def heard(self) -> Words:
        """The next words."""
        while not self.words:
            await self.change()
        return self.words.popleft()

    async def read(self, *channels: int) -> tuple[int, bytes] | None:
        """The next bytes of one of these; None when all of them have ended."""
        while True:
            if found := next((one for one in self._chunks if one[0] in channels), None):
                self._chunks.remove(found)
                await self._thank(found[0], len(found[1]))
                return found[0], bytes(found[1])
            if self._ended.issuperset(channels):
                return None
            await self.change()

    async def _thank(self, channel: int, size: int) -> None:
        self._held[channel] -= size
        self._owed[channel] += size
        if self._owed[channel] >= WINDOW // 4:
            owed, self._owed[channel] = self._owed[channel], 0
            if not self.lost:
                with contextlib.suppress(FleetError):  # what was heard is read though nobody sends any more
                    await self._send("a", bytes([channel]) + owed.to_bytes(4, "big"))

    async def chunks(self, channel: int) -> AsyncIterator[bytes]:
        while got := await self.read(channel):
            yield got[1]

    async def over(self) -> None:
        """Return when the other side has gone."""
        while not self.lost:
            await self._news.wait()

    # saying

    async def say(self, words: Words) -> None:
        body = json.dumps(words).encode()
        if len(body) > MOST_WORDS:
            raise BrokenError(f"{len(body)} bytes are too much to be said at once", code="too_large")
        await self._send("j", body)

    async def write(self, channel: int, data: bytes) -> None:
        """Send it, as there is room."""
        left = memoryview(data)
        while left:
            left = left[await self._some(channel, left, heed=False) :]

    async def some(self, channel: int, data: memoryview) -> int:
        """Send what there is room for: how many bytes that was; 0, if instead there are words to be read."""
        return await self._some(channel, data, heed=True)

    async def _some(self, channel: int, data: memoryview, *, heed: bool) -> int:
        while not (size := min(self._room[channel], MOST, len(data))):
            if heed and self.words:
                return 0
            await self.change()
        self._room[channel] -= size
        await self._send(str(channel), bytes(data[:size]))
        return size

    async def end(self, channel: int) -> None:
        await self._send("z", str(channel).encode())

    async def _send(self, kind: str, body: bytes) -> None:
        if self.lost:
            await self._no_more(self.lost)
        try:
            self._writer.write(len(body).to_bytes(4, "big") + kind.encode() + body)
            await self._writer.drain()
        except OSError as e:
            await self._no_more(self._broken(str(e)))


def _whole(buffer: bytearray, with_whom: str) -> int | None:
    """How long the first frame is, if all of it is there."""
    if len(buffer) < 5:
        return None
    size = int.from_bytes(buffer[:4], "big")
    if size > (MOST_WORDS if buffer[4] == ord("j") else MOST):
        raise nonsense(with_whom, f"a frame of {size} bytes")
    return size + 5 if len(buffer) >= size + 5 else None


async def splice(talk: Talk, sock: socket.socket, to: int, back: int) -> None:
    """Carry between a socket and two channels of a stream, until either side has nothing more to say."""
    loop = asyncio.get_running_loop()

    async def sending() -> None:
        while data := await loop.sock_recv(sock, MOST):
            await talk.write(back, data)

    async def hearing() -> None:
        async for data in talk.chunks(to):
            await loop.sock_sendall(sock, data)

    with contextlib.suppress(OSError, FleetError):
        await first_of([sending(), hearing()], "splice")


async def first_of(works: Sequence["asyncio._CoroutineLike[None]"], name: str) -> None:
    """Do these until one has come to its end, and end the others with it."""
    tasks = [asyncio.create_task(work, name=f"{name} {number}") for number, work in enumerate(works)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
