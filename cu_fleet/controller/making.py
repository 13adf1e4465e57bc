"""Has desktops made, begun anew and put back, and believes none of it before it is proved.

A backend says what it is about to make before it makes it, and each word is stored at once. Proof begins when the
screen answers, while the rest still comes up: the screen is of the right size and shows a whole frame, a file that was
planted before a rollback is gone, and the slot is empty.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from functools import partial

from cu_fleet.backends.base import SCREEN_ANSWERS, Abilities, Backend, Files, Spec
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core
from cu_fleet.model.desktop import PROGRESS, Desktop, Handle
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.stores.base import Tx

_MARK = "/tmp/.cu-fleet-"  # noqa: S108 - the desktop's own /tmp; what follows is not to be guessed
Emptying = Callable[[Desktop], Awaitable[None]]
Proof = Callable[[Desktop], Coroutine[None, None, None]]


class Maker:
    def __init__(self, core: Core, actors: Actors) -> None:
        self.core = core
        self.actors = actors
        self.before_emptying: Emptying = _nothing  # takes out of the slot what is not the desktop's

    async def start(self, backend: Backend, desktop: Desktop) -> None:
        await self._make(desktop, backend.start(self._spec(desktop, desktop.parked_in)))

    async def put_back(self, backend: Backend, desktop: Desktop, canary: str | None, *, empty_slot: bool) -> None:
        spec = self._spec(desktop, desktop.target, keep_slot=not empty_slot)
        proofs: list[Proof] = [partial(self._prove_gone, canary)] if canary else []
        if empty_slot and (files := self.core.abilities(desktop).files):
            proofs.append(partial(self._empty_slot, files))
        if backend.abilities.snapshots:
            await self._make(desktop, backend.abilities.snapshots.restore(desktop.handle, spec), *proofs)
        else:
            await self.core.bounded(backend.stop(desktop.handle), "stop")
            await self._make(desktop, backend.start(spec), *proofs)

    async def plant(self, backend: Backend, desktop: Desktop) -> str | None:
        """Leave a file that a true rollback takes away. None where nothing can be left any more."""
        abilities, name = self.core.abilities(desktop), new_id("cy")
        if not desktop.handle:
            return None
        try:
            async with asyncio.timeout(2.0):
                if desktop.frozen and abilities.freeze:
                    await abilities.freeze.thaw(desktop.handle)
                return name if await _left(abilities, desktop.handle, name) else None
        except (FleetError, OSError, TimeoutError):
            return None  # it is too broken to take a file: nothing of it is kept but what the rollback proves itself

    async def _empty_slot(self, files: Files, desktop: Desktop) -> None:
        await self.before_emptying(desktop)
        if not await self.core.bounded(files.listing(desktop.handle), "list the slot"):
            return
        await self.core.bounded(files.remove(desktop.handle, ""), "empty the slot")
        if left := await self.core.bounded(files.listing(desktop.handle), "list the slot"):
            raise BrokenError(
                f"the slot of desktop {desktop.id} was said to be empty, but {left[0].path} is still there",
                code="slot_not_empty",
            )

    def _spec(self, desktop: Desktop, snapshot: str | None, *, keep_slot: bool = True) -> Spec:
        return Spec(
            desktop=desktop.id,
            profile=self.core.profile(desktop.profile),
            boot=desktop.boot,
            label=desktop.name or desktop.id,
            snapshot=snapshot,
            keep_slot=keep_slot,
        )

    async def _make(self, desktop: Desktop, handles: AsyncIterator[Handle], *more: Proof) -> None:
        """Have it made, and prove it: from the moment its screen answers, while the rest still comes up."""
        proving: list[asyncio.Task[None]] = []

        def prove(made: Desktop) -> None:
            if not proving:
                proving.extend(
                    asyncio.create_task(proof(made), name=f"prove {made.id}") for proof in (self._prove, *more)
                )

        try:
            prove(await self._store_each(desktop, handles, prove))
            for proof in proving:
                await proof
        finally:
            for proof in proving:
                proof.cancel()
            await asyncio.gather(*proving, return_exceptions=True)

    async def _store_each(
        self, desktop: Desktop, handles: AsyncIterator[Handle], screen_answers: Callable[[Desktop], object]
    ) -> Desktop:
        """Store each handle before the backend may go on to make what it names; who tells of progress has time anew."""
        limit, now = self.core.settings.start_timeout, asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(limit) as patience:
                async for handle in handles:
                    desktop = await self.core.read(partial(self._store_handle, desktop.id, handle))
                    if handle.get(SCREEN_ANSWERS):
                        screen_answers(desktop)
                    if handle.get(PROGRESS):
                        patience.reschedule(now() + limit)
        except TimeoutError:
            raise UnavailableError(
                f"the backend did not make the desktop within {limit:g} s", code="backend_hangs"
            ) from None
        return desktop

    def _store_handle(self, desktop: str, handle: Handle, tx: Tx) -> Desktop:
        made = self.core.get_desktop(tx, desktop).but(handle=handle)
        tx.put(made)
        return made

    async def _prove(self, desktop: Desktop) -> None:
        """The screen answers, is of the right size, and shows a whole frame."""
        actor = self.actors.of(desktop.id)
        await actor.disconnect()
        screen = await actor.connect(desktop, await self.core.endpoint(desktop), self.core.settings.backend_timeout)
        actor.open()  # nothing is under way any more, and whoever comes next is checked against what is written
        await actor.park_pointer()
        await screen.refresh(timeout=self.core.settings.start_timeout)

    async def _prove_gone(self, canary: str, desktop: Desktop) -> None:
        """A file left before is no more."""
        async with asyncio.timeout(10.0):
            if not await _gone(self.core.abilities(desktop), desktop.handle, canary):
                raise BrokenError(
                    f"desktop {desktop.id} was said to be rolled back, but a file left before is still there",
                    code="not_rolled_back",
                )


async def _left(abilities: Abilities, handle: Handle, name: str) -> bool:
    if abilities.marks:
        await abilities.marks.leave(handle, name)
        return True
    if abilities.exec is None:
        return False
    return await (await abilities.exec.exec(handle, ["touch", _MARK + name])).wait() == 0


async def _gone(abilities: Abilities, handle: Handle, name: str) -> bool:
    if abilities.marks:
        return not await abilities.marks.there(handle, name)
    assert abilities.exec
    return await (await abilities.exec.exec(handle, ["test", "-e", _MARK + name])).wait() == 1


async def _nothing(desktop: Desktop) -> None:
    """Before the controller has wired the worktrees in."""
