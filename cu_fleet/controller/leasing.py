"""Leases as those see them who ask for one: asked for, waited for, shown, renewed and given back."""

import asyncio
from collections.abc import Callable
from functools import partial

from cu_fleet.controller.core import Core, in_words, until_words
from cu_fleet.controller.ending import Ending
from cu_fleet.model import lease as lifecycle
from cu_fleet.model.access import EPOCH, Agent, Caller, Role, check_bar, check_grants
from cu_fleet.model.desktop import PROGRESS, Desktop, Stage
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, InvalidError, UnavailableError
from cu_fleet.model.lease import LIVE, Lease, LeaseState, why_not
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile
from cu_fleet.model.queue import Blocked, Plan, plan
from cu_fleet.model.request import Acquire
from cu_fleet.model.view import LeaseView, WatcherView, lease_view
from cu_fleet.stores.base import TakenError, Tx

_LIVE = tuple(state.value for state in LIVE)


class Leasing:
    def __init__(self, core: Core, ending: Ending) -> None:
        self.core = core
        self.ending = ending
        self.url: str | None = None
        self.watchers: Callable[[str], tuple[WatcherView, ...]] = lambda lease: ()  # set by the controller

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
            agent = Agent(name=agent_name, epoch=tx.next_number(EPOCH), created_at=now)
            tx.put(agent)
            self.core.record(tx, "agent.added", who.who, facts={"agent": agent_name, "on_the_fly": True})
        if ask.request_id and (same := self._asked_before(tx, agent_name, ask)):
            return same.id
        live = tx.find(Lease, agent=agent_name, state=_LIVE)
        check_bar(agent, now, in_words(agent.barred_until))
        if parent := tx.get(Agent, agent.parent or ""):
            check_bar(parent, now, in_words(parent.barred_until))
        if who.role is None:
            check_grants(agent, ask.profile, ask.desktop, ask.resources, len(live))
            if parent:  # it may have been granted less since it made this one
                check_grants(parent, ask.profile, ask.desktop, ask.resources, 0)
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
            view=ask.view or profile.screen.view,
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
            more["message"] = self._waiting_words(tx, lease, blocked, outlook)
            more["holder"] = holder_facts(blocked) if blocked else None
        if token and lease.live and lease.state is LeaseState.ACTIVE and self._may_have_token(who, lease):
            more["token"] = self.core.mint.lease(lease.id)
        desktop = tx.get(Desktop, lease.desktop) if lease.desktop else None
        mcp_url = f"{self.url}/mcp" if self.url else None
        more["watchers"] = self.watchers(lease.id)
        return lease_view(lease, desktop, self.core.now(), url=self.url, mcp_url=mcp_url, **more)

    def _waiting_words(self, tx: Tx, lease: Lease, blocked: Blocked | None, outlook: Plan) -> str:
        if blocked is None:
            making = tx.find(Desktop, profile=lease.profile, stage=Stage.STARTING.value)
            progress = next((str(one.handle[PROGRESS]) for one in making if one.handle.get(PROGRESS)), "")
            return "its desktop is being made" + (f": {progress}" if progress else "")
        place = outlook.places.get(lease.id, 1)
        return f"number {place} in line for {_asked(blocked, lease)}"

    def _may_have_token(self, who: Caller, lease: Lease) -> bool:
        return (who.role is not None and who.role.includes(Role.OPERATOR)) or who.agent == lease.agent

    def _own(self, tx: Tx, who: Caller, lease_id: str) -> Lease:
        """The lease, if this caller may see it."""
        lease = self.core.get_lease(tx, lease_id)
        if who.lease is not None and who.lease != lease_id:
            raise DeniedError("a lease's token opens that lease and nothing else", code="other_lease")
        if who.role is None and who.agent != lease.agent and not self.is_parent(tx, who, lease):
            raise DeniedError(f"lease {lease_id} is not {who.who}'s", code="not_yours")
        return lease

    def is_parent(self, tx: Tx, who: Caller, lease: Lease) -> bool:
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

    async def release(self, who: Caller, lease_id: str, *, reason: str = "") -> LeaseView:
        """Give the desktop back, or leave the queue. Releasing what is over already changes nothing."""
        lease = await self.core.read(lambda tx: self._own(tx, who, lease_id))
        if who.role is not None:
            who.needs(Role.OPERATOR)
        if lease.live:
            waiting = lease.state is LeaseState.WAITING
            state = LeaseState.CANCELLED if waiting else LeaseState.RELEASED
            await self.ending.end(lease_id, state, reason=reason, by=who.who)
        return await self.lease(who, lease_id)


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
