"""A command that runs inside a desktop."""

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Self, cast

from cu_fleet.client.http import Wire, lines, read_line
from cu_fleet.model.errors import FleetError, UnavailableError

_log = logging.getLogger("cu_fleet.client")


@dataclass(frozen=True)
class Completed:
    """What a command said until its end."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class Command:
    """A command running inside a desktop: what it says, and then `exit_code`."""

    def __init__(self, wire: Wire, where: str, asked: dict[str, Any], stdin: bytes | AsyncIterator[bytes]) -> None:
        self._wire, self._where, self._asked = wire, where, asked
        self._input = None if isinstance(stdin, bytes) else stdin
        if self._input is not None:
            self._asked["input"] = True
        elif stdin:
            self._asked["stdin"] = base64.b64encode(cast(bytes, stdin)).decode()
        self._feeding: asyncio.Task[None] | None = None
        self.exit_code: int | None = None

    async def __aenter__(self) -> Self:
        self._streaming = self._wire.stream("POST", self._where, body=self._asked, patience=None)
        self._answer = await self._streaming.__aenter__()
        return self

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if self._feeding:
                self._feeding.cancel()
                await asyncio.gather(self._feeding, return_exceptions=True)
        finally:
            await self._streaming.__aexit__(kind, error, trace)

    async def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        async for line in lines(self._wire, self._answer):
            said = read_line(line)
            if "exit" in said:
                self.exit_code = int(said["exit"])
                return
            if "command" in said:
                self._feeding = asyncio.create_task(self._feed(said["command"]), name=f"feed {said['command']}")
            else:
                yield said["stream"], base64.b64decode(said["data"])
        raise UnavailableError("the command's output broke off", code="broken_off")

    async def _feed(self, command: str) -> None:
        """A command need not read what it is given: that it ended first is told by its output."""
        where = f"{self._where}/{command}/input"
        try:
            await self._wire.call("PUT", where, content=self._input, patience=None, start=False)
        except FleetError as error:
            _log.debug("command %s took no more input: %s", command, error)
