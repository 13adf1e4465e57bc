"""The host's end of the wire into a machine (`cu_fleet.guest.port`): many commands over one serial port.

QEMU lets one at a time speak on a port. So the wire is taken when something is to be said, shared by all who speak to
this machine in this event loop, and let go when the last has finished: another controller finds it free. What comes
over it may be a lie: frames, lines and what waits to be read are bounded.
"""

import asyncio
import contextlib
import itertools
import json
import os
import secrets
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from cu_fleet.guest.init import MOST_REQUEST, pack
from cu_fleet.guest.port import MOST, WINDOW, Frames, frame
from cu_fleet.model.errors import BrokenError, FleetError, InvalidError, UnavailableError

_SECONDS = 30.0  # for an answer that a working machine gives at once, be it emulated
_TAKEN = 0.05  # seconds until the wire is tried again while another speaks
_MOST_LINE = 4096
_LAST_CHANNEL = 0xFFFF


class Wire(asyncio.Protocol):
    """One connection to one machine's port. `shared` gives it."""

    def __init__(self, desktop: str) -> None:
        self.desktop = desktop
        self.state: dict[str, Any] = {}
        self.news = asyncio.Event()  # set, and replaced, at every change of `state` and at the end
        self.lost: FleetError | None = None
        self.commands: WeakValueDictionary[int, Command] = WeakValueDictionary()  # who drops one, ends it
        self.users = 0
        self._numbers = itertools.count(1)
        self._hello = secrets.token_hex(16)
        self._frames = Frames()
        self._transport: asyncio.WriteTransport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self.greeted = False

    # the protocol's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are of no class but its own
        self._transport.write(frame(0, "!")[-1:] + frame(0, "h", self._hello.encode()))

    def data_received(self, data: bytes) -> None:
        for channel, kind, body in self._frames.feed(data):
            if not self.greeted:
                self._greet(channel, kind, body)
            elif channel == 0 and kind in "p!":
                self._tell(body, wrong=kind == "!")
            elif command := self.commands.get(channel):
                command.hear(kind, body)

    def _greet(self, channel: int, kind: str, body: bytes) -> None:
        hello, _, state = body.partition(b" ")
        if (channel, kind, hello.decode("latin-1")) == (0, "h", self._hello):
            self.greeted = True
            self._tell(state)

    def _tell(self, body: bytes, *, wrong: bool = False) -> None:
        try:
            said = {"error": body.decode("utf-8", "replace")[:500]} if wrong else json.loads(body)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            return self.end(BrokenError(f"desktop {self.desktop} talks nonsense on its port", code="port_nonsense"))
        self.state = said
        return self._wake()

    def _wake(self) -> None:
        news, self.news = self.news, asyncio.Event()
        news.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.end(UnavailableError(f"desktop {self.desktop} does not answer: it has ended, or began anew", code="lost"))

    def end(self, why: FleetError) -> None:
        if self.lost is None:
            self.lost = why
            if self._transport:
                self._transport.close()
            self._room.set()
            self._wake()
            for command in list(self.commands.values()):
                command.wake()

    # the callers' side

    def send(self, channel: int, kind: str, data: bytes = b"") -> None:
        if self._transport and not self.lost:
            self._transport.write(frame(channel, kind, data))

    async def drained(self) -> None:
        await self._room.wait()
        if self.lost:
            raise self.lost

    async def told(self) -> None:
        """Wait for news of the machine."""
        news = self.news
        if self.lost:
            raise self.lost
        await news.wait()
        if self.lost:
            raise self.lost

    async def ask(self, kind: str, data: bytes = b"") -> dict[str, Any]:
        """Have the machine say how it is, after it has done what was asked."""
        async with answer_in_time(self.desktop):
            news = self.told()
            self.send(0, kind, data)
            await news
        if error := self.state.get("error"):
            raise UnavailableError(f"desktop {self.desktop} could not do it: {error}", code="port_failed")
        return self.state

    def number(self) -> int:
        return next(n for n in iter(lambda: next(self._numbers) % _LAST_CHANNEL + 1, 0) if n not in self.commands)


@contextlib.asynccontextmanager
async def answer_in_time(desktop: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_SECONDS):
            yield
    except TimeoutError:
        raise UnavailableError(f"desktop {desktop} does not answer: is it frozen?", code="no_answer") from None


class Wires:
    """The wires of one event loop, each there while somebody uses it."""

    _of: "WeakKeyDictionary[asyncio.AbstractEventLoop, Wires]" = WeakKeyDictionary()

    def __init__(self) -> None:
        self.open: dict[Path, asyncio.Future[Wire]] = {}

    @classmethod
    def here(cls) -> "Wires":
        return cls._of.setdefault(asyncio.get_running_loop(), cls())


@contextlib.asynccontextmanager
async def wire(path: Path, desktop: str) -> AsyncIterator[Wire]:
    """The wire to the machine whose port is this socket, for as long as the context lasts."""
    got = await take(path, desktop)
    try:
        yield got
    finally:
        give_back(path, got)


async def take(path: Path, desktop: str) -> Wire:
    """To be given back. Whoever comes first connects; the others wait for that."""
    known = Wires.here().open
    while True:
        if (opening := known.get(path)) is None:
            opening = known[path] = asyncio.get_running_loop().create_future()
            try:
                opening.set_result(await _connect(path, desktop))
            except BaseException:
                del known[path]
                opening.cancel()
                raise
        elif not opening.done():
            await asyncio.wait([opening])
        if opening.cancelled():
            continue
        if (got := opening.result()).lost is None:
            got.users += 1
            return got
        if known.get(path) is opening:
            del known[path]


def give_back(path: Path, got: Wire) -> None:
    got.users -= 1
    if got.users == 0:
        known = Wires.here().open
        if (opening := known.get(path)) and opening.done() and opening.result() is got:
            del known[path]
        got.end(UnavailableError(f"nobody speaks to desktop {got.desktop} any more", code="lost"))


async def _connect(path: Path, desktop: str) -> Wire:
    async with answer_in_time(desktop):
        made = Wire(desktop)
        sock = await _knock(path, desktop)
        try:
            await asyncio.get_running_loop().create_unix_connection(lambda: made, sock=sock)
            while not made.greeted:
                await made.told()
        except BaseException:
            made.end(UnavailableError("it was left", code="lost"))
            sock.close()
            raise
        return made


async def _knock(path: Path, desktop: str) -> socket.socket:
    """Connect, by descriptor: QEMU, which made the socket, could have put a link there."""
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            found = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{found}")
            finally:
                os.close(found)
        except BlockingIOError:
            sock.close()
            await asyncio.sleep(_TAKEN)
        except OSError as e:
            sock.close()
            raise UnavailableError(
                f"desktop {desktop} does not answer: its port: {e.strerror}", code="no_answer"
            ) from None
        else:
            return sock


async def run(
    path: Path, desktop: str, argv: Sequence[str], env: Mapping[str, str] | None, cwd: str | None
) -> "Command":
    words = [f"{name}={value}" for name, value in (env or {}).items()]
    if not argv or any("\0" in word for word in (*argv, *words, cwd or "")):
        raise InvalidError("a command has at least one word, and no word has a NUL", code="bad_command")
    body = pack([["run", cwd or ""], words, list(argv)])
    if len(body) > MOST_REQUEST:
        raise InvalidError(f"a command may have {MOST_REQUEST} bytes, this has {len(body)}", code="too_large")
    return await _begun(path, desktop, body, "r")


async def on_files(path: Path, desktop: str, argv: Sequence[str]) -> "Command":
    """What `cu_fleet.guest.files` does, as if it were a command."""
    return await _begun(path, desktop, json.dumps(argv).encode(), "f")


async def _begun(path: Path, desktop: str, body: bytes, kind: str) -> "Command":
    command = Command(path, await take(path, desktop))
    try:
        async with answer_in_time(desktop):
            await command.begin(body, kind)
    except BaseException:
        command.forget()
        raise
    return command


class Command:
    """A command inside a machine, as `backends.base.Process` says."""

    def __init__(self, path: Path, wire: Wire) -> None:
        self._path, self._wire, self._loop = path, wire, asyncio.get_running_loop()
        self._number = wire.number()
        wire.commands[self._number] = self
        self._news = asyncio.Event()
        self._room = WINDOW  # bytes that may still be sent to it
        self._said: list[tuple[int, bytes]] = []
        self._open = {1, 2}
        self._held = {1: 0, 2: 0}  # bytes of each output that nobody has read
        self._lines = b""
        self._pid = self._deaf = self._closed = self._forgotten = False
        self._code: int | None = None
        self._trouble: FleetError | None = None

    def wake(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def hear(self, kind: str, body: bytes) -> None:
        if kind in "12":
            self._hear_output(int(kind), body)
        elif kind == "l":
            self._hear_lines(body)
        elif kind == "a" and body.isdigit():
            self._room = min(WINDOW, self._room + int(body[:9]))
        elif kind == "y":
            self._deaf = True
        self.wake()

    def _hear_output(self, number: int, body: bytes) -> None:
        if not body:
            self._open.discard(number)
        elif number in self._open:
            self._held[number] += len(body)
            if self._held[number] > 2 * WINDOW:
                self._wire.end(BrokenError(f"desktop {self._wire.desktop} floods us", code="port_nonsense"))
            self._said.append((number, body))
        self._maybe_forget()

    def _hear_lines(self, body: bytes) -> None:
        *lines, self._lines = (self._lines + body).split(b"\n")
        self._lines = self._lines[:_MOST_LINE]
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            if word == "pid":
                self._pid = True
            elif word == "exit" and rest.isdecimal():
                self._code = int(rest) & 255
            else:
                self._fail(f": {word} {rest}")
        if not body and self._code is None:
            self._fail("")
        self._maybe_forget()

    def _fail(self, why: str) -> None:
        self._trouble = self._trouble or UnavailableError(
            f"the command on desktop {self._wire.desktop} was lost with it{why}", code="lost"
        )

    async def begin(self, body: bytes, kind: str) -> None:
        for at in range(0, len(body), MOST):
            last = at + MOST >= len(body)
            self._wire.send(self._number, kind if last else "R", body[at : at + MOST])
            await self._wire.drained()
        while not self._pid and self._code is None:
            await self._change()

    async def _change(self) -> None:
        news = self._news
        if trouble := self._trouble or self._wire.lost:
            raise trouble
        await news.wait()

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            if self._closed:
                raise UnavailableError("the command's input is closed", code="stdin_closed")
            if self._deaf or self._code is not None:
                await self.close_stdin()
                continue
            if size := min(self._room, MOST, len(left)):
                self._room -= size
                self._wire.send(self._number, "0", bytes(left[:size]))
                left = left[size:]
                await self._wire.drained()
            else:
                await self._change()

    async def close_stdin(self) -> None:
        if not self._closed:
            self._closed = True
            self._wire.send(self._number, "z")

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while self._said or (self._open and not self._forgotten):
            if not self._said:
                try:
                    await self._change()
                except UnavailableError:
                    return  # `wait` says what happened
                continue
            number, data = self._said.pop(0)
            self._held[number] -= len(data)
            self._wire.send(self._number, "a", b"%d %d" % (number, len(data)))
            yield number, data

    async def wait(self) -> int:
        while self._code is None:
            await self._change()
        self._closed = True
        return self._code

    async def kill(self) -> None:
        if self._code is None:
            self._wire.send(self._number, "k")
            with contextlib.suppress(FleetError):
                async with answer_in_time(self._wire.desktop):
                    await self.wait()
        self._said.clear()
        self.forget()

    def _maybe_forget(self) -> None:
        if not self._open and (self._code is not None or self._trouble):
            self.forget()

    def forget(self) -> None:
        """Give the channel back; a command that still runs there is ended."""
        if not self._forgotten:
            self._forgotten = self._closed = True
            self._wire.commands.pop(self._number, None)
            self._wire.send(self._number, "x")
            give_back(self._path, self._wire)
            self.wake()

    def __del__(self) -> None:
        """Dropped by whoever had it, perhaps in another thread: what it holds is given back in its own loop."""
        if not self._forgotten:
            with contextlib.suppress(RuntimeError):  # the loop may have gone
                self._loop.call_soon_threadsafe(_let_go, self._path, self._wire, self._number)


def _let_go(path: Path, wire: Wire, number: int) -> None:
    wire.send(number, "x")
    give_back(path, wire)
