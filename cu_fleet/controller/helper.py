"""The controller's side of the guest helper: calls over one process's streams, whatever comes out of it.

The program at the other end may be ours, or whatever a hostile desktop has put in its place. So a line is bounded, an
answer must be an object of plain JSON, not many times larger in memory than it came; what nobody asked for is borne
for a while. At the first thing beyond that the process is ended and every caller told. `alive` says whether to go on
with this helper or start another.

    process = await exec.exec(handle, ["/usr/bin/python3", "-I", "-c", SOURCE])
    helper = Helper(process, desktop)
    windows = await helper.call("windows", timeout=5)
"""

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import Callable
from typing import Any

from cu_fleet.backends.base import Process
from cu_fleet.guest.carry import carried
from cu_fleet.model.errors import (
    BrokenError,
    ConflictError,
    FleetError,
    InvalidError,
    NotFoundError,
    TooLongError,
    UnavailableError,
    UnsupportedError,
)
from cu_fleet.rfb.handshake import readable

SOURCE = carried()
_LINE_LIMIT = 8 << 20  # the clipboard's limit, with every character escaped
_STRUCTURE_LIMIT = 1 << 20  # bytes of a line outside of strings: a bracket takes twenty times its room in memory
_IDLE_LIMIT = 16 << 20  # bytes that answer no call, between two that do
_IDLE_LINE = 1024  # bytes that every such line counts for at least
_TOLD = 4096  # bytes of its standard error kept, to say why it ended
_CLIPBOARD = 15.0  # seconds for an answer about the clipboard
_TAKEN_WITHIN = 5.0  # seconds that a program may need to take in what is pasted
_MOST = 32  # calls at once; further ones wait
_CODE = re.compile("[a-z_]+")
_CLASSES: dict[str, type[FleetError]] = {
    "not_found": NotFoundError,
    "invalid": InvalidError,
    "too_large": InvalidError,
    "taken": ConflictError,
    "not_focused": ConflictError,
    "unknown": UnsupportedError,
    "no_atspi": UnsupportedError,
    "stale": ConflictError,
    "covered": ConflictError,
}


class Helper:
    """One helper that runs. It ends with `close`, or by itself when the desktop does."""

    def __init__(self, process: Process, desktop: str) -> None:
        self._process = process
        self._desktop = desktop
        self._numbers = itertools.count(1)
        self._calls: dict[int, asyncio.Future[dict[str, object]]] = {}
        self._room = asyncio.Semaphore(_MOST)
        self._writing = asyncio.Lock()
        self._told = bytearray()
        self._idle = 0
        self._ended: FleetError | None = None
        self._reader = asyncio.create_task(self._read(), name=f"helper of {desktop}")

    @property
    def alive(self) -> bool:
        return self._ended is None

    async def call(self, do: str, timeout: float = 5.0, **args: object) -> dict[str, object]:
        """Ask for something and return the answer. Raises what the helper refused, or why there is no answer."""
        try:
            async with asyncio.timeout(timeout), self._room:
                return await self._ask(do, args)
        except TimeoutError:
            raise TooLongError(
                f"the helper of desktop {self._desktop} did not answer {do!r} within {timeout:g} s",
                code="helper_silent",
                desktop=self._desktop,
            ) from None

    async def paste(self, text: str, press: Callable[[], None]) -> None:
        """Bring in a text by the clipboard and the keys that `press` presses; return when a program has taken it."""
        await self.call("clipboard_set", timeout=_CLIPBOARD, text=text, selections=["clipboard", "primary"])
        press()
        answer = await self.call("clipboard_taken", timeout=_CLIPBOARD, within=_TAKEN_WITHIN)
        if not answer.get("taken"):
            raise ConflictError(
                f"no program took the text within {_TAKEN_WITHIN:g} s: nothing that takes a paste has the focus",
                remedy="click where the text should go; if a program pastes by other keys, it is in the clipboard",
                code="not_taken",
                desktop=self._desktop,
            )

    async def _ask(self, do: str, args: dict[str, object]) -> dict[str, object]:
        number = next(self._numbers)
        line = json.dumps({**args, "id": number, "do": do}).encode() + b"\n"
        answer: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            if self._ended:
                raise self._ended
            async with self._writing:
                await self._write(line)
            return await answer
        finally:
            del self._calls[number]
            if answer.done() and not answer.cancelled():
                answer.exception()  # seen, though the caller may have gone

    async def _write(self, line: bytes) -> None:
        try:
            await self._process.write(line)
        except OSError:
            await asyncio.wait({self._reader})  # it knows why
            raise self._ended or self._gone() from None
        except asyncio.CancelledError:
            self._end(self._gone("a request was cut off in the middle"))
            self._reader.cancel()
            raise

    async def close(self) -> None:
        """End the helper: by end of input, so that what it launched lives on; by force if it does not heed that."""
        self._end(self._gone("it was closed"))
        try:
            with contextlib.suppress(OSError, FleetError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._process.close_stdin()
                    await self._process.wait()
        finally:
            self._reader.cancel()
            await asyncio.wait({self._reader})

    async def _read(self) -> None:
        why: FleetError = self._gone("it ended")
        try:
            await self._take_in()
            why = self._gone(readable(self._told.strip()[-500:]) or "it ended")
        except FleetError as e:
            why = e
        except OSError as e:
            why = self._gone(str(e))
        finally:
            self._end(why)
            with contextlib.suppress(OSError, FleetError):
                await self._process.kill()

    async def _take_in(self) -> None:
        line = bytearray()
        async for stream, data in self._process.output():
            if stream != 1:
                self._told = (self._told + data)[-_TOLD:]
                continue
            *ends, rest = data.split(b"\n")
            for end in ends:
                self._answer(bytes(line + end))
                line.clear()
            line += rest
            if len(line) > _LINE_LIMIT:
                raise self._broken(f"a line of more than {_LINE_LIMIT} bytes")

    def _answer(self, line: bytes) -> None:
        answer = self._parse(line)
        number = answer.get("id")
        if number is None and "error" in answer:
            raise self._broken(f"that it did not understand us: {readable(str(answer['error'])[:200])}")
        waiting = self._calls.get(number) if isinstance(number, int) else None
        if waiting is None or waiting.done():
            self._bear(len(line) + _IDLE_LINE)  # the caller may have given up
            return
        self._idle = 0
        ok, error = answer.get("ok"), answer.get("error")
        if isinstance(ok, dict):
            waiting.set_result(ok)
        elif isinstance(error, dict):
            waiting.set_exception(self._refused(error))
        else:
            raise self._broken("neither a result nor an error")

    def _bear(self, size: int) -> None:
        self._idle += size
        if self._idle > _IDLE_LIMIT:
            raise self._broken("more than anybody asked for")

    def _parse(self, line: bytes) -> dict[str, Any]:
        if len(line) > _LINE_LIMIT:
            raise self._broken(f"a line of more than {_LINE_LIMIT} bytes")
        if not _slight(line):
            raise self._broken(f"more than {_STRUCTURE_LIMIT} bytes that are no text")
        try:
            answer = json.loads(line.decode(), parse_constant=_no_constant)
            # no half characters and no 1e999, which nobody could pass on
            json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError):
            raise self._broken("what is not plain JSON") from None
        if not isinstance(answer, dict):
            raise self._broken("what is no object")
        return answer

    def _refused(self, error: dict[str, Any]) -> FleetError:
        code, text = str(error.get("code", ""))[:40], readable(str(error.get("text", ""))[:500])
        code = code if _CODE.fullmatch(code) else ""
        kind = _CLASSES.get(code, UnavailableError)
        return kind(text or "the helper refused", code=f"helper_{code or 'refused'}", desktop=self._desktop)

    def _broken(self, what: str) -> BrokenError:
        return BrokenError(
            f"the helper of desktop {self._desktop} says {what}", code="helper_broken", desktop=self._desktop
        )

    def _gone(self, why: str = "it ended") -> UnavailableError:
        return UnavailableError(
            f"the helper of desktop {self._desktop} is gone: {why}", code="helper_gone", desktop=self._desktop
        )

    def _end(self, why: FleetError) -> None:
        if self._ended is None:
            self._ended = why
            for waiting in self._calls.values():
                if not waiting.done():
                    waiting.set_exception(why)


def _slight(line: bytes) -> bool:
    """Whether little of a line of JSON is outside of its strings."""
    bare = line.replace(b"\\\\", b"").replace(b'\\"', b"")
    return bare.count(b'"') <= _STRUCTURE_LIMIT and sum(map(len, bare.split(b'"')[::2])) <= _STRUCTURE_LIMIT


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
