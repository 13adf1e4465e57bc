"""Snapshots: saved whole or not at all, restored under a new generation."""

from cu_fleet.backends.base import Snapshots as Ability
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core, stale
from cu_fleet.controller.helpers import cannot
from cu_fleet.controller.keeper import Keeper
from cu_fleet.controller.pending import void
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.desktop import NOT_GONE, RUNNING, Desktop, Event, Stage, moved
from cu_fleet.model.errors import ConflictError, NotFoundError
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Tx


class Snapshots:
    def __init__(self, core: Core, actors: Actors, keeper: Keeper) -> None:
        self.core = core
        self.actors = actors
        self.keeper = keeper

    async def save(self, who: Caller, key: str, note: str) -> Snapshot:
        who.needs(Role.OPERATOR)
        desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, key))
        self._ability(desktop)
        async with self.actors.of(desktop.id).turn:
            desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, desktop.id))
            if desktop.stage not in RUNNING:
                raise stale(desktop)
            await self.core.read(self._refuse_if_full)
            return await self.keeper.save(desktop, note=note, purpose="user", by=who.who)

    def _refuse_if_full(self, tx: Tx) -> None:
        size, most = sum(one.size_bytes for one in tx.find(Snapshot)), self.core.settings.snapshots_quota
        if size >= most:
            raise ConflictError(
                f"snapshots take {size / (1 << 30):.1f} GB, and {most / (1 << 30):.1f} GB is the most they may",
                remedy="cu-fleet snapshot delete, or raise snapshots_quota",
                code="snapshots_full",
            )

    async def listing(self, who: Caller, key: str | None) -> list[Snapshot]:
        who.needs(Role.OBSERVER)

        def work(tx: Tx) -> list[Snapshot]:
            equal = {"desktop": self.core.get_desktop(tx, key).id} if key else {}
            return tx.find(Snapshot, state="saved", **equal)

        return await self.core.read(work)

    async def restore(self, who: Caller, snapshot_id: str, key: str | None) -> Desktop:
        """Put a desktop back to a snapshot: its own, or another's of the same profile. A live lease goes on."""
        who.needs(Role.OPERATOR)
        fenced: list[str] = []
        try:
            desktop_id = await self.core.change(lambda tx: self._begin(tx, who, snapshot_id, key, fenced))
        except BaseException:
            for desktop in fenced:
                self.actors.of(desktop).open()
            raise
        return await self.keeper.settled(desktop_id)

    def _begin(self, tx: Tx, who: Caller, snapshot_id: str, key: str | None, fenced: list[str]) -> str:
        snapshot = _get(tx, snapshot_id)
        desktop = self.core.get_desktop(tx, key or snapshot.desktop)
        self._ability(desktop)
        if (snapshot.backend, snapshot.profile) != (desktop.backend, desktop.profile):
            raise ConflictError(
                f'snapshot {snapshot.id} is of profile "{snapshot.profile}", not "{desktop.profile}"',
                code="other_profile",
            )
        lease = self.core.holder_of(tx, desktop.id)
        if lease is None or desktop.stage is not Stage.HELD:
            raise ConflictError(
                f"desktop {desktop.id} is {desktop.stage.value}: a snapshot is restored under a lease",
                remedy=f"acquire a desktop of profile {desktop.profile}, then restore onto it with --desktop",
                code="needs_lease",
            )
        self.actors.of(desktop.id).fence(
            ConflictError(f"desktop {desktop.id} is being restored", remedy="ask again soon", code="restoring")
        )
        fenced.append(desktop.id)
        generation = desktop.generation + 1
        tx.put(moved(desktop, Event.CLEAN, target=snapshot.id, generation=generation))
        lease = void(self.core, tx, lease, who.who, f"the desktop was put back to snapshot {snapshot.id}")
        tx.put(lease.but(generation=generation))
        facts: dict[str, object] = {"snapshot": snapshot.id, "data_of": snapshot.agent}
        self.core.record(tx, "snapshot.restore", who.who, lease=lease, facts=facts)
        self.core.touch(desktop.id)
        return desktop.id

    async def delete(self, who: Caller, snapshot_id: str) -> None:
        who.needs(Role.OPERATOR)

        def mark(tx: Tx) -> Snapshot:
            snapshot = _get(tx, snapshot_id)
            using = [x for x in tx.find(Desktop, stage=NOT_GONE) if snapshot.id in (x.parked_in, x.target)]
            if using:
                raise ConflictError(
                    f"snapshot {snapshot.id} is what desktop {using[0].name or using[0].id} wakes from",
                    code="snapshot_in_use",
                )
            tx.put(snapshot.but(state="deleting"))
            self.core.record(tx, "snapshot.deleted", who.who, facts={"snapshot": snapshot.id})
            return snapshot

        await self.finish_delete(await self.core.change(mark))

    async def finish_delete(self, snapshot: Snapshot) -> None:
        ability = self.core.backend(snapshot.backend).abilities.snapshots
        if ability:
            await self.core.bounded(ability.delete(snapshot.id), "delete a snapshot")
        await self.core.read(lambda tx: tx.delete(snapshot))

    def _ability(self, desktop: Desktop) -> Ability:
        ability = self.core.backend(desktop.backend).abilities.snapshots
        if ability is None:
            raise cannot(desktop, "snapshots")
        return ability


def _get(tx: Tx, snapshot_id: str) -> Snapshot:
    snapshot = tx.get(Snapshot, snapshot_id)
    if snapshot is None or snapshot.state != "saved":
        raise NotFoundError(f"there is no snapshot {snapshot_id}", remedy="cu-fleet snapshot list", code="no_snapshot")
    return snapshot
