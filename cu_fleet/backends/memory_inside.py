"""What is inside a desktop of the memory backend: its files, and commands that are coroutines.

There is no shell. A command is given a `Call` with its arguments, streams and files, and returns its exit code; tests
add their own to `backend.commands`. A frozen desktop's gate is shut: commands stop at their next read, write or step.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from cu_fleet.backends.base import Spec
from cu_fleet.backends.memory_screen import Gate, Screen
from cu_fleet.model.errors import FleetError

HOME = "/home/agent"
_SHARED = f"{HOME}/Shared/"


@dataclass
class MemoryFile:
    data: bytes = b""
    mode: int = 0o644
    mtime: float = field(default_factory=time.time)


@dataclass
class MemoryDesktop:
    """One desktop; tests may read and change all of it."""

    fleet: str
    spec: Spec
    screen: Screen
    gate: Gate  # shut while frozen
    files: dict[str, MemoryFile] = field(default_factory=dict)  # by absolute path; the slot is not among them
    slot: dict[str, MemoryFile] = field(default_factory=dict)  # by path below ~/Shared
    processes: set["MemoryProcess"] = field(default_factory=set)
    log: list[str] = field(default_factory=list)
    number: int = 0  # of its start

    @property
    def events(self) -> list[tuple[object, ...]]:
        """("key", keysym, down) and ("pointer", x, y, button mask), as they reached the screen."""
        return self.screen.events

    def file(self, path: str) -> tuple[dict[str, MemoryFile], str]:
        """Where a path lies, as seen inside."""
        absolute = path if path.startswith("/") else f"{HOME}/{path}"
        inside = absolute.removeprefix(_SHARED)
        return (self.slot, inside) if absolute.startswith(_SHARED) else (self.files, absolute)

    async def end_processes(self) -> None:
        for process in list(self.processes):
            await process.kill()


@dataclass
class Call:
    """What a command of the memory backend is given."""

    desktop: MemoryDesktop
    argv: list[str]
    env: dict[str, str]
    cwd: str
    streams: asyncio.Queue[tuple[int, bytes]] = field(default_factory=lambda: asyncio.Queue(64))
    stdin: asyncio.Queue[bytes] = field(default_factory=lambda: asyncio.Queue(64))
    at_end: bool = False

    async def out(self, data: bytes, stream: int = 1) -> None:
        await self.desktop.gate.passed()
        if data:
            await self.streams.put((stream, data))

    async def err(self, text: str) -> None:
        await self.out(f"{self.argv[0]}: {text}\n".encode(), 2)

    async def read(self) -> bytes:
        """The next of standard input; empty at its end."""
        data = b"" if self.at_end else await self.stdin.get()
        self.at_end = not data
        await self.desktop.gate.passed()
        return data

    def file(self, path: str) -> tuple[dict[str, MemoryFile], str]:
        return self.desktop.file(path if path.startswith("/") else f"{self.cwd}/{path}")


Command = Callable[[Call], Awaitable[int]]


class MemoryProcess:
    """A command that runs. Nobody who only started it need care for it: its desktop ends it."""

    def __init__(self, desktop: MemoryDesktop, command: Command, call: Call) -> None:
        self._desktop = desktop
        self._call = call
        self._loop = asyncio.get_running_loop()
        self._code: asyncio.Future[int] = self._loop.create_future()
        self._ended = asyncio.Event()
        self._task = asyncio.create_task(self._run(command), name=f"{call.argv[0]} on {desktop.spec.desktop}")
        desktop.processes.add(self)

    async def _run(self, command: Command) -> None:
        code = 137
        try:
            await self._desktop.gate.passed()
            code = await command(self._call)
        except FleetError as e:
            code = 1
            await self._call.err(str(e))
        finally:
            self._desktop.processes.discard(self)
            self._ended.set()
            if not self._code.done():
                self._code.set_result(code)

    async def write(self, data: bytes) -> None:
        if self._code.done():
            raise BrokenPipeError("the command has ended")
        if data:
            await self._call.stdin.put(data)

    async def close_stdin(self) -> None:
        if not self._code.done():
            await self._call.stdin.put(b"")

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        while not (self._ended.is_set() and self._call.streams.empty()):
            get = asyncio.ensure_future(self._call.streams.get())
            ended = asyncio.ensure_future(self._ended.wait())
            try:
                await asyncio.wait({get, ended}, return_when=asyncio.FIRST_COMPLETED)
                if get.done():
                    yield get.result()
            finally:
                get.cancel()
                ended.cancel()

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    async def kill(self) -> None:
        self._desktop.processes.discard(self)
        if self._loop is not asyncio.get_running_loop():
            return  # it ended with the loop it ran in
        self._task.cancel()
        await asyncio.wait({self._task})
        self._ended.set()
        if not self._code.done():
            self._code.set_result(137)


async def _true(call: Call) -> int:
    return 0


async def _false(call: Call) -> int:
    return 1


async def _echo(call: Call) -> int:
    await call.out(" ".join(call.argv[1:]).encode() + b"\n")
    return 0


async def _printf(call: Call) -> int:
    """Only what a format means without conversions, and `%s`."""
    text = call.argv[1] if len(call.argv) > 1 else ""
    for value in call.argv[2:]:
        text = text.replace("%s", value, 1)
    await call.out(text.replace("\\n", "\n").encode())
    return 0


async def _cat(call: Call) -> int:
    if len(call.argv) == 1:
        while data := await call.read():
            await call.out(data)
        return 0
    code = 0
    for path in call.argv[1:]:
        where, key = call.file(path)
        if key in where:
            await call.out(where[key].data)
        else:
            await call.err(f"{path}: No such file or directory")
            code = 1
    return code


async def _test(call: Call) -> int:
    match call.argv[1:]:
        case ["-e" | "-f", path]:
            where, key = call.file(path)
            return 0 if key in where else 1
        case [left, "=", right]:
            return 0 if left == right else 1
        case _:
            await call.err("only -e, -f and = are known here")
            return 2


async def _touch(call: Call) -> int:
    for path in call.argv[1:]:
        where, key = call.file(path)
        where.setdefault(key, MemoryFile()).mtime = time.time()
    return 0


async def _rm(call: Call) -> int:
    force = "-f" in call.argv[1:]
    for path in [a for a in call.argv[1:] if a != "-f"]:
        where, key = call.file(path)
        if where.pop(key, None) is None and not force:
            await call.err(f"cannot remove '{path}': No such file or directory")
            return 1
    return 0


async def _tee(call: Call) -> int:
    """Write standard input to files as it comes, and show it."""
    places = [call.file(path) for path in call.argv[1:]]
    for where, key in places:
        where[key] = MemoryFile()
    while data := await call.read():
        for where, key in places:
            where[key] = MemoryFile(where[key].data + data)
        await call.out(data)
    return 0


async def _sleep(call: Call) -> int:
    """Time does not pass for a frozen desktop: in small steps, each after the gate."""
    left = float(call.argv[1]) if len(call.argv) > 1 else 0.0
    while left > 0:
        await call.desktop.gate.passed()
        step = min(left, 0.05)
        await asyncio.sleep(step)
        left -= step
    return 0


COMMANDS: dict[str, Command] = {
    "true": _true,
    "false": _false,
    "echo": _echo,
    "printf": _printf,
    "cat": _cat,
    "test": _test,
    "touch": _touch,
    "rm": _rm,
    "tee": _tee,
    "sleep": _sleep,
}
