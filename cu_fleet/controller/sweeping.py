"""Removes what bears our label and nobody knows: seen orphaned twice, some time apart, and only then."""

import asyncio
import logging
import shutil
from functools import partial

from cu_fleet.controller.core import Core
from cu_fleet.controller.frames import Frames
from cu_fleet.controller.looking import Looking
from cu_fleet.controller.pending import forget
from cu_fleet.controller.snapshots import Snapshots
from cu_fleet.controller.worktrees import Worktrees
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import FleetError
from cu_fleet.model.frame import KeptFrame
from cu_fleet.model.lease import LIVE, Lease
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)


class Sweeper:
    def __init__(
        self, core: Core, snapshots: Snapshots, frames: Frames, looking: Looking, worktrees: Worktrees
    ) -> None:
        self.core = core
        self.snapshots = snapshots
        self.frames = frames
        self.looking = looking
        self.worktrees = worktrees
        self._seen: set[tuple[str, str]] = set()

    def forget(self) -> None:
        """Begin anew: what is orphaned now has not been seen before."""
        self._seen.clear()

    async def sweep(self) -> None:
        for name in self.core.backends:
            try:
                async with asyncio.timeout(120.0):
                    await self._sweep_backend(name)
            except (FleetError, OSError, TimeoutError) as e:
                log.warning("backend %s could not be swept: %s", name, e)
        await self._forget()
        live = await self.core.read(lambda tx: tx.find(Lease, state=tuple(x.value for x in LIVE)))
        self.looking.forget_but({lease.id for lease in live})
        await self.frames.tidy_if_due()
        await self.worktrees.tidy()

    async def _sweep_backend(self, name: str) -> None:
        backend = self.core.backends[name]
        known = await self.core.read(_known_desktops)
        orphans = {(name, found.desktop): found for found in await backend.found() if found.desktop not in known}
        for key, found in orphans.items():
            if key in self._seen:
                log.warning("removing %s %s: nobody knows it", found.what, found.desktop)
                await backend.stop(found.handle)
                await self._note(found.desktop, found.what)
        saved = await backend.abilities.snapshots.saved() if backend.abilities.snapshots else []
        rows = {row.id: row for row in await self.core.read(lambda tx: tx.find(Snapshot))}
        strays = {(name, snapshot) for snapshot in saved if snapshot not in rows}
        for key in strays & self._seen:
            assert backend.abilities.snapshots
            await backend.abilities.snapshots.delete(key[1])
        for row in rows.values():
            if row.backend == name and row.state == "deleting":
                await self.snapshots.finish_delete(row)
        self._seen = {key for key in self._seen if key[0] != name} | set(orphans) | strays
        for what in await backend.abilities.tidy.tidy() if backend.abilities.tidy else ():
            facts: dict[str, object] = {"backend": name, "what": what}
            await self.core.note(partial(self._record_tidied, facts=facts))

    async def _note(self, desktop: str, what: str) -> None:
        facts: dict[str, object] = {"desktop": desktop, "what": what}
        await self.core.note(lambda tx: self.core.record(tx, "orphan.removed", "controller", facts=facts))

    def _record_tidied(self, tx: Tx, *, facts: dict[str, object]) -> None:
        self.core.record(tx, "backend.tidied", "controller", facts=facts)

    async def _forget(self) -> None:
        """Leases that are over, and desktops that are gone, are forgotten after their time; the record keeps them."""
        before = self.core.now() - self.core.settings.keep_leases

        def work(tx: Tx) -> list[str]:
            old = [x for x in tx.find(Lease) if x.state not in LIVE and (x.ended_at or 0) < before]
            kept = {x.desktop for x in tx.find(Lease)} - {x.desktop for x in old}
            for lease in old:
                for frame in tx.find(KeptFrame, lease=lease.id):
                    tx.delete(frame)  # its file goes when nobody else refers to it
                tx.delete(lease)
            for desktop in tx.find(Desktop, stage=Stage.GONE.value):
                if desktop.id not in kept and desktop.created_at < before:
                    tx.delete(desktop)
            forget(tx, before)
            return [lease.id for lease in old]

        for lease in await self.core.read(work):
            await asyncio.to_thread(shutil.rmtree, self.core.settings.home / "artifacts" / lease, True)


def _known_desktops(tx: Tx) -> set[str]:
    return {desktop.id for desktop in tx.find(Desktop) if desktop.stage is not Stage.GONE}
