"""The ends of a lease.

The order in which things end is what makes a revoke final: first the fence (no further event), then the change
written down (the token only hears why), then keys and buttons lifted; the keeper rolls the desktop back.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cu_fleet.controller.actor import Actor, Actors
from cu_fleet.controller.core import Core
from cu_fleet.controller.keeper import free_resources
from cu_fleet.controller.pending import void
from cu_fleet.model import lease as lifecycle
from cu_fleet.model.access import FOREVER, Agent
from cu_fleet.model.desktop import Desktop, Event, Stage, moved
from cu_fleet.model.errors import FleetError
from cu_fleet.model.lease import ENDS, Control, Lease, LeaseState, why_not
from cu_fleet.model.names import new_id
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Tx


class Ending:
    def __init__(self, core: Core, actors: Actors) -> None:
        self.core = core
        self.actors = actors

    async def end(
        self,
        lease_id: str,
        state: LeaseState,
        *,
        reason: str,
        by: str,
        bar: float | None = None,
        snapshot: bool = False,
    ) -> None:
        before = await self.core.read(lambda tx: self.core.get_lease(tx, lease_id))
        over = lifecycle.ended(before, state, self.core.now(), reason=reason, by=by)
        if before.state is LeaseState.ACTIVE:
            self.fence(before, why_not(over))

        def work(tx: Tx) -> None:
            lease = self.core.get_lease(tx, lease_id)
            if not lease.live:
                return
            lease = void(self.core, tx, lease, by, f"the lease {ENDS[state]}{f': {reason}' if reason else ''}")
            over = lifecycle.ended(lease, state, self.core.now(), reason=reason, by=by)
            tx.put(over)
            free_resources(tx, over)
            self.core.record(tx, f"lease.{state.value}", by, lease=over, facts={"reason": reason})
            if state is LeaseState.REVOKED and bar is not None:
                self._bar(tx, lease, bar, reason, by)
            if lease.desktop:
                self._hand_back(tx, lease, state, snapshot, by)

        async with self.whole(before):
            await self.write(before, work)
            await self.let_go(before)

    def _bar(self, tx: Tx, lease: Lease, bar: float, reason: str, by: str) -> None:
        agent = tx.get(Agent, lease.agent)
        if agent:
            until = min(FOREVER, self.core.now() + bar)
            tx.put(agent.but(barred_until=until, bar_reason=reason or f"lease {lease.id} was revoked"))
            self.core.record(tx, "agent.barred", by, lease=lease, facts={"until": until})

    def _hand_back(self, tx: Tx, lease: Lease, state: LeaseState, snapshot: bool, by: str) -> None:
        """The generation rises; a pool desktop is cleaned, a named one keeps its state."""
        desktop = self.core.get_desktop(tx, lease.desktop or "")
        if snapshot:
            tx.put(self._evidence(lease, desktop, by))
        if desktop.stage is Stage.HELD:
            event = Event.HAND_BACK if desktop.name else Event.CLEAN
            after = moved(desktop, event, generation=desktop.generation + 1, target=None)
            if desktop.name and state is LeaseState.REVOKED and self._can_sleep(desktop):
                after = moved(after, Event.PARK)  # its files stay, what runs on it ends
            tx.put(after)
        else:  # it was being restored: that goes on, to clean
            tx.put(desktop.but(generation=desktop.generation + 1, target=desktop.target if desktop.name else None))
        self.core.touch(desktop.id)

    def _can_sleep(self, desktop: Desktop) -> bool:
        return self.core.backend(desktop.backend).abilities.snapshots is not None

    def _evidence(self, lease: Lease, desktop: Desktop, by: str) -> Snapshot:
        return Snapshot(
            id=new_id("sn"),
            desktop=desktop.id,
            profile=desktop.profile,
            backend=desktop.backend,
            note=f"lease {lease.id} when it was revoked",
            purpose="evidence",
            agent=lease.agent,
            by=by,
            created_at=self.core.now(),
        )

    def fence(self, lease: Lease, why: FleetError | None) -> None:
        if lease.desktop and why:
            self.actors.of(lease.desktop).fence(why)

    async def write(self, lease: Lease, work: Callable[[Tx], None]) -> None:
        """Write the change down; if that cannot be, the fence goes back to what is written."""
        try:
            await self.core.change(work)
        except Exception:
            if lease.desktop and lease.control is not Control.PAUSED:
                self.actors.of(lease.desktop).open()
            raise

    @asynccontextmanager
    async def whole(self, lease: Lease) -> AsyncIterator[None]:
        """Cancelled in here, nothing stays down, and the fence is as what is written has it: that may have landed."""
        try:
            yield
        except asyncio.CancelledError:
            if not self.core.closing:
                await self.let_go(lease)
            raise

    async def lift(self, lease: Lease, actor: Actor) -> None:
        """Keys and buttons up. A frozen screen cannot take that in now: whoever connects next lifts them."""
        desktop = await self.core.read(lambda tx: tx.get(Desktop, lease.desktop or ""))
        if desktop and desktop.frozen:
            await actor.disconnect()
        else:
            await actor.let_go()

    async def let_go(self, lease: Lease) -> None:
        if lease.desktop is None:
            return
        actor = self.actors.of(lease.desktop)
        async with actor.turn:
            await self.lift(lease, actor)
            if await self.core.read(lambda tx: self._may_serve(tx, lease)):
                actor.open()  # whoever acts now is checked against what is written
        await self.actors.watching.dismissed(lease.desktop)

    def _may_serve(self, tx: Tx, lease: Lease) -> bool:
        """Whether the desktop keeps its state, and somebody may act on it."""
        desktop, now = tx.get(Desktop, lease.desktop or ""), self.core.get_lease(tx, lease.id)
        paused = now.live and now.control is Control.PAUSED
        return desktop is not None and desktop.stage in (Stage.READY, Stage.HELD) and not paused
