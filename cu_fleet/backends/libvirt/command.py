"""Commands inside a machine, over its wire."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from cu_fleet.backends.door import asked
from cu_fleet.backends.libvirt.wire import Wire, answer_in_time, give_back, take, wire
from cu_fleet.guest.frames import MOST, WINDOW
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError

_MOST_LINE = 4096


async def run(
    path: Path, desktop: str, argv: Sequence[str], env: Mapping[str, str] | None, cwd: str | None
) -> "Command":
    return await _begun(path, desktop, asked(argv, env, cwd), "r")


async def on_files(path: Path, desktop: str, argv: Sequence[str]) -> "Command":
    """What `cu_fleet.guest.files` does, as if it were a command."""
    return await _begun(path, desktop, json.dumps(argv).encode(), "f")


async def standing(path: Path, desktop: str, program: str) -> "Command | None":
    """The program that has stood ready since before the machine was saved, if it is this one and nobody has it yet."""
    async with wire(path, desktop) as one:
        if one.state.get("stands") == program:
            with contextlib.suppress(UnavailableError):  # another may have been quicker
                return await _begun(path, desktop, program.encode(), "H")
    return None


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
