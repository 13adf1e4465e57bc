"""A command in a desktop over there, as `backends.base.Process` says: one stream for as long as somebody wants it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from cu_fleet.backends.libvirt.far.talk import ERR, IN, OUT, Talk
from cu_fleet.backends.libvirt.far.words import refusal_of
from cu_fleet.model.errors import FleetError, UnavailableError

_SECONDS = 20.0  # to kill it, which over there may take ten


class FarProcess:
    def __init__(self, talk: Talk) -> None:
        self._talk, self._loop = talk, asyncio.get_running_loop()
        self._code: int | None = None
        self._trouble: FleetError | None = None  # why nobody will know its exit code
        self._deaf: FleetError | None = None  # why it takes no more input
        self._read = self._killed = False  # all of its output was; nobody wants more of it

    def _look(self) -> None:
        """What has been said of it meanwhile."""
        while self._talk.words:
            said = self._talk.words.popleft()
            if isinstance(said.get("exit"), int):
                self._code = said["exit"] & 255
                self._deaf = self._deaf or _closed()
            elif "error" in said:
                self._trouble = refusal_of(said["error"], self._talk.with_whom)
            elif "deaf" in said:
                self._deaf = self._deaf or refusal_of(said["deaf"], self._talk.with_whom)
        if self._talk.lost:
            self._talk.close()
            if self._code is None:
                self._trouble = self._trouble or self._talk.lost

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            self._look()
            if why := self._deaf or self._trouble:
                raise why
            left = left[await self._talk.some(IN, left) :]

    async def close_stdin(self) -> None:
        if self._deaf is None:
            self._deaf = _closed()
            with contextlib.suppress(FleetError):
                await self._talk.end(IN)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        with contextlib.suppress(FleetError):  # `wait` says what happened
            while not self._killed and (got := await self._talk.read(OUT, ERR)):
                yield got
            self._read = True
            self._maybe_forget()

    async def wait(self) -> int:
        self._look()
        while self._code is None:
            if self._trouble:
                raise self._trouble
            with contextlib.suppress(FleetError):
                await self._talk.change()
            self._look()
        self._maybe_forget()
        return self._code

    async def kill(self) -> None:
        self._look()
        if self._code is None and self._trouble is None:
            with contextlib.suppress(FleetError, TimeoutError):
                async with asyncio.timeout(_SECONDS):
                    await self._talk.say({"kill": True})
                    await self.wait()
        self._killed = True
        self._talk.close()

    def _maybe_forget(self) -> None:
        if self._read and self._code is not None:
            self._talk.close()

    def __del__(self) -> None:
        """Dropped by whoever had it, perhaps in another thread: its stream ends, and the command with it."""
        if not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._talk.close)


def _closed() -> UnavailableError:
    return UnavailableError("the command's input is closed", code="stdin_closed")
