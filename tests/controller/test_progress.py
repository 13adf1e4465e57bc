"""A desktop that takes long and says so: it is waited for, and everybody sees what for."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cu_fleet.backends.base import Backend, Spec
from cu_fleet.model.desktop import EMULATED, PROGRESS, Handle
from cu_fleet.model.lease import LeaseState
from tests.controller.fleet import ANA, Fleet
from tests.support import run, until

_LIMIT = 2.0


class Booting:
    """A backend whose first desktop boots until it is told to be up."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.up, self.told = backend, asyncio.Event(), 0
        self.abilities = replace(backend.abilities, tidy=self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    async def start(self, spec: Spec) -> AsyncIterator[Handle]:
        while not self.up.is_set():
            yield {"desktop": spec.desktop, PROGRESS: "the first machine boots"}
            self.told += 1
            await asyncio.wait([asyncio.ensure_future(self.up.wait())], timeout=_LIMIT / 20)
        async for handle in self.backend.start(spec):
            yield handle | {EMULATED: True}

    async def tidy(self) -> list[str]:
        return ["warm/old"]


def test_who_tells_of_progress_is_waited_for_and_what_takes_so_long_is_seen(tmp_path: Path) -> None:
    async def body() -> None:
        made: list[Booting] = []
        fleet = Fleet(tmp_path, wrap=lambda one: made.append(Booting(one)) or made[-1], start_timeout=_LIMIT)  # type: ignore[func-returns-value, return-value]
        await fleet.start()
        lease = (await fleet.acquire("a")).lease

        async def seen() -> bool:
            waiting = await fleet.controller.lease(ANA, lease)
            return "the first machine boots" in (waiting.message or "")

        await until(seen)
        [desktop] = await fleet.controller.desktops(ANA)
        assert (desktop.note, desktop.emulated) == ("the first machine boots", False)
        await until(lambda: made[0].told > 22)  # longer than a desktop may take that says nothing
        made[0].up.set()
        await fleet.reached(lease, LeaseState.ACTIVE)
        [desktop] = await fleet.controller.desktops(ANA)
        assert (desktop.note, desktop.emulated) == ("", True)
        assert await fleet.controller.audit(ANA, limit=100, what="desktop.failed") == []
        await fleet.controller.sweeper.sweep()
        assert await fleet.controller.audit(ANA, limit=100, what="backend.tidied")
        await fleet.kill()

    run(body())
