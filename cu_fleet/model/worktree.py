"""A worktree: a run's own branch and folder of a git repository, and its life as one transition table.

It lies in its desktop's slot while its lease lives, and in the home before and after. Each state is written down before
what it says is done, and what it says can be done again: so whatever is killed when, nothing of it is lost, and nothing
is left behind. What a person approves is one tree, by its hash: what anybody writes into the folder later is not in it.
"""

import re
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from cu_fleet.model.errors import ConflictError
from cu_fleet.model.record import Record, Value


class WorktreeState(StrEnum):
    PLANNED = "planned"  # branch and folder are being made
    LENT = "lent"  # in the slot of its desktop, or on the way into it
    BACK = "back"  # its lease is over: it is being looked through and checked
    KEPT = "kept"  # changed: it waits for a person, or for its time to be up
    MERGING = "merging"  # approved: the target branch goes from one commit to the other
    REMOVING = "removing"
    GONE = "gone"


class WorktreeEvent(StrEnum):
    MADE = "made"
    RETURN = "return"
    JUDGED = "judged"
    MERGE = "merge"
    FAIL = "fail"  # it could not be merged: nothing was changed
    REMOVE = "remove"
    REMOVED = "removed"


_S, _E = WorktreeState, WorktreeEvent
TRANSITIONS: dict[WorktreeState, dict[WorktreeEvent, WorktreeState]] = {
    _S.PLANNED: {_E.MADE: _S.LENT, _E.REMOVE: _S.REMOVING},
    _S.LENT: {_E.RETURN: _S.BACK},
    _S.BACK: {_E.JUDGED: _S.KEPT, _E.REMOVE: _S.REMOVING},
    _S.KEPT: {_E.MERGE: _S.MERGING, _E.REMOVE: _S.REMOVING},
    _S.MERGING: {_E.REMOVE: _S.REMOVING, _E.FAIL: _S.KEPT},
    _S.REMOVING: {_E.REMOVED: _S.GONE},
    _S.GONE: {},
}
NOT_GONE = tuple(state.value for state in WorktreeState if state is not WorktreeState.GONE)
Verdict = Literal["", "none", "passed", "failed", "not run"]
Outcome = Literal["", "not made", "unchanged", "merged", "discarded", "too old"]


class Commits(Value):
    """What a merge takes the target branch from and to; written down before it is done."""

    before: str
    after: str
    tip: str  # the agent's own commit, of what was staged


class Worktree(Record):
    TABLE: ClassVar[str] = "worktree"
    COLUMNS: ClassVar[tuple[str, ...]] = ("lease", "desktop", "state", "created_at")

    id: str
    lease: str
    agent: str
    desktop: str
    state: WorktreeState = WorktreeState.PLANNED
    repository: str  # the folder that git keeps everything in
    owner: int  # the user whose repository it is, as whom git runs
    top: str | None = None  # where the repository's own work tree is
    name: str  # of the folder: ~/Shared/NAME
    base: str  # as it was asked for
    base_commit: str
    branch: str
    into: str | None = None  # the branch that it may be merged into
    protected: str | None = None  # the branch it would be merged into, were that not protected
    intent: str = ""  # what the run is for
    asked_by: str
    created_at: float
    place: str = ""  # where the folder lies while it is lent
    inode: tuple[int, int] | None = None  # the folder's own, by which it is known if it was renamed
    back_at: float | None = None
    until: float | None = None  # kept so long
    tip: str | None = None  # the last commit of the agent's own
    tree: str | None = None  # all that was there at the end: what a person sees, and what is merged
    commits: int = 0
    files: int = 0
    insertions: int = 0
    deletions: int = 0
    verdict: Verdict = ""
    problem: str = ""  # why it could not be staged, checked, merged or removed
    approval: str | None = None
    merge: Commits | None = None
    committed: str | None = None  # a commit on its own branch that a person asked for: the branch stays
    outcome: Outcome = ""
    by: str = ""  # who merged or discarded it
    size_bytes: int = 0


def moved(worktree: Worktree, event: WorktreeEvent, **changes: object) -> Worktree:
    """The worktree after `event`; raises, changing nothing, if its state does not allow that."""
    to = TRANSITIONS[worktree.state].get(event)
    if to is None:
        raise ConflictError(
            f'worktree {worktree.id} is {worktree.state.value}: it cannot "{event.value}" now',
            remedy=_REMEDIES.get(worktree.state, ""),
            code="illegal_move",
            worktree=worktree.id,
            state=worktree.state.value,
        )
    return worktree.but(state=to, **changes)


_REMEDIES = {
    _S.LENT: "it is its agent's until the lease ends: cu-fleet lease release LEASE",
    _S.BACK: "it is being checked; ask again soon",
    _S.MERGING: "ask again soon",
    _S.GONE: "nothing of it is left",
}


def branch_name(agent: str, worktree: str) -> str:
    """Dots that follow each other are nothing git takes in a name."""
    return f"cu-fleet/{re.sub(r'[.]+', '.', agent)}-{worktree.removeprefix('wt_')}"


def folder_name(repository: str) -> str:
    """What the folder is called: as its repository, of what no tool takes for anything else than a name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", repository.removesuffix(".git")).strip(".-")[:63] or "repository"


_NO_NUL = r"^[^\x00]*$"


class WorktreeAsk(Value):
    """A worktree for a run, as it is asked for."""

    repository: str = Field(
        max_length=4096, pattern=_NO_NUL, description="A folder of the git repository, on the controller's machine."
    )
    base: str = Field(max_length=500, pattern=_NO_NUL, description="The branch, tag or commit to begin from.")
    into: str | None = Field(
        None,
        max_length=500,
        pattern=_NO_NUL,
        description="The branch it may be merged into; none: `base`, if that is one.",
    )
    intent: str = Field("", max_length=2000, description="What the run is for; a person reads it.")


class WorktreePlan(Value):
    """What a worktree would be, looked up before anything is made."""

    repository: str
    top: str | None
    owner: str  # as whom git runs
    uid: int
    base: str
    base_commit: str
    into: str | None
    protected: str | None  # the branch that would have been the target, if nothing may be merged into it
    size_bytes: int  # of all its files
    review: tuple[str, ...]
    kept_for: float  # seconds


class WorktreeView(Value):
    worktree: str
    state: str
    lease: str
    agent: str
    desktop: str
    repository: str
    base: str
    base_commit: str
    branch: str
    into: str | None
    intent: str
    path: str | None  # on the controller's machine; None if nothing is there
    inside: str | None  # the same, as the desktop sees it
    commits: int
    files: int
    insertions: int
    deletions: int
    verdict: str
    problem: str
    approval: str | None
    tree: str | None
    committed: str | None
    merged: str | None  # the commit that the target branch came to
    outcome: str
    by: str
    size_bytes: int
    created_at: str
    back_at: str | None
    until: str | None
