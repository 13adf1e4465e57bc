"""The start after any end. There is no special road: clocks are set right, cut-off work is recorded, and every
desktop is looked at: those that should run are connected again, those on their way go on.
"""

import logging
import math

from cu_fleet.controller.acting import Acting
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.approving import Approving
from cu_fleet.controller.core import Core
from cu_fleet.controller.keeper import Keeper
from cu_fleet.controller.permit import may_not
from cu_fleet.controller.snapshots import Snapshots
from cu_fleet.model.access import Caller
from cu_fleet.model.desktop import NOT_GONE, RUNNING, Desktop, Stage
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import LIVE, Control, Lease, LeaseState, slept
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)


class Recovery:
    def __init__(
        self, core: Core, actors: Actors, keeper: Keeper, acting: Acting, snapshots: Snapshots, approving: Approving
    ) -> None:
        self.core = core
        self.actors = actors
        self.keeper = keeper
        self.acting = acting
        self.snapshots = snapshots
        self.approving = approving

    async def recover(self) -> None:
        down = await self.core.note(self._set_clocks)
        if down:
            log.info("started again after %.1f s", down)
        await self.acting.interrupted()
        await self.approving.recover(down)
        await self._half_saved()
        desktops, leases = await self.core.read(self._everything)
        for lease in leases:
            self._fence(lease)
        for desktop in desktops:
            self.keeper.poke(desktop.id)
        await self.core.change(lambda tx: None)  # plan the queue anew

    def _set_clocks(self, tx: Tx) -> float:
        """The time the controller was away does not count for anybody's lease or place."""
        now = self.core.now()
        alive_at = float(tx.get_meta("alive_at") or math.nan)
        down = 0.0 if math.isnan(alive_at) else max(0.0, now - alive_at)
        for lease in tx.find(Lease, state=tuple(state.value for state in LIVE)):
            after = slept(lease, down)
            if after.wait_until is not None:
                after = after.but(wait_until=after.wait_until + down)
            tx.put(after)
        self.core.record(tx, "controller.started", "controller", facts={"away": round(down, 1)})
        return down

    async def _half_saved(self) -> None:
        """Snapshots that were never reported as saved are removed, save those a revoke still wants."""
        rows = await self.core.read(lambda tx: tx.find(Snapshot, state=("saving", "deleting")))
        desktops = {x.id: x for x in (await self.core.read(self._everything))[0]}
        for row in rows:
            owner = desktops.get(row.desktop)
            if (
                row.purpose == "evidence"
                and row.state == "saving"
                and owner
                and owner.stage in (Stage.CLEANING, Stage.PARKING)
            ):
                continue
            if row.backend in self.core.backends:
                await self._undone(row, owner)

    async def _undone(self, row: Snapshot, owner: Desktop | None) -> None:
        """Let the desktop go on that may have stood still for it, and remove what there is of it."""
        freeze = self.core.backend(row.backend).abilities.freeze
        try:
            if freeze and row.state == "saving" and owner and owner.stage in RUNNING and not owner.frozen:
                await self.core.bounded(freeze.thaw(owner.handle), "thaw")
            await self.snapshots.finish_delete(row)
        except FleetError as e:
            log.warning("snapshot %s, half saved: %s; the next start sees to it", row.id, e)

    def _everything(self, tx: Tx) -> tuple[list[Desktop], list[Lease]]:
        return tx.find(Desktop, stage=NOT_GONE), tx.find(Lease, state=LeaseState.ACTIVE.value)

    def _fence(self, lease: Lease) -> None:
        """A paused lease is paused from the first moment."""
        refusal = may_not(Caller(lease=lease.id, agent=lease.agent), lease)
        if refusal and lease.desktop and lease.control is not Control.HUMAN:
            self.actors.of(lease.desktop).fence(refusal)
