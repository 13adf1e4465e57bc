"""Who may act on a lease's desktop, or look at it, at this moment.

The answer counts in the transaction that writes down what was done. Before it, to know which desktop is meant and to
refuse early, what was read last is good enough, until anything but the record changes.
"""

from cu_fleet.controller.core import Core, stale
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, LeasePausedError, NotFoundError
from cu_fleet.model.lease import Control, Lease, renewed, why_not
from cu_fleet.stores.base import Tx

_RENEW_AFTER = 1.0  # seconds a lease must have lost before an action writes its renewal


class Seats:
    """Leases and their desktops as they were when anything last changed."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._seats: dict[str, tuple[Lease, Desktop]] = {}
        self._as_of = -1

    async def of(self, who: Caller, lease_id: str, *, look: bool = False) -> tuple[Lease, Desktop]:
        """The lease and its desktop, if this caller may act on it (or look at it); to be checked again by `allowed`."""
        as_of = self.core.changes
        if self._as_of != as_of:
            self._seats, self._as_of = {}, as_of
        seat = self._seats.get(lease_id)
        if seat and not may_not(who, seat[0], look=look):
            return seat
        seat = await self.core.read(lambda tx: allowed(self.core, tx, who, lease_id, look=look))
        if self._as_of == as_of:
            self._seats[lease_id] = seat
        return seat


def allowed(
    core: Core, tx: Tx, who: Caller, lease_id: str, *, look: bool = False, generation: int | None = None
) -> tuple[Lease, Desktop]:
    """The lease and its desktop, if this caller may act on it (or look at it) at this moment, as of that generation."""
    lease = core.get_lease(tx, lease_id)
    refusal = may_not(who, lease, look=look)
    if refusal:
        raise refusal
    desktop = core.get_desktop(tx, lease.desktop or "")
    if desktop.stage is not Stage.HELD or desktop.generation != lease.generation:
        raise stale(desktop)
    if generation is not None and desktop.generation != generation:
        raise ConflictError(f"desktop {desktop.id} has changed hands", code="old_generation")
    if desktop.frozen:
        raise ConflictError(
            f"desktop {desktop.id} is frozen", remedy=f"cu-fleet desktop thaw {desktop.id}", code="frozen"
        )
    return lease, desktop


def may_not(who: Caller, lease: Lease, *, look: bool = False) -> FleetError | None:
    """Why this caller may not act on the lease's desktop (or look at it) now."""
    if who.lease is not None:
        if who.lease != lease.id:
            return DeniedError("a lease's token opens that lease and nothing else", code="other_lease")
        return why_not(lease, look=look)
    if who.role is None:
        return DeniedError(
            f"{who.who} may not use a desktop with its agent token",
            remedy="use the token that the lease was granted with",
            code="needs_lease_token",
        )
    who.needs(Role.OBSERVER if look else Role.OPERATOR)
    if not lease.live or lease.desktop is None:
        return why_not(lease, look=look) or NotFoundError(f"lease {lease.id} has no desktop yet", code="no_desktop")
    if look or lease.control is Control.AGENT:
        return None
    if lease.control is Control.HUMAN and lease.by == who.who:
        return None
    return why_not(lease) or LeasePausedError(f"lease {lease.id} is not yours to drive", code="lease_human")


def renew(tx: Tx, lease: Lease, who: Caller, now: float) -> None:
    """Every action of the agent's own renews its lease."""
    if who.lease and lease.expires_at is not None and lease.expires_at < now + lease.ttl - _RENEW_AFTER:
        tx.put(renewed(lease, now))
