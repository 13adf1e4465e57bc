"""What an operator does to a lease, or a parent agent to its children's: pause, take, resume, revoke, reassign."""

from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core, in_words
from cu_fleet.controller.ending import Ending
from cu_fleet.controller.keeper import free_resources
from cu_fleet.controller.leasing import Leasing
from cu_fleet.controller.pending import void
from cu_fleet.model import lease as lifecycle
from cu_fleet.model.access import Agent, Caller, Role, check_bar
from cu_fleet.model.desktop import Event, moved
from cu_fleet.model.errors import ConflictError, DeniedError
from cu_fleet.model.lease import Control, Lease, LeaseState, why_not
from cu_fleet.model.names import check_name, new_id
from cu_fleet.model.view import LeaseView
from cu_fleet.stores.base import Tx


class Supervising:
    def __init__(self, core: Core, actors: Actors, leasing: Leasing, ending: Ending) -> None:
        self.core = core
        self.actors = actors
        self.leasing = leasing
        self.ending = ending

    async def pause(self, who: Caller, lease_id: str, *, reason: str = "", looking: bool = True) -> LeaseView:
        """No further input from now on; programs and screen go on."""
        return await self._hold(who, lease_id, Control.PAUSED, reason, looking)

    async def take(self, who: Caller, lease_id: str, *, reason: str = "") -> LeaseView:
        """An operator takes over: the agent may look, not act."""
        who.needs(Role.OPERATOR)
        return await self._hold(who, lease_id, Control.HUMAN, reason, True)

    async def _hold(self, who: Caller, lease_id: str, control: Control, reason: str, looking: bool) -> LeaseView:
        before = await self.core.read(lambda tx: self._steered(tx, who, lease_id))
        _must_be_active(before)
        now = self.core.now()
        held = lifecycle.stopped_clock(before, control, now, reason=reason, by=who.who, looking=looking)
        self.ending.fence(before, why_not(held))

        def work(tx: Tx) -> None:
            lease = self._steered(tx, who, lease_id)
            _must_be_active(lease)
            if control is Control.HUMAN:
                lease = void(self.core, tx, lease, who.who, "a person has taken over")
            lease = lifecycle.stopped_clock(lease, control, self.core.now(), reason=reason, by=who.who, looking=looking)
            tx.put(lease)
            what = "lease.taken" if control is Control.HUMAN else "lease.paused"
            self.core.record(tx, what, who.who, lease=lease, facts={"reason": reason})

        async with self.ending.whole(before):
            await self.ending.write(before, work)
            await self.ending.let_go(before)  # a person may act from now on
        return await self.leasing.lease(who, lease_id)

    async def resume(self, who: Caller, lease_id: str) -> LeaseView:
        before = await self.core.read(lambda tx: self._steered(tx, who, lease_id))
        _must_be_active(before)

        def work(tx: Tx) -> None:
            lease = self._steered(tx, who, lease_id)
            _must_be_active(lease)
            if lease.control is not Control.AGENT:
                lease = lifecycle.resumed(lease, self.core.now())
                tx.put(lease)
                self.core.record(tx, "lease.resumed", who.who, lease=lease)

        async with self.ending.whole(before):
            if before.desktop and before.control is Control.HUMAN:
                self.ending.fence(before, ConflictError("control goes back to the agent", code="resumed"))
                async with self.actors.of(before.desktop).turn:
                    await self.ending.lift(before, self.actors.of(before.desktop))
            await self.ending.write(before, work)
            if before.desktop:
                self.actors.of(before.desktop).open()
        return await self.leasing.lease(who, lease_id)

    async def revoke(
        self, who: Caller, lease_id: str, *, reason: str = "", bar: float | None = 600.0, snapshot: bool = False
    ) -> LeaseView:
        """Take the desktop away. When this returns nothing more reaches the screen, and the token only hears why."""
        lease = await self.core.read(lambda tx: self._supervised(tx, who, lease_id))
        if not lease.live:
            over = why_not(lease)
            assert over is not None
            raise over
        await self.ending.end(lease_id, LeaseState.REVOKED, reason=reason, by=who.who, bar=bar, snapshot=snapshot)
        return await self.leasing.lease(who, lease_id)

    async def reassign(
        self, who: Caller, lease_id: str, *, to: str, clean: bool, reason: str = "", ttl: float | None = None
    ) -> LeaseView:
        """Hand the desktop to another agent, rolled back or as it stands, under a new lease and generation."""
        check_name("agent", to)
        before = await self.core.read(lambda tx: self._steered(tx, who, lease_id))
        _must_be_active(before)
        why = reason or f"it was given to agent {to}"
        over = lifecycle.ended(before, LeaseState.REASSIGNED, self.core.now(), reason=why, by=who.who)
        self.ending.fence(before, why_not(over))
        new_lease: list[str] = []

        def work(tx: Tx) -> None:
            new_lease[:] = [self._hand_over(tx, who, lease_id, to, clean, why, ttl)]

        async with self.ending.whole(before):
            await self.ending.write(before, work)
            await self.ending.let_go(before)
        return await self.leasing.lease(who, new_lease[0], hold=self.core.settings.start_timeout, unlike="waiting")

    def _hand_over(self, tx: Tx, who: Caller, lease_id: str, to: str, clean: bool, why: str, ttl: float | None) -> str:
        now = self.core.now()
        old = self._steered(tx, who, lease_id)
        _must_be_active(old)
        receiver = tx.get(Agent, to)
        if who.role is None and to != who.agent and (receiver is None or receiver.parent != who.agent):
            raise DeniedError(f"agent {to} is no child of {who.who}", code="needs_operator")
        if receiver is None:
            receiver = Agent(name=to, created_at=now)
            tx.put(receiver)
        check_bar(receiver, now, in_words(receiver.barred_until))
        old = void(self.core, tx, old, who.who, f"the desktop was given to agent {to}")
        over = lifecycle.ended(old, LeaseState.REASSIGNED, now, reason=why, by=who.who)
        tx.put(over)
        free_resources(tx, over)
        new = Lease(
            id=new_id("ls"),
            agent=to,
            profile=old.profile,
            backend=old.backend,
            desktop_name=old.desktop_name,
            resources=old.resources,
            ttl=ttl or old.ttl,
            view=old.view,
            place=old.place,  # nobody in line overtakes the hand-over
            asked_at=now,
            asked_by=who.who,
        )
        tx.put(new)
        desktop = self.core.get_desktop(tx, old.desktop or "")
        facts = {"to": to, "lease": new.id, "mode": "clean" if clean else "as-is", "data_of": old.agent}
        self.core.record(tx, "lease.reassigned", who.who, lease=over, facts=facts)
        if clean:
            tx.put(moved(desktop, Event.CLEAN, generation=desktop.generation + 1, target=None, owner=None))
            self.core.touch(desktop.id)
        else:
            tx.put(moved(desktop, Event.HAND_BACK, generation=desktop.generation + 1, owner=to))
            self.core.grant(tx, new, self.core.get_desktop(tx, desktop.id))
        return new.id

    def _steered(self, tx: Tx, who: Caller, lease_id: str) -> Lease:
        """The same, to let it go on or hold it: no agent undoes what a person, or the controller, has paused."""
        lease = self._supervised(tx, who, lease_id)
        if who.role is None and lease.live and lease.control is not Control.AGENT and lease.by not in ("", who.who):
            raise DeniedError(
                f"lease {lease_id} is held by {lease.by}, not by {who.who}",
                remedy="ask an operator to resume it",
                code="needs_operator",
            )
        return lease

    def _supervised(self, tx: Tx, who: Caller, lease_id: str) -> Lease:
        """The lease, if this caller may pause, revoke or reassign it: operators all, a parent its children's."""
        lease = self.core.get_lease(tx, lease_id)
        if who.role is not None:
            who.needs(Role.OPERATOR)
        elif not self.leasing.is_parent(tx, who, lease):
            raise DeniedError(f"{who.who} may not supervise lease {lease_id}", code="needs_operator")
        return lease


def _must_be_active(lease: Lease) -> None:
    if lease.state is not LeaseState.ACTIVE:
        over = why_not(lease)
        assert over is not None
        raise over
