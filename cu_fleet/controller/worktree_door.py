"""Worktrees as those see them who ask: planned, made for a run, listed, looked into, merged, discarded, cleared away.

Making one reads a repository of this machine and writes into it: that is for whoever owns the fleet, not for any
operator. Merging is a person's word, and no agent's.
"""

import asyncio
from functools import partial

from cu_fleet.controller.judging import SUMMARY
from cu_fleet.controller.worktrees import Worktrees
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.errors import ConflictError, NotFoundError
from cu_fleet.model.view import iso
from cu_fleet.model.worktree import (
    NOT_GONE,
    Worktree,
    WorktreeAsk,
    WorktreePlan,
    WorktreeState,
    WorktreeView,
)
from cu_fleet.stores.base import Tx

MOST = 8 << 20  # bytes of a whole diff
_SAME = {
    "state",
    "lease",
    "agent",
    "desktop",
    "repository",
    "base",
    "base_commit",
    "branch",
    "into",
    "intent",
    "commits",
}
_SAME |= {"files", "insertions", "deletions", "verdict", "problem", "approval", "tree", "committed", "outcome", "by"}
_SAME |= {"size_bytes"}


class WorktreeDoor:
    def __init__(self, worktrees: Worktrees) -> None:
        self.worktrees = worktrees
        self.yard = worktrees.yard
        self.core = worktrees.core

    async def plan(self, who: Caller, ask: WorktreeAsk) -> WorktreePlan:
        who.needs(Role.ADMIN)
        return await self.worktrees.planning.plan(ask)

    async def make(self, who: Caller, lease: str, ask: WorktreeAsk) -> WorktreeView:
        who.needs(Role.ADMIN)
        return self._view(await self.worktrees.make(who, lease, ask))

    async def one(self, who: Caller, key: str, *, hold: float = 0.0) -> WorktreeView:
        """One; with `hold`, as soon as nothing is being done to it, or when the time is up."""
        who.needs(Role.OBSERVER)
        loop = asyncio.get_running_loop()
        until = loop.time() + hold
        while True:
            rings, left = self.core.bell.rings, until - loop.time()
            row = await self.yard.now(key)
            if row.state in (WorktreeState.KEPT, WorktreeState.GONE) or left <= 0 or self.core.closing:
                return self._view(row)
            await self.core.bell.heard(rings, left)

    async def listing(self, who: Caller, *, everything: bool = False, lease: str | None = None) -> list[WorktreeView]:
        who.needs(Role.OBSERVER)
        equal: dict[str, object] = {} if everything else {"state": NOT_GONE}
        if lease:
            equal["lease"] = lease
        return [self._view(row) for row in await self.core.read(lambda tx: tx.find(Worktree, **equal))]

    async def summary(self, who: Caller, key: str) -> str:
        who.needs(Role.OBSERVER)
        row = await self._judged(key)
        return await self.yard.in_thread(self.yard.home(row).joinpath(SUMMARY).read_text)

    async def diff(self, who: Caller, key: str) -> str:
        who.needs(Role.OBSERVER)
        row = await self._judged(key)
        said, cut = await self.yard.of(row, lambda repository: repository.diff(row.base_commit, row.tree or "", MOST))
        if cut:
            raise ConflictError(
                f"the diff of worktree {key} has more than {MOST >> 20} MB",
                remedy=f"look at it in {self.yard.folder(row)}",
                code="too_large",
            )
        return said

    async def _judged(self, key: str) -> Worktree:
        row = await self.yard.now(key)
        if row.tree is None or row.state is WorktreeState.GONE:
            why = row.problem or (row.outcome if row.state is WorktreeState.GONE else "its lease is not over yet")
            raise NotFoundError(f"worktree {key} has nothing to show: {why}", code="nothing_to_show", worktree=key)
        return row

    async def merge(self, who: Caller, key: str, reason: str = "") -> WorktreeView:
        """A person says yes, and it is done."""
        who.needs(Role.OPERATOR)
        await self.worktrees.judging.approve(who, key, reason)
        return self._view(await self.yard.now(key))

    async def discard(self, who: Caller, key: str) -> WorktreeView:
        """A person gives it up: its folder and its branch go."""
        who.needs(Role.OPERATOR)
        return self._view(await self.worktrees.remove(key, "discarded", who.who))

    async def prune(self, who: Caller, *, older: float) -> list[WorktreeView]:
        """Give up all that have waited for a person for so long."""
        who.needs(Role.OPERATOR)
        before = self.core.now() - older
        rows = await self.core.read(partial(_kept_before, before))
        return [self._view(await self.worktrees.remove(row.id, "discarded", who.who)) for row in rows]

    def _view(self, row: Worktree) -> WorktreeView:
        """Where it is now: in a slot, where its desktop sees it too, or in the home."""
        gone = row.state in (WorktreeState.GONE, WorktreeState.PLANNED)
        return WorktreeView.model_validate(
            {
                **row.model_dump(include=_SAME),
                "worktree": row.id,
                "path": None if gone else row.place or str(self.yard.folder(row)),
                "inside": f"~/Shared/{row.name}" if row.place else None,
                "merged": row.merge.after if row.merge and row.outcome == "merged" else None,
                "created_at": iso(row.created_at),
                "back_at": iso(row.back_at),
                "until": iso(row.until) if row.state is WorktreeState.KEPT else None,
            }
        )


def _kept_before(before: float, tx: Tx) -> list[Worktree]:
    kept = tx.find(Worktree, state=WorktreeState.KEPT)
    return [row for row in kept if row.back_at is not None and row.back_at <= before]
