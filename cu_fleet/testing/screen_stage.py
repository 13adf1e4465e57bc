"""What the contract suites for acting rest on: a stage to act on, and programs inside that tell what came of it.

A stage is one desktop with its screen. Whoever has the suite run on a server of theirs says how to act on it, and how
to run a program inside it, or else how to learn by other means what was delivered.
"""

import asyncio
import json
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any, ClassVar, Protocol, Self, TypeVar

import pytest

from cu_fleet.backends.base import Process
from cu_fleet.model.errors import UnsupportedError

T = TypeVar("T")
DEADLINE = 120.0
PYTHON = "/usr/bin/python3"  # the one that has python3-xlib and python3-gi
Event = list[Any]


class Stage(Protocol):
    width: int
    height: int

    async def do(self, actions: Sequence[Mapping[str, Any]]) -> None:
        """Do these as an agent's would be done, one after the other; raises what the first wrong one raises."""

    async def release(self) -> None:
        """Lift all that is down, as a pause does."""

    async def copy(self, text: str) -> None:
        """Put a text into the desktop's clipboard, as an agent does."""

    async def copied(self) -> str | None:
        """What is in the desktop's clipboard, as an agent learns it."""

    async def ask(self, sink: str, question: object) -> Any:
        """What a sink of `cu_fleet.testing.sinks` answers; it is started when it is first asked, and the other ended.

        `x` tells what the X server (or, in the same words, a kernel) delivered, `toolkit` what an application made of
        it. Of what was done before, nothing may be missing in the answer.
        """


class Program:
    """A sink that runs inside."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._lines = self._read()

    @classmethod
    async def start(cls, process: Process) -> Self:
        program = cls(process)
        assert await anext(program._lines) == "ready"
        return program

    async def ask(self, question: object) -> Any:
        await self.process.write(json.dumps(question).encode() + b"\n")
        return await anext(self._lines)

    async def end(self) -> None:
        await self.process.kill()
        await self._lines.aclose()

    async def _read(self) -> Any:
        told, errors = b"", b""
        async for stream, data in self.process.output():
            told, errors = (told + data, errors) if stream == 1 else (told, errors + data)
            *lines, told = told.split(b"\n")
            for line in lines:
                yield json.loads(line)
        raise AssertionError(f"the program inside ended: {errors.decode('utf-8', 'replace')[-2000:]}")


class Inside:
    """The part of a stage that runs sinks, for one that says how a program is started inside."""

    _sink = ""
    _program: Program | None = None

    async def start(self, argv: Sequence[str]) -> Process:
        raise AssertionError(f"{type(self).__name__} must say how a program is started inside")

    async def ask(self, sink: str, question: object) -> Any:
        if sink != self._sink:
            await self.end()
            source = files("cu_fleet.testing.sinks").joinpath(f"{sink}.py").read_text("utf-8")
            self._program = await Program.start(await self.start([PYTHON, "-I", "-c", source]))
            self._sink = sink
        assert self._program
        return await self._program.ask(question)

    async def end(self) -> None:
        program, self._program, self._sink = self._program, None, ""
        if program:
            await program.end()


class Hall:
    """A stage, and the loop that it lives in, for tests that are written one step after the other."""

    def __init__(self, stage: Stage, runner: asyncio.Runner) -> None:
        self.stage = stage
        self.width, self.height = stage.width, stage.height
        self._runner = runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(asyncio.wait_for(work, DEADLINE))

    def do(self, *actions: Mapping[str, Any]) -> None:
        self.run(self.stage.do(actions))

    def ask(self, question: object, sink: str = "toolkit") -> Any:
        return self.run(self.stage.ask(sink, question))

    def events(self, *, motions: bool = False) -> list[Event]:
        """What was delivered since it was asked last."""
        return [event for event in self.ask("events", "x") if motions or event[0] != "motion"]

    def lifted(self, count: int) -> list[Event]:
        """The same, once so many keys and buttons came up: where nothing tells that all has arrived, it may yet be."""
        events: list[Event] = []
        last = time.monotonic() + 20.0
        while sum(event[0] in ("keyup", "buttonup") for event in events) < count and time.monotonic() < last:
            events += self.events()
        return events

    def told(self, kind: str, count: int) -> list[Event]:
        """What an application was told, once so many of a kind are there: a window manager may hold events back."""
        told: list[Event] = []
        last = time.monotonic() + 20.0
        while sum(event[0] == kind for event in told) < count and time.monotonic() < last:
            told += [event for event in self.ask("events") if event[0] != "motion"]
        return told

    def shown(self, text: str) -> Any:
        """What the application has, once it is this or some seconds have passed: it may ask for a paste late."""
        last = time.monotonic() + 20.0
        while (has := self.ask("text")) != text and time.monotonic() < last:
            pass
        return has

    def held(self) -> dict[str, int]:
        return self.ask("held", "x")  # type: ignore[no-any-return]

    def copied(self, text: str) -> str | None:
        """What an agent finds in the clipboard, once it is this or some seconds have passed."""

        async def look() -> str | None:
            last = time.monotonic() + 5.0
            found = await self.stage.copied()
            while found != text and time.monotonic() < last:
                await asyncio.sleep(0.05)
                found = await self.stage.copied()
            return found

        return self.run(look())

    def pressed(self, *actions: Mapping[str, Any]) -> list[Event]:
        """What these bring about, without motions."""
        self.events()
        self.do(*actions)
        return self.events()


class ScreenActing:
    """A subclass says what its stage is, and what its server is known to lack."""

    gaps: ClassVar[Mapping[str, str]] = {}  # a test, or an item of one such as "key F13" → why

    @classmethod
    def stage(cls) -> AbstractAsyncContextManager[Stage]:
        raise AssertionError(f"{cls.__name__} must give a stage")

    @pytest.fixture(scope="class")
    @classmethod
    def hall(cls) -> Any:
        with asyncio.Runner() as runner:
            opened = cls.stage()
            hall = Hall(runner.run(opened.__aenter__()), runner)
            yield hall
            runner.run(opened.__aexit__(None, None, None))

    @pytest.fixture(autouse=True)
    def _nothing_is_down(self, hall: Hall, request: pytest.FixtureRequest) -> Any:
        if reason := self.gaps.get(request.node.originalname.removeprefix("test_")):
            request.node.add_marker(
                pytest.mark.xfail(strict=True, raises=(AssertionError, UnsupportedError), reason=f"known gap: {reason}")
            )
        yield
        hall.run(hall.stage.release())

    def judge(self, kind: str, wrong: Mapping[str, object]) -> None:
        """Fail for what is wrong and no known gap, and for a known gap that is none."""
        declared = {gap for gap in self.gaps if gap.startswith(f"{kind} ")}
        found = {f"{kind} {name}": how for name, how in wrong.items()}
        assert not (new := {name: how for name, how in found.items() if name not in declared}), new
        assert not (mended := declared - found.keys()), f"no gaps any more: {sorted(mended)}"
