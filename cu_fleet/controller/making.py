"""Has desktops made, begun anew and put back, and believes none of it before it is proved.

A backend says what it is about to make before it makes it, and each word is stored at once. Proof begins when the
screen answers, while the rest still comes up: the screen is of the right size and shows a whole frame, and a file that
was planted before a rollback is gone.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from cu_fleet.backends.base import SCREEN_ANSWERS, Backend, Files, Spec
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core
from cu_fleet.model.desktop import Desktop, Handle
from cu_fleet.model.errors import BrokenError, FleetError
from cu_fleet.model.names import new_id
from cu_fleet.stores.base import Tx


class Maker:
    def __init__(self, core: Core, actors: Actors) -> None:
        self.core = core
        self.actors = actors

    async def start(self, backend: Backend, desktop: Desktop) -> None:
        await self._make(desktop, backend.start(self._spec(desktop, desktop.parked_in)))

    async def put_back(self, backend: Backend, desktop: Desktop, canary: str | None) -> None:
        spec = self._spec(desktop, desktop.target)
        if backend.abilities.snapshots:
            await self._make(desktop, backend.abilities.snapshots.restore(desktop.handle, spec), canary)
        else:
            await self.core.bounded(backend.stop(desktop.handle), "stop")
            await self._make(desktop, backend.start(spec), canary)

    async def plant(self, backend: Backend, desktop: Desktop) -> str | None:
        """Leave a file that a true rollback takes away. None where nothing can be left any more."""
        if backend.abilities.exec is None or not desktop.handle:
            return None
        path = "/tmp/.cu-fleet-" + new_id("cy")  # noqa: S108 - the desktop's own /tmp, and an unguessable name
        try:
            async with asyncio.timeout(2.0):
                if desktop.frozen and backend.abilities.freeze:
                    await backend.abilities.freeze.thaw(desktop.handle)
                process = await backend.abilities.exec.exec(desktop.handle, ["touch", path])
                return path if await process.wait() == 0 else None
        except (FleetError, OSError, TimeoutError):
            return None  # it is too broken to take a file: nothing of it is kept but what the rollback proves itself

    async def empty_slot(self, files: Files, desktop: Desktop) -> None:
        await self.core.bounded(files.remove(desktop.handle, ""), "empty the slot")
        left = await self.core.bounded(files.listing(desktop.handle), "list the slot")
        if left:
            raise BrokenError(
                f"the slot of desktop {desktop.id} was said to be empty, but {left[0].path} is still there",
                code="slot_not_empty",
            )

    def _spec(self, desktop: Desktop, snapshot: str | None) -> Spec:
        return Spec(
            desktop=desktop.id,
            profile=self.core.profile(desktop.profile),
            boot=desktop.boot,
            label=desktop.name or desktop.id,
            snapshot=snapshot,
        )

    async def _make(self, desktop: Desktop, handles: AsyncIterator[Handle], canary: str | None = None) -> None:
        """Have it made, and prove it: from the moment its screen answers, while the rest still comes up."""
        proofs: list[asyncio.Task[None]] = []

        def prove() -> None:
            if not proofs:
                proofs.append(asyncio.create_task(self._prove(desktop.id), name=f"prove {desktop.id}"))
            if canary and len(proofs) < 2:
                proofs.append(asyncio.create_task(self._prove_gone(desktop.id, canary), name=f"search {desktop.id}"))

        try:
            making = self._store_each(desktop, handles, prove)
            await self.core.bounded(making, "make the desktop", self.core.settings.start_timeout)
            prove()
            for proof in proofs:
                await proof
        finally:
            for proof in proofs:
                proof.cancel()
            await asyncio.gather(*proofs, return_exceptions=True)

    async def _store_each(
        self, desktop: Desktop, handles: AsyncIterator[Handle], screen_answers: Callable[[], object]
    ) -> None:
        """Store each handle before the backend may go on to make what it names."""
        async for handle in handles:
            await self.core.read(lambda tx, handle=handle: self._store_handle(tx, desktop.id, handle))  # type: ignore[misc]
            if handle.get(SCREEN_ANSWERS):
                screen_answers()

    def _store_handle(self, tx: Tx, desktop: str, handle: Handle) -> None:
        tx.put(self.core.get_desktop(tx, desktop).but(handle=handle))

    async def _prove(self, desktop_id: str) -> None:
        """The screen answers, is of the right size, and shows a whole frame."""
        desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, desktop_id))
        actor = self.actors.of(desktop_id)
        await actor.disconnect()
        screen = await actor.connect(desktop, await self.core.endpoint(desktop), self.core.settings.backend_timeout)
        actor.open()  # nothing is under way any more, and whoever comes next is checked against what is written
        await actor.park_pointer()
        await screen.refresh(timeout=self.core.settings.start_timeout)

    async def _prove_gone(self, desktop_id: str, canary: str) -> None:
        """A file left before is no more."""
        desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, desktop_id))
        ability = self.core.backend(desktop.backend).abilities.exec
        assert ability
        async with asyncio.timeout(10.0):
            process = await ability.exec(desktop.handle, ["test", "-e", canary])
            if await process.wait() != 1:
                raise BrokenError(
                    f"desktop {desktop.id} was said to be rolled back, but a file left before is still there",
                    code="not_rolled_back",
                )
