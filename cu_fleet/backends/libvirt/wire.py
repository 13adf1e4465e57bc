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
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from cu_fleet.guest.frames import Frames, frame
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError, UnsupportedError

_SECONDS = 30.0  # for an answer that a working machine gives at once, be it emulated
_TAKEN = 0.05  # seconds until the wire is tried again while another speaks
_LAST_CHANNEL = 0xFFFF


class Listener(Protocol):
    """Whom a channel belongs to."""

    def hear(self, kind: str, body: bytes) -> None: ...

    def wake(self) -> None:
        """The wire has ended."""
        ...


class Wire(asyncio.Protocol):
    """One connection to one machine's port; `wire` and `take` give it."""

    def __init__(self, desktop: str) -> None:
        self.desktop = desktop
        self.state: dict[str, Any] = {}
        self.knows = "pb"  # what it can be asked at least
        self.news = asyncio.Event()  # set, and replaced, at every change of `state` and at the end
        self.lost: FleetError | None = None
        self.commands: WeakValueDictionary[int, Listener] = WeakValueDictionary()  # who drops one, ends it
        self.users = 0
        self._numbers = itertools.count(1)
        self._hello = secrets.token_hex(16)
        self._frames = Frames()
        self._transport: asyncio.WriteTransport | None = None
        self._asking = asyncio.Lock()
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
        news = "asked" in said and said["asked"] == self.state.get("asked")  # beside the answer, which stays
        self.state, self.knows = {**self.state, **said} if news else said, str(said.get("knows", self.knows))
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
        """Have the machine say how it is, after it has done just this."""
        if kind not in self.knows:
            raise UnsupportedError(f"desktop {self.desktop} is of an older kind, which cannot do this", code="old_port")
        token = secrets.token_hex(8)
        async with answer_in_time(self.desktop), self._asking:
            self.send(0, kind, token.encode() + b" " + data)
            while self.state.get("asked") != token:
                await self.told()
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
async def wire(path: Path, desktop: str, *, at_once: bool = False) -> AsyncIterator[Wire]:
    """The wire to the machine whose port is this socket, for as long as the context lasts."""
    got = await take(path, desktop, at_once=at_once)
    try:
        yield got
    finally:
        give_back(path, got)


async def take(path: Path, desktop: str, *, at_once: bool = False) -> Wire:
    """To be given back. Whoever comes first connects; the others wait for that.

    `at_once` is for who knows that somebody listens: he may ask before he has been greeted.
    """
    got = await _taken(path, desktop)
    try:
        if not (at_once or got.greeted):
            await _greeted(got)
    except BaseException:
        give_back(path, got)
        raise
    return got


async def _greeted(got: Wire) -> None:
    async with answer_in_time(got.desktop):
        while not got.greeted:
            await got.told()


async def _taken(path: Path, desktop: str) -> Wire:
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
