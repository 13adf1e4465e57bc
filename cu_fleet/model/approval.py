"""An approval: a person's answer to what an agent may not do unasked, and its life as one transition table.

It allows one thing, named by `subject`, once. Of kind `action` that is a digest of a batch as it would be sent, under
one lease and one generation: other actions, another lease, or the same desktop after it changed hands need another
answer. Such a one holds its lease's clock while it waits, and is void when a person takes over or the lease ends. Of
kind `merge` it is a worktree that is left behind, which no longer rests on the lease.

No answer in time is a no. Nothing happens by itself when the answer comes: whoever asked comes back with the approval.
"""

import hmac
import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from cu_fleet.model.action import Action, Redact, for_record, parse_actions
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError
from cu_fleet.model.record import Record, Value

MOST_WAITING = 16  # of one lease at once
MOST_BYTES = 64 << 10  # of the actions that a person is to read


class Kind(StrEnum):
    ACTION = "action"
    MERGE = "merge"


class ApprovalState(StrEnum):
    WAITING = "waiting"
    APPROVED = "approved"  # and not used yet
    DENIED = "denied"
    VOID = "void"  # what it was asked for is gone
    EXPIRED = "expired"  # not answered, or not used, in time
    USED = "used"


class ApprovalEvent(StrEnum):
    APPROVE = "approve"
    DENY = "deny"
    VOID = "void"
    EXPIRE = "expire"
    USE = "use"
    FAIL = "fail"  # what it allowed could not be done: a person may answer again


_S, _E = ApprovalState, ApprovalEvent
TRANSITIONS: dict[ApprovalState, dict[ApprovalEvent, ApprovalState]] = {
    _S.WAITING: {_E.APPROVE: _S.APPROVED, _E.DENY: _S.DENIED, _E.VOID: _S.VOID, _E.EXPIRE: _S.EXPIRED},
    _S.APPROVED: {_E.USE: _S.USED, _E.VOID: _S.VOID, _E.EXPIRE: _S.EXPIRED, _E.FAIL: _S.WAITING},
    _S.DENIED: {},
    _S.VOID: {},
    _S.EXPIRED: {},
    _S.USED: {},
}
OPEN = tuple(state for state, row in TRANSITIONS.items() if row)
SETTLED = tuple(state for state, row in TRANSITIONS.items() if not row)


class Scope(StrEnum):
    """How far an answer reaches."""

    ONCE = "once"
    LEASE = "lease"
    ALWAYS = "always"


SCOPES = {Kind.ACTION: (Scope.ONCE,), Kind.MERGE: (Scope.ONCE,)}  # what a person may answer


class Check(Value):
    """Something that a vendor's model wants a person to look at first."""

    id: Annotated[str, Field(max_length=200)] = ""
    code: Annotated[str, Field(max_length=200)] | None = None
    message: Annotated[str, Field(max_length=4000)] | None = None

    @property
    def words(self) -> str:
        return self.message or self.code or self.id


class Approval(Record):
    TABLE: ClassVar[str] = "approval"
    COLUMNS: ClassVar[tuple[str, ...]] = ("lease", "kind", "subject", "state", "asked_at")

    id: str
    kind: Kind
    subject: str  # what it is bound to: a digest of actions, or the id of something
    lease: str
    agent: str
    desktop: str | None = None
    generation: int | None = None
    reason: str = ""  # why a person is asked, in the asker's words
    checks: tuple[Check, ...] = ()
    actions: tuple[dict[str, object], ...] = ()  # in pixels of the screen; what they type is in clear while it is open
    facts: dict[str, object] = {}
    frame: str | None = None  # sha256 of the screen when it was asked
    state: ApprovalState = ApprovalState.WAITING
    scope: Scope = Scope.ONCE
    asked_at: float
    asked_by: str
    deadline: float  # for the answer; then, for its use
    by: str = ""  # who answered, or ended it
    answer: str = ""  # why, in that person's words
    answered_at: float | None = None
    settled_at: float | None = None
    result: dict[str, object] | None = None  # what came of it, where answering did it

    @property
    def holds(self) -> bool:
        """Whether its lease's clock stands still while it waits, and its lease's end makes it void."""
        return self.kind is Kind.ACTION


def moved(approval: Approval, event: ApprovalEvent, **changes: object) -> Approval:
    """The approval after `event`; raises, changing nothing, if its state does not allow that."""
    to = TRANSITIONS[approval.state].get(event)
    if to is None:
        raise ConflictError(
            f"approval {approval.id} {_WORDS[approval.state](approval)}",
            remedy="nothing was changed",
            code=f"approval_{approval.state.value}",
            approval=approval.id,
            state=approval.state.value,
        )
    return approval.but(state=to, **changes)


def redacted(approval: Approval, redact: Redact) -> Approval:
    """Settled: what its actions would have typed need not be known any more."""
    kept = [for_record(action, redact) for action in parse_actions(approval.actions)]
    return approval.but(actions=tuple(kept))


def digest(actions: Iterable[Action], key: bytes) -> str:
    """What stands for these very actions, and tells nothing of what they type."""
    text = json.dumps([action.model_dump(mode="json") for action in actions], sort_keys=True, separators=(",", ":"))
    return hmac.digest(key, b"approval\n" + text.encode("utf-8", "surrogatepass"), "sha256").hex()


def as_of(approval: Approval, now: float) -> Approval:
    """What is late is over, whether that was noticed already or not."""
    late = approval.state in OPEN and approval.deadline <= now
    return approval.but(state=ApprovalState.EXPIRED) if late else approval


def why_not(approval: Approval, *, lease: str, generation: int | None, subject: str) -> FleetError | None:
    """Why this approval does not allow that now, in words for whoever asked; None if it does."""
    facts: dict[str, object] = {"approval": approval.id, "state": approval.state.value}
    if approval.lease != lease:
        return DeniedError(f"approval {approval.id} is of another lease", code="other_lease", approval=approval.id)
    if approval.state in OPEN and approval.generation != generation:
        what = f"approval {approval.id} is of generation {approval.generation} of a desktop that is at {generation} now"
        return ConflictError(what, remedy="look again, and ask anew", code="old_generation", **facts)
    if approval.subject != subject:
        return ConflictError(
            f"approval {approval.id} was asked for other actions",
            remedy="send the very actions that it was asked for, or ask anew for these",
            code="other_actions",
            **facts,
        )
    return None if approval.state is ApprovalState.APPROVED else _refusal(approval, facts)


def _refusal(approval: Approval, facts: dict[str, object]) -> FleetError:
    kind = DeniedError if approval.state in (ApprovalState.DENIED, ApprovalState.EXPIRED) else ConflictError
    return kind(
        f"approval {approval.id} {_WORDS[approval.state](approval)}",
        remedy=_REMEDIES.get(approval.state, "nothing was sent"),
        code=f"approval_{approval.state.value}",
        by=approval.by,
        reason=approval.answer,
        **facts,
    )


def _by(words: str) -> Callable[[Approval], str]:
    return lambda approval: f"{words} by {approval.by}" + (f": {approval.answer}" if approval.answer else "")


def _late(approval: Approval) -> str:
    if approval.answered_at is not None:
        return "was not used in time after its answer"
    return "was not answered in time, which is a no"


_WORDS: dict[ApprovalState, Callable[[Approval], str]] = {
    ApprovalState.WAITING: lambda _: "waits for a person's answer",
    ApprovalState.APPROVED: _by("was approved"),
    ApprovalState.DENIED: _by("was denied"),
    ApprovalState.VOID: lambda approval: f"is void: {approval.answer or 'what it was asked for is gone'}",
    ApprovalState.EXPIRED: _late,
    ApprovalState.USED: lambda _: "was used already, and allows something once",
}
_REMEDIES = {
    ApprovalState.WAITING: "nothing was sent; wait for the answer, then send the very same actions with it again",
    ApprovalState.DENIED: "nothing was sent; do not try it another way, ask what to do instead",
    ApprovalState.VOID: "nothing was sent; look again, and ask anew",
    ApprovalState.USED: "nothing was sent; ask anew",
}
