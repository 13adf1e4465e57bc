"""Another host, as whoever asks it sees it: streams to the far side, however those come about, and what is carried."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from cu_fleet.backends.libvirt.far.talk import Reader, Talk, Writer
from cu_fleet.model.errors import FleetError, UnavailableError

_MOST = 400  # streams at once


class Host:
    """One that is reached somehow."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._talks: set[Talk] = set()
        self._coming = 0  # streams that are being opened
        self._carrying: set[asyncio.Task[None]] = set()

    async def stream(self) -> tuple[Reader, Writer]:
        """A new stream to the far side; a subclass says how."""
        raise AssertionError(f"{type(self).__name__} must say how {self.name} is reached")

    async def talk(self) -> Talk:
        self._talks = {one for one in self._talks if not one.lost}
        if len(self._talks) + self._coming >= _MOST:
            raise UnavailableError(f"more than {_MOST} things go on with {self.name} at once", code="too_many")
        self._coming += 1
        try:
            talk = Talk(*await self.stream(), self.name)
        finally:
            self._coming -= 1
        self._talks.add(talk)
        return talk

    def carry(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Do this beside everything else, until its stream ends."""
        task = asyncio.create_task(work, name=name)
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)
        return task


class Unusable(Host):
    """One that is not: whoever needs it hears why, and nobody else."""

    def __init__(self, why: FleetError) -> None:
        super().__init__("nowhere")
        self._why = why

    async def stream(self) -> tuple[Reader, Writer]:
        raise self._why
