"""A lease: the exclusive right of one agent to one whole desktop, until a time.

A lease lives by its clock, not by a connection. The clock stands still while the lease is paused, a person has taken
over, or is to answer something: then `expires_at` is None and `remaining` holds the seconds it will get back.
"""

from enum import StrEnum
from typing import ClassVar

from cu_fleet.model.errors import FleetError, LeaseOverError, LeasePausedError
from cu_fleet.model.record import Record

DEFAULT_TTL = 15 * 60.0


class LeaseState(StrEnum):
    WAITING = "waiting"  # asked for, not yet granted
    ACTIVE = "active"
    RELEASED = "released"
    EXPIRED = "expired"
    REVOKED = "revoked"
    REASSIGNED = "reassigned"
    CANCELLED = "cancelled"  # left the queue: withdrawn, or its deadline passed
    LOST = "lost"  # its desktop died


class Control(StrEnum):
    """Who may move the desktop's pointer and keys."""

    AGENT = "agent"
    PAUSED = "paused"
    HUMAN = "human"
    NONE = "none"


LIVE = frozenset({LeaseState.WAITING, LeaseState.ACTIVE})


class Lease(Record):
    TABLE: ClassVar[str] = "lease"
    COLUMNS: ClassVar[tuple[str, ...]] = ("agent", "state", "desktop", "request_id", "asked_at")

    id: str
    agent: str
    profile: str
    backend: str
    desktop_name: str | None = None
    resources: tuple[str, ...] = ()
    state: LeaseState = LeaseState.WAITING
    control: Control = Control.NONE
    ttl: float = DEFAULT_TTL
    view: int | None = None  # longest edge of the pictures its agent is shown; None: all the screen's pixels
    place: int = 0  # order in the queue: a number from the store, never from a clock
    asked_at: float
    asked_by: str  # "operator ana" or "agent codex-a"
    wait_until: float | None = None  # when a waiting request leaves the queue; None: never
    request_id: str | None = None
    granted_at: float | None = None
    expires_at: float | None = None
    remaining: float | None = None
    desktop: str | None = None
    generation: int | None = None
    ended_at: float | None = None
    reason: str = ""  # why it is paused or over, in the words the agent will read
    by: str = ""  # who paused or ended it
    looking: bool = True  # whether a paused agent may still look
    approvals: tuple[str, ...] = ()  # what it waits for a person to answer

    @property
    def live(self) -> bool:
        return self.state in LIVE


def granted(lease: Lease, desktop: str, generation: int, now: float) -> Lease:
    return lease.but(
        state=LeaseState.ACTIVE,
        control=Control.AGENT,
        desktop=desktop,
        generation=generation,
        granted_at=now,
        expires_at=now + lease.ttl,
        wait_until=None,
    )


def renewed(lease: Lease, now: float, ttl: float | None = None) -> Lease:
    """A full term from now; a stopped clock gets its full term back when it runs again."""
    term = ttl or lease.ttl
    if lease.expires_at is None:
        return lease.but(ttl=term, remaining=term)
    return lease.but(ttl=term, expires_at=max(lease.expires_at, now + term) if ttl is None else now + term)


def stopped_clock(lease: Lease, control: Control, now: float, *, reason: str, by: str, looking: bool = True) -> Lease:
    """Paused or taken over: no input from the agent, and no time passes for it."""
    remaining = lease.remaining if lease.expires_at is None else max(0.0, lease.expires_at - now)
    return lease.but(control=control, expires_at=None, remaining=remaining, reason=reason, by=by, looking=looking)


def resumed(lease: Lease, now: float) -> Lease:
    """Back to the agent, with the time it had left."""
    return _ticking(lease.but(control=Control.AGENT, reason="", by="", looking=True), now)


def asking(lease: Lease, approval: str, now: float) -> Lease:
    """It waits for a person's answer: no time passes for it."""
    remaining = lease.remaining if lease.expires_at is None else max(0.0, lease.expires_at - now)
    return lease.but(approvals=(*lease.approvals, approval), expires_at=None, remaining=remaining)


def answered(lease: Lease, approval: str, now: float) -> Lease:
    return _ticking(lease.but(approvals=tuple(one for one in lease.approvals if one != approval)), now)


def _ticking(lease: Lease, now: float) -> Lease:
    """Its clock goes on if it waits for nobody any more, with a few seconds at least, so that its agent can notice."""
    if lease.expires_at is not None or lease.control is not Control.AGENT or lease.approvals:
        return lease
    return lease.but(expires_at=now + max(lease.remaining or 0.0, 10.0), remaining=None)


def slept(lease: Lease, down: float) -> Lease:
    """After the controller was away for `down` seconds: that time does not count, nor does one renewal period."""
    if lease.expires_at is None or lease.state is not LeaseState.ACTIVE:
        return lease
    return lease.but(expires_at=lease.expires_at + down + lease.ttl / 3)


def ended(lease: Lease, state: LeaseState, now: float, *, reason: str, by: str) -> Lease:
    return lease.but(
        state=state,
        control=Control.NONE,
        ended_at=now,
        expires_at=None,
        remaining=None,
        wait_until=None,
        reason=reason,
        by=by,
        approvals=(),
    )


ENDS = {
    LeaseState.RELEASED: "was released",
    LeaseState.EXPIRED: "ran out of time",
    LeaseState.REVOKED: "was revoked",
    LeaseState.REASSIGNED: "was given to another agent",
    LeaseState.CANCELLED: "left the queue",
    LeaseState.LOST: "lost its desktop",
}


def why_not(lease: Lease, *, look: bool = False) -> FleetError | None:
    """Why this lease's agent may not act (or look) now, in words for the agent; None if it may."""
    if lease.state is LeaseState.WAITING:
        return LeasePausedError(
            f"lease {lease.id} is still waiting for a desktop",
            remedy="ask again when it is granted",
            code="lease_waiting",
            lease=lease.id,
        )
    if lease.state is not LeaseState.ACTIVE:
        return _over(lease)
    if lease.control is Control.AGENT or (look and lease.looking):
        return None
    who = lease.by or "an operator"
    what = "taken over" if lease.control is Control.HUMAN else "paused"
    why = f": {lease.reason}" if lease.reason else ""
    return LeasePausedError(
        f"lease {lease.id} is {what} by {who}{why}",
        remedy="wait until it is resumed; nothing was sent",
        code=f"lease_{lease.control.value}",
        lease=lease.id,
        by=who,
        reason=lease.reason,
    )


def _over(lease: Lease) -> LeaseOverError:
    by = f" by {lease.by}" if lease.by and lease.state is not LeaseState.EXPIRED else ""
    why = f": {lease.reason}" if lease.reason else ""
    remedies = {
        LeaseState.REVOKED: "stop; a person decides whether you may lease again",
        LeaseState.EXPIRED: "acquire a new lease, and renew it in time",
        LeaseState.LOST: "acquire a new lease",
    }
    return LeaseOverError(
        f"lease {lease.id} {ENDS[lease.state]}{by}{why}",
        remedy=remedies.get(lease.state, ""),
        code=f"lease_{lease.state.value}",
        lease=lease.id,
        state=lease.state.value,
        by=lease.by,
        reason=lease.reason,
    )
