"""Approvals within a transaction: each move of one, with what it means for its lease and its entry in the record."""

from cu_fleet.controller.core import Core
from cu_fleet.model import lease as lifecycle
from cu_fleet.model.approval import (
    MOST_WAITING,
    OPEN,
    SETTLED,
    Approval,
    ApprovalEvent,
    ApprovalState,
    Kind,
    as_of,
    moved,
    redacted,
    why_not,
)
from cu_fleet.model.audit import redacted as hashed
from cu_fleet.model.errors import ConflictError, NotFoundError
from cu_fleet.model.lease import Lease
from cu_fleet.stores.base import Tx

_DID = {
    ApprovalEvent.APPROVE: "approval.approved",
    ApprovalEvent.DENY: "approval.denied",
    ApprovalEvent.VOID: "approval.void",
    ApprovalEvent.EXPIRE: "approval.expired",
    ApprovalEvent.USE: "approval.used",
    ApprovalEvent.FAIL: "approval.failed",
}


def get(core: Core, tx: Tx, approval_id: str) -> Approval:
    """An approval as it is at this moment."""
    found = tx.get(Approval, approval_id)
    if found is None:
        raise NotFoundError(f"there is no approval {approval_id}", remedy="cu-fleet approval list", code="no_approval")
    return as_of(found, core.now())


def find(tx: Tx, approval: Approval) -> Approval | None:
    """One that is open and asks the same."""
    same = {"lease": approval.lease, "kind": approval.kind, "subject": approval.subject}
    return next(iter(tx.find(Approval, state=OPEN, **same)), None)


def ask(core: Core, tx: Tx, approval: Approval) -> None:
    """Write a question down; its lease's clock stands still from now on, if it rests on one."""
    lease = tx.get(Lease, approval.lease)
    waiting = tx.find(Approval, lease=approval.lease, state=ApprovalState.WAITING)
    if len(waiting) >= MOST_WAITING:
        raise ConflictError(
            f"lease {approval.lease} waits for {len(waiting)} answers already",
            remedy="wait for them first",
            code="too_many_approvals",
        )
    tx.put(approval)
    if lease and approval.holds:
        tx.put(lifecycle.asking(lease, approval.id, core.now()))
    facts = {**_facts(core, approval), "reason": approval.reason, "checks": [x.model_dump() for x in approval.checks]}
    facts |= {"actions": list(_hidden(core, approval).actions), "facts": approval.facts, "deadline": approval.deadline}
    frames = (approval.frame,) if approval.frame else ()
    _record(core, tx, "approval.asked", approval.asked_by, approval, frames, facts)


def settle(core: Core, tx: Tx, approval: Approval, event: ApprovalEvent, who: str, /, **changes: object) -> Approval:
    """Make a move of an approval, on record; its lease's clock goes on when nothing of it waits any more."""
    now = core.now()
    after = moved(approval, event, **changes)
    if after.state in SETTLED:
        after = _hidden(core, after).but(settled_at=now)
    tx.put(after)
    lease = tx.get(Lease, approval.lease) if approval.holds else None
    if lease and approval.id in lease.approvals:
        tx.put(lifecycle.answered(lease, approval.id, now))
    facts = {**_facts(core, after), "reason": after.answer}
    if after.result is not None:
        facts["result"] = after.result
    _record(core, tx, _DID[event], who, after, (), facts)
    return after


def void(core: Core, tx: Tx, lease: Lease, by: str, why: str) -> Lease:
    """What a lease waits for, or was allowed, is no more; the lease as it is then."""
    for approval in tx.find(Approval, lease=lease.id, kind=Kind.ACTION, state=OPEN):
        settle(core, tx, approval, ApprovalEvent.VOID, by, by=by, answer=why)
    return core.get_lease(tx, lease.id)


def withdraw(core: Core, tx: Tx, kind: Kind, subject: str, by: str, why: str) -> None:
    """What was asked is settled otherwise, or gone. One that is being done is settled by whoever does it."""
    for approval in tx.find(Approval, kind=kind, subject=subject, state=ApprovalState.WAITING):
        settle(core, tx, approval, ApprovalEvent.VOID, by, by=by, answer=why)


def agreed(core: Core, tx: Tx, lease: Lease, who: str, approval_id: str, subject: str) -> None:
    """What a person must have agreed to before it is sent: whatever its caller names an approval for. It is used up."""
    approval = get(core, tx, approval_id)
    refusal = why_not(approval, lease=lease.id, generation=lease.generation, subject=subject)
    if refusal:
        raise refusal
    settle(core, tx, approval, ApprovalEvent.USE, who)


def expire(core: Core, tx: Tx) -> None:
    """No answer in time is a no."""
    for approval in tx.find(Approval, state=OPEN):
        if approval.deadline <= core.now():
            settle(core, tx, approval, ApprovalEvent.EXPIRE, "controller")


def deadlines(tx: Tx) -> list[float]:
    return [approval.deadline for approval in tx.find(Approval, state=OPEN)]


def forget(tx: Tx, before: float) -> None:
    """Those long settled; the record keeps them."""
    for approval in tx.find(Approval, state=SETTLED):
        if (approval.settled_at or 0.0) < before:
            tx.delete(approval)


def _hidden(core: Core, approval: Approval) -> Approval:
    return redacted(approval, lambda text: hashed(text, core.redaction_key))


def _facts(core: Core, approval: Approval) -> dict[str, object]:
    return {"approval": approval.id, "kind": approval.kind.value, "subject": approval.subject}


def _record(
    core: Core, tx: Tx, what: str, by: str, approval: Approval, frames: tuple[str, ...], facts: dict[str, object]
) -> None:
    lease = tx.get(Lease, approval.lease)
    core.record(tx, what, by, lease=lease, frames=frames, facts=facts)
