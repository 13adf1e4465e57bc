"""Leases: asked for, granted, supervised and ended.

The order in which things end is what makes a revoke final: first the fence (no further event), then the change
written down (the token only hears why), then keys and buttons lifted; the keeper rolls the desktop back.
"""

import asyncio
from collections.abc import Callable
from functools import partial

from cu_fleet.controller.actor import Actor, Actors
from cu_fleet.controller.core import Core, in_words, until_words
from cu_fleet.controller.keeper import free_resources
from cu_fleet.model import lease as lifecycle
from cu_fleet.model.access import FOREVER, Agent, Caller, Role, check_bar, check_grants
from cu_fleet.model.desktop import Desktop, Event, Stage, moved
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, InvalidError, UnavailableError
from cu_fleet.model.lease import LIVE, Control, Lease, LeaseState, why_not
from cu_fleet.model.names import check_name, new_id
from cu_fleet.model.profile import Profile
from cu_fleet.model.queue import Blocked, Plan, plan
from cu_fleet.model.request import Acquire
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.model.view import LeaseView, lease_view
from cu_fleet.stores.base import TakenError, Tx

_LIVE = tuple(state.value for state in LIVE)


class Leasing:
    def __init__(self, core: Core, actors: Actors) -> None:
        self.core = core
        self.actors = actors
        self.url: str | None = None

    # asking

    async def acquire(self, who: Caller, ask: Acquire, *, hold: float) -> LeaseView:
        """A lease, granted or waiting. With `wait=0` a conflict is refused in words instead of queued."""
        profile = self.core.profile(ask.profile)
        self.core.backend(profile.backend)
        agent_name = self._asked_for(who, ask)
        try:
            lease_id = await self.core.change(lambda tx: self._ask(tx, who, agent_name, ask, profile))
        except (TakenError, DeniedError) as e:
            await self._record_denial(who, agent_name, ask, e)
            raise
        if ask.wait == 0:
            return await self._at_once(who, lease_id)
        return await self.lease(who, lease_id, hold=hold, unlike=LeaseState.WAITING.value)

    def _asked_for(self, who: Caller, ask: Acquire) -> str:
        if who.role is not None:
            who.needs(Role.OPERATOR)
            if ask.agent is None:
                raise InvalidError("agent: say which agent the desktop is for", remedy="--agent NAME", code="no_agent")
            return ask.agent
        if who.lease is not None or who.agent is None:
            raise DeniedError("a lease's token opens that lease and nothing else", code="lease_token")
        if ask.agent not in (None, who.agent):
            raise DeniedError(f"agent {who.agent} cannot lease for agent {ask.agent}", code="not_yours")
        return who.agent

    def _ask(self, tx: Tx, who: Caller, agent_name: str, ask: Acquire, profile: Profile) -> str:
        now = self.core.now()
        agent = tx.get(Agent, agent_name)
        if agent is None:
            agent = Agent(name=agent_name, created_at=now)
            tx.put(agent)
            self.core.record(tx, "agent.added", who.who, facts={"agent": agent_name, "on_the_fly": True})
        if ask.request_id and (same := self._asked_before(tx, agent_name, ask)):
            return same.id
        live = tx.find(Lease, agent=agent_name, state=_LIVE)
        check_bar(agent, now, in_words(agent.barred_until))
        if who.role is None:
            check_grants(agent, ask.profile, ask.desktop, ask.resources, len(live))
        self._check_limits(agent, profile, live)
        self._check_named(tx, ask)
        lease = Lease(
            id=new_id("ls"),
            agent=agent_name,
            profile=profile.name,
            backend=profile.backend,
            desktop_name=ask.desktop,
            resources=tuple(dict.fromkeys(ask.resources)),
            ttl=ask.ttl or profile.ttl,
            place=tx.next_number("place"),
            asked_at=now,
            asked_by=who.who,
            wait_until=self._wait_until(now, ask.wait),
            request_id=ask.request_id,
        )
        tx.put(lease)
        facts = {"profile": profile.name, "desktop": ask.desktop, "resources": list(ask.resources), "wait": ask.wait}
        self.core.record(tx, "lease.asked", who.who, lease=lease, facts=facts)
        if ask.wait == 0:
            self._refuse_if_taken(tx, lease)
        return lease.id

    def _wait_until(self, now: float, wait: float | None) -> float | None:
        if wait is None:
            return None
        return now + (wait or self.core.settings.start_timeout)

    def _asked_before(self, tx: Tx, agent: str, ask: Acquire) -> Lease | None:
        found = tx.find(Lease, agent=agent, request_id=ask.request_id)
        if found and (found[0].profile, found[0].desktop_name) != (ask.profile, ask.desktop):
            raise ConflictError(
                f"request id {ask.request_id} was used for lease {found[0].id}, which asked for something else",
                code="request_id_reused",
            )
        return found[0] if found else None

    def _check_limits(self, agent: Agent, profile: Profile, live: list[Lease]) -> None:
        mine = sum(lease.profile == profile.name for lease in live)
        if profile.per_agent is not None and mine >= profile.per_agent:
            raise DeniedError(
                f'agent {agent.name} has {mine} of the {profile.per_agent} leases that profile "{profile.name}" '
                "allows one agent",
                remedy="release one first",
                code="too_many_leases",
            )

    def _check_named(self, tx: Tx, ask: Acquire) -> None:
        if ask.desktop is None:
            return
        for desktop in tx.find(Desktop, name=ask.desktop):
            if desktop.stage is not Stage.GONE and desktop.profile != ask.profile:
                raise ConflictError(
                    f'desktop "{ask.desktop}" is of profile "{desktop.profile}", not "{ask.profile}"',
                    remedy=f"ask for profile {desktop.profile}, or remove it: cu-fleet desktop remove {ask.desktop}",
                    code="other_profile",
                )

    def _refuse_if_taken(self, tx: Tx, lease: Lease) -> None:
        blocked = plan(self.core.queue_state(tx)).blocked.get(lease.id)
        if blocked:
            raise TakenError(
                f"lease denied: agent {lease.agent} asked for {_asked(blocked, lease)}",
                agent=lease.agent,
                profile=lease.profile,
                desktop=lease.desktop_name,
                resources=list(lease.resources),
                holder=holder_facts(blocked),
            )

    async def _record_denial(self, who: Caller, agent: str, ask: Acquire, error: FleetError) -> None:
        facts = {"agent": agent, "profile": ask.profile, "desktop": ask.desktop, "why": error.what}
        await self.core.note(lambda tx: self.core.record(tx, "lease.denied", who.who, result=error.code, facts=facts))

    async def _at_once(self, who: Caller, lease_id: str) -> LeaseView:
        """Nobody stands in the way; the desktop may still have to start."""
        timeout = self.core.settings.start_timeout
        view = await self.lease(who, lease_id, hold=timeout, unlike=LeaseState.WAITING.value)
        if view.state == LeaseState.ACTIVE.value:
            return view
        if view.state == LeaseState.WAITING.value:
            await self.release(who, lease_id)
        raise UnavailableError(
            f"lease {lease_id} could not be granted at once: {view.reason or view.message or 'the desktop is slow'}",
            code="not_started",
            lease=lease_id,
        )

    # showing

    async def lease(self, who: Caller, lease_id: str, *, hold: float = 0, unlike: str | None = None) -> LeaseView:
        """One lease; with `hold`, once its state is another than `unlike`, or when the time is up."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + hold
        while True:
            rings = self.core.bell.rings
            left = deadline - loop.time()
            still = unlike if left > 0 and not self.core.closing else None
            view = await self.core.read(partial(self._view_unless, who, lease_id, still))
            if view:
                return view
            await self.core.bell.heard(rings, left)

    def _view_unless(self, who: Caller, lease_id: str, state: str | None, tx: Tx) -> LeaseView | None:
        """None while it is in this state: many may wait, and all look whenever anything changes."""
        lease = self._own(tx, who, lease_id)
        return None if lease.state.value == state else self._view(tx, who, lease)

    async def leases(self, who: Caller, *, everything: bool = False, agent: str | None = None) -> list[LeaseView]:
        """All leases for an operator, its own for an agent."""

        def work(tx: Tx) -> list[LeaseView]:
            equal: dict[str, object] = {} if everything else {"state": _LIVE}
            wanted = agent if who.role else who.agent
            if wanted:
                equal["agent"] = wanted
            found = [x for x in tx.find(Lease, **equal) if who.lease in (None, x.id)]
            outlook = plan(self.core.queue_state(tx))
            return [self._view(tx, who, lease, outlook, token=False) for lease in found]

        return await self.core.read(work)

    def _view(self, tx: Tx, who: Caller, lease: Lease, outlook: Plan | None = None, *, token: bool = True) -> LeaseView:
        more: dict[str, object] = {}
        if lease.live:
            outlook = outlook or plan(self.core.queue_state(tx))
            behind = [x for x in outlook.blocked.values() if x.behind and x.behind.id == lease.id and x.held]
            more["waiters"] = len(behind)
        if outlook and lease.state is LeaseState.WAITING:
            blocked = outlook.blocked.get(lease.id)
            more["place"] = outlook.places.get(lease.id, 1)
            more["message"] = self._waiting_words(lease, blocked, outlook)
            more["holder"] = holder_facts(blocked) if blocked else None
        if token and lease.live and lease.state is LeaseState.ACTIVE and self._may_have_token(who, lease):
            more["token"] = self.core.mint.lease(lease.id)
        desktop = tx.get(Desktop, lease.desktop) if lease.desktop else None
        return lease_view(lease, desktop, self.core.now(), url=self.url, **more)

    def _waiting_words(self, lease: Lease, blocked: Blocked | None, outlook: Plan) -> str:
        if blocked is None:
            return "its desktop is being made"
        place = outlook.places.get(lease.id, 1)
        return f"number {place} in line for {_asked(blocked, lease)}"

    def _may_have_token(self, who: Caller, lease: Lease) -> bool:
        return (who.role is not None and who.role.includes(Role.OPERATOR)) or who.agent == lease.agent

    def _own(self, tx: Tx, who: Caller, lease_id: str) -> Lease:
        """The lease, if this caller may see it."""
        lease = self.core.get_lease(tx, lease_id)
        if who.lease is not None and who.lease != lease_id:
            raise DeniedError("a lease's token opens that lease and nothing else", code="other_lease")
        if who.role is None and who.agent != lease.agent and not self._is_parent(tx, who, lease):
            raise DeniedError(f"lease {lease_id} is not {who.who}'s", code="not_yours")
        return lease

    def _is_parent(self, tx: Tx, who: Caller, lease: Lease) -> bool:
        child = tx.get(Agent, lease.agent)
        return who.lease is None and who.agent is not None and child is not None and child.parent == who.agent

    # the agent's own doings

    async def renew(self, who: Caller, lease_id: str, ttl: float | None = None) -> LeaseView:
        def work(tx: Tx) -> None:
            lease = self._own(tx, who, lease_id)
            over = why_not(lease)
            if over and lease.state is not LeaseState.ACTIVE:
                raise over
            if ttl is not None and not 0 < ttl <= 7 * 86400:
                raise InvalidError(f"ttl: {ttl:g} s is not between 0 and 7 days", code="bad_ttl")
            lease = lifecycle.renewed(lease, self.core.now(), ttl)
            tx.put(lease)
            self.core.record(tx, "lease.renewed", who.who, lease=lease, facts={"ttl": lease.ttl})

        await self.core.change(work)
        return await self.lease(who, lease_id)

    async def release(self, who: Caller, lease_id: str) -> LeaseView:
        """Give the desktop back, or leave the queue. Releasing what is over already changes nothing."""
        lease = await self.core.read(lambda tx: self._own(tx, who, lease_id))
        if who.role is not None:
            who.needs(Role.OPERATOR)
        if lease.live:
            waiting = lease.state is LeaseState.WAITING
            state = LeaseState.CANCELLED if waiting else LeaseState.RELEASED
            await self.end(lease_id, state, reason="", by=who.who)
        return await self.lease(who, lease_id)

    # supervising

    async def pause(self, who: Caller, lease_id: str, *, reason: str = "", looking: bool = True) -> LeaseView:
        """No further input from now on; programs and screen go on."""
        return await self._hold(who, lease_id, Control.PAUSED, reason, looking)

    async def take(self, who: Caller, lease_id: str, *, reason: str = "") -> LeaseView:
        """An operator takes over: the agent may look, not act."""
        who.needs(Role.OPERATOR)
        return await self._hold(who, lease_id, Control.HUMAN, reason, True)

    async def _hold(self, who: Caller, lease_id: str, control: Control, reason: str, looking: bool) -> LeaseView:
        before = await self.core.read(lambda tx: self._supervised(tx, who, lease_id))
        _must_be_active(before)
        now = self.core.now()
        held = lifecycle.stopped_clock(before, control, now, reason=reason, by=who.who, looking=looking)
        await self._fenced(before, why_not(held))

        def work(tx: Tx) -> None:
            lease = self._supervised(tx, who, lease_id)
            _must_be_active(lease)
            lease = lifecycle.stopped_clock(lease, control, self.core.now(), reason=reason, by=who.who, looking=looking)
            tx.put(lease)
            what = "lease.taken" if control is Control.HUMAN else "lease.paused"
            self.core.record(tx, what, who.who, lease=lease, facts={"reason": reason})

        await self._written(before, work)
        if before.desktop:
            actor = self.actors.of(before.desktop)
            async with actor.turn:
                await self._lift(before, actor)
                if control is Control.HUMAN:
                    actor.open()  # who may act is checked for each action: now only that person
        return await self.lease(who, lease_id)

    async def resume(self, who: Caller, lease_id: str) -> LeaseView:
        before = await self.core.read(lambda tx: self._supervised(tx, who, lease_id))
        _must_be_active(before)
        if before.desktop and before.control is Control.HUMAN:
            await self._fenced(before, ConflictError("control goes back to the agent", code="resumed"))
            async with self.actors.of(before.desktop).turn:
                await self._lift(before, self.actors.of(before.desktop))

        def work(tx: Tx) -> None:
            lease = self._supervised(tx, who, lease_id)
            _must_be_active(lease)
            if lease.control is not Control.AGENT:
                lease = lifecycle.resumed(lease, self.core.now())
                tx.put(lease)
                self.core.record(tx, "lease.resumed", who.who, lease=lease)

        await self.core.change(work)
        if before.desktop:
            self.actors.of(before.desktop).open()
        return await self.lease(who, lease_id)

    async def revoke(
        self, who: Caller, lease_id: str, *, reason: str = "", bar: float | None = 600.0, snapshot: bool = False
    ) -> LeaseView:
        """Take the desktop away. When this returns nothing more reaches the screen, and the token only hears why."""
        lease = await self.core.read(lambda tx: self._supervised(tx, who, lease_id))
        if not lease.live:
            over = why_not(lease)
            assert over is not None
            raise over
        await self.end(lease_id, LeaseState.REVOKED, reason=reason, by=who.who, bar=bar, snapshot=snapshot)
        return await self.lease(who, lease_id)

    async def reassign(
        self, who: Caller, lease_id: str, *, to: str, clean: bool, reason: str = "", ttl: float | None = None
    ) -> LeaseView:
        """Hand the desktop to another agent, rolled back or as it stands, under a new lease and generation."""
        check_name("agent", to)
        before = await self.core.read(lambda tx: self._supervised(tx, who, lease_id))
        _must_be_active(before)
        why = reason or f"it was given to agent {to}"
        over = lifecycle.ended(before, LeaseState.REASSIGNED, self.core.now(), reason=why, by=who.who)
        await self._fenced(before, why_not(over))
        new_lease: list[str] = []

        def work(tx: Tx) -> None:
            new_lease[:] = [self._hand_over(tx, who, lease_id, to, clean, why, ttl)]

        await self._written(before, work)
        await self._let_go(before)
        return await self.lease(who, new_lease[0], hold=self.core.settings.start_timeout, unlike="waiting")

    def _hand_over(self, tx: Tx, who: Caller, lease_id: str, to: str, clean: bool, why: str, ttl: float | None) -> str:
        now = self.core.now()
        old = self._supervised(tx, who, lease_id)
        _must_be_active(old)
        receiver = tx.get(Agent, to)
        if receiver is None:
            receiver = Agent(name=to, created_at=now)
            tx.put(receiver)
        check_bar(receiver, now, in_words(receiver.barred_until))
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

    def _supervised(self, tx: Tx, who: Caller, lease_id: str) -> Lease:
        """The lease, if this caller may pause, revoke or reassign it: operators all, a parent its children's."""
        lease = self.core.get_lease(tx, lease_id)
        if who.role is not None:
            who.needs(Role.OPERATOR)
        elif not self._is_parent(tx, who, lease):
            raise DeniedError(f"{who.who} may not supervise lease {lease_id}", code="needs_operator")
        return lease

    # ending

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
            await self._fenced(before, why_not(over))

        def work(tx: Tx) -> None:
            lease = self.core.get_lease(tx, lease_id)
            if not lease.live:
                return
            over = lifecycle.ended(lease, state, self.core.now(), reason=reason, by=by)
            tx.put(over)
            free_resources(tx, over)
            self.core.record(tx, f"lease.{state.value}", by, lease=over, facts={"reason": reason})
            if state is LeaseState.REVOKED and bar is not None:
                self._bar(tx, lease, bar, reason, by)
            if lease.desktop:
                self._hand_back(tx, lease, state, snapshot, by)

        await self._written(before, work)
        await self._let_go(before)

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

    async def _fenced(self, lease: Lease, why: FleetError | None) -> None:
        if lease.desktop and why:
            self.actors.of(lease.desktop).fence(why)

    async def _written(self, lease: Lease, work: Callable[[Tx], None]) -> None:
        """Write the change down; if that cannot be, the fence goes back to what is written."""
        try:
            await self.core.change(work)
        except BaseException:
            if lease.desktop and lease.control is Control.AGENT:
                self.actors.of(lease.desktop).open()
            raise

    async def _lift(self, lease: Lease, actor: Actor) -> None:
        """Keys and buttons up. A frozen screen cannot take that in now: whoever connects next lifts them."""
        desktop = await self.core.read(lambda tx: tx.get(Desktop, lease.desktop or ""))
        if desktop and desktop.frozen:
            await actor.disconnect()
        else:
            await actor.let_go()

    async def _let_go(self, lease: Lease) -> None:
        if lease.desktop is None:
            return
        actor = self.actors.of(lease.desktop)
        async with actor.turn:
            await self._lift(lease, actor)
            desktop = await self.core.read(lambda tx: tx.get(Desktop, lease.desktop or ""))
            if desktop and desktop.stage in (Stage.READY, Stage.HELD):
                actor.open()  # it keeps its state and may serve the next one


def _must_be_active(lease: Lease) -> None:
    if lease.state is not LeaseState.ACTIVE:
        over = why_not(lease)
        assert over is not None
        raise over


def _asked(blocked: Blocked, lease: Lease) -> str:
    behind = blocked.behind
    if behind is None:
        return blocked.thing
    if not blocked.held:
        return f"{blocked.thing}, but agent {behind.agent} (lease {behind.id}) asked before"
    words = until_words(behind)
    if blocked.kind == "room":
        return f"{blocked.thing}; the first to run out is agent {behind.agent}'s (lease {behind.id}), {words}"
    return f"{blocked.thing}, but agent {behind.agent} holds it (lease {behind.id}) {words}"


def holder_facts(blocked: Blocked) -> dict[str, object] | None:
    """Who is in the way, as fields for a program."""
    if blocked.behind is None:
        return None
    lease = blocked.behind
    view = lease_view(lease, None, 0)
    return {"agent": lease.agent, "lease": lease.id, "until": view.expires_at, "holds": blocked.held}
