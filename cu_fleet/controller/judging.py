"""What becomes of a worktree that is back: looked through, checked, put before a person, and merged if one says yes.

What a person sees is one tree, and nothing else is ever merged. A merge is written down, with the commit that the
target branch comes from and the one it goes to, before the branch is moved; moving it is refused by git if somebody
else has moved it meanwhile. So it is done whole or not at all, wherever it is cut off.
"""

import asyncio
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cu_fleet.controller import merging, reviewing
from cu_fleet.controller.approving import Approving
from cu_fleet.controller.carrying import size_of, take_in, write_out
from cu_fleet.controller.core import folder
from cu_fleet.controller.git import Owner
from cu_fleet.controller.merging import Place
from cu_fleet.controller.pending import withdraw
from cu_fleet.controller.repository import Repository
from cu_fleet.controller.reviewing import Findings, Number, Review
from cu_fleet.controller.yard import Yard
from cu_fleet.model.access import Caller
from cu_fleet.model.approval import OPEN, Approval, Kind
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError
from cu_fleet.model.lease import Lease
from cu_fleet.model.worktree import Worktree, WorktreeEvent, WorktreeState, moved
from cu_fleet.stores.base import Tx

_PASSABLE = "/var/tmp"  # noqa: S108 - what is made there is made anew, and private
MOST_SHOWN = 200 << 10  # bytes of the diff in a summary
SUMMARY = "summary.md"
_LOG = 100
_AT_ONCE = 3  # worktrees that are looked through and checked
_INTENTS = 2000  # entries of the record that are looked through
_S, _E = WorktreeState, WorktreeEvent


class Judging:
    def __init__(self, yard: Yard, approving: Approving) -> None:
        self.yard = yard
        self.core = yard.core
        self.approving = approving
        self.poke: Callable[[str], object] = lambda key: None  # set by the worktrees: it has something to do
        approving.on_approved[Kind.MERGE] = self._approved
        self._room = asyncio.Semaphore(_AT_ONCE)

    # looking through it

    async def judge(self, row: Worktree) -> None:
        """Find out what the agent left, have it checked, and ask a person, or remove what is as it was."""
        async with self._room:
            await self._judge(row)

    async def _judge(self, row: Worktree) -> None:
        place = self.yard.folder(row)
        try:
            if place.exists():
                await self.yard.in_thread(_take_back, place)
                await self.yard.of(row, lambda repository: repository.point(row, place))
            found = await self.yard.of(row, partial(self._look, row))
        except (FleetError, OSError) as e:
            await self._kept(row, None, Review(""), f"it could not be looked through: {e}")
            return
        if found is None:
            after = moved(row, _E.REMOVE, outcome="unchanged", by="controller")
            await self.core.change(lambda tx: self.yard.put(tx, after, "unchanged", "controller"))
            return
        await self._kept(row, found, await self._checked(row, found), row.problem)

    def _look(self, row: Worktree, repository: Repository) -> Findings | None:
        tip, place = repository.agents_tip(row), self.yard.folder(row)
        tree, taken = repository.commit_tree_of(tip), None
        if place.exists():
            had = repository.tree(tip)
            with tempfile.TemporaryFile(dir=self.yard.home(row)) as changes, repository.ignoring() as ignored:
                changes.write(repository.head(row, tip, self.core.now()))
                taken = take_in(place, had, ignored, changes, repository.hash_name)
                if taken.changed:
                    tree = repository.stage(row, changes)
        left_out, strange = (taken.left_out, taken.strange) if taken else ([], [])
        if tip == row.base_commit and tree == repository.commit_tree_of(tip) and not left_out:
            return None
        diff, cut = repository.diff(row.base_commit, tree, MOST_SHOWN)
        return Findings(
            tip=tip,
            tree=tree,
            commits=repository.commits(row.base_commit, tip),
            log=repository.log(row.base_commit, tip, _LOG),
            numbers=[Number(*one) for one in repository.numbers(row.base_commit, tree)],
            diff=diff,
            cut=cut,
            left_out=left_out,
            strange=strange,
        )

    async def _checked(self, row: Worktree, found: Findings) -> Review:
        settings = self.core.settings
        if not settings.review:
            return Review("none")
        owner, copy = Owner(row.owner), await self.yard.in_thread(self._room_for, row)
        try:
            await self.yard.of(row, partial(_copied, found.tree, copy))
            return await reviewing.checked(settings.review, copy, owner, settings.home, settings.review_timeout)
        except (FleetError, OSError) as e:
            return Review("not run", str(e))
        finally:
            await asyncio.shield(self.yard.in_thread(self.yard.wipe, copy))

    def _room_for(self, row: Worktree) -> Path:
        """Where the checks' copy lies: in the home, or where another user can get at it."""
        if Owner(row.owner).ours:
            self.yard.wipe(place := self.yard.home(row) / "review")
            place.mkdir(mode=0o700)
            return place
        for left in Path(_PASSABLE).glob(f"cu-fleet-{row.id}-*"):
            self.yard.wipe(left)
        return Path(tempfile.mkdtemp(prefix=f"cu-fleet-{row.id}-", dir=_PASSABLE))

    async def _kept(self, row: Worktree, found: Findings | None, review: Review, problem: str) -> None:
        """Written down, with what a person is asked."""
        size = await self.yard.in_thread(size_of, folder(self.yard.home(row)))
        more: dict[str, object] = {"problem": problem, "verdict": review.verdict, "size_bytes": size}
        if found:
            intents = await self.core.read(partial(_intents, row.lease))
            text = reviewing.summary(row, found, review, intents)
            await self.yard.in_thread((folder(self.yard.home(row)) / SUMMARY).write_text, text)
            more |= {"tip": found.tip, "tree": found.tree, "commits": found.commits, "files": len(found.numbers)}
            more |= {"insertions": found.insertions, "deletions": found.deletions}

        def work(tx: Tx) -> None:
            after = moved(self.yard.get(tx, row.id), _E.JUDGED, **more)
            lease = tx.get(Lease, row.lease)
            if found and lease:
                after = after.but(approval=self._ask(tx, after, lease, found, review).id)
            facts = {"tree": after.tree, "verdict": after.verdict, "problem": problem, "approval": after.approval}
            self.yard.put(tx, after, "kept", "controller", **facts)

        await self.core.change(work)

    def _ask(self, tx: Tx, row: Worktree, lease: Lease, found: Findings, review: Review) -> Approval:
        words = reviewing.words_of(found)
        to = f"merge it into {row.into}" if row.into else f"commit it on {row.branch}, for a pull request"
        facts: dict[str, object] = {
            "worktree": row.id,
            "branch": row.branch,
            "base": row.base,
            "into": row.into,
            "changes": words,
            "review": review.verdict,
            "review_said": reviewing.shown(review.said[-2000:]),
            "look_twice": [reviewing.shown(line) for line in found.look_twice[:10]],
            "see": f"cu-fleet worktree show {row.id}",
        }
        within = max(1.0, (row.until or 0.0) - self.core.now())
        reason = f"agent {row.agent} changed {words}; review: {review.verdict}; {to}"
        return self.approving.ask_about(tx, Kind.MERGE, row.id, lease, reason=reason, facts=facts, within=within)

    # merging

    async def _approved(self, approval: Approval, who: Caller) -> dict[str, object]:
        return await self.merge(approval.subject, who)

    async def approve(self, who: Caller, key: str, reason: str) -> None:
        """`worktree merge`: the answer to its approval or, where none is open any more, a person's own word."""
        row = await self.yard.now(key)
        approval = await self.core.read(lambda tx: tx.get(Approval, row.approval or ""))
        if approval and approval.state in OPEN:
            await self.approving.answer(who, approval.id, approve=True, reason=reason)
        else:
            await self.merge(key, who)

    async def merge(self, key: str, who: Caller) -> dict[str, object]:
        """Commit what was staged in the agent's name and merge it; refused, nothing is changed."""
        async with self.yard.turn_soon(key):
            row = await self.yard.now(key)
            if row.outcome == "merged":
                return _told(row)
            if row.tree is None or row.state is not _S.KEPT:
                why = row.problem if row.state is _S.KEPT else f"it is {row.state.value}"
                raise ConflictError(f"worktree {key} cannot be merged: {why}", code="not_mergeable", worktree=key)
            tip = await self.yard.of(row, partial(merging.committed, row, who))
            if row.into is None or self.yard.protected(row.into):
                await self._offer(row, tip, who)
            commits, places = await self.yard.of(row, partial(merging.prepared, row, tip, who))
            begun = moved(row, _E.MERGE, merge=commits, by=who.who)
            await self.core.change(lambda tx: self.yard.put(tx, begun, "merging", who.who, **commits.model_dump()))
            after = await self._move(begun, places)
        self.poke(key)
        return _told(after)

    async def _offer(self, row: Worktree, tip: str, who: Caller) -> None:
        """What may not be merged here is committed on its own branch, which stays, and the rest is said."""
        if row.committed != tip:
            await self.yard.of(row, partial(merging.put_on_branch, row, tip))
            done = row.but(committed=tip)
            await self.core.change(lambda tx: self.yard.put(tx, done, "committed", who.who, commit=tip))
        target = row.into or row.protected
        why = f"{target} is a protected branch" if target else f"{row.base} is no local branch, and no other was named"
        raise DeniedError(
            f"nothing was merged: {why}; the work is committed on {row.branch}",
            remedy=f"git push -u origin {row.branch}, then open a pull request from it, as by gh pr create",
            code="protected_branch",
            into=target,
            branch=row.branch,
        )

    async def _move(self, row: Worktree, places: list[Place]) -> Worktree:
        assert row.merge
        try:
            await self.yard.of(row, partial(merging.moved_on, row, row.merge, places))
        except FleetError as e:
            failed = moved(row, _E.FAIL, merge=None, by="", problem=(why := e.what))
            await self.core.change(lambda tx: self.yard.put(tx, failed, "not_merged", row.by, problem=why))
            raise
        return await self._merged(row)

    async def _merged(self, row: Worktree, problem: str = "") -> Worktree:
        after = moved(row, _E.REMOVE, outcome="merged", problem=problem)
        commit = row.merge.after if row.merge else None
        return await self.core.change(
            lambda tx: self.yard.put(tx, after, "merged", row.by, into=row.into, commit=commit)
        )

    async def go_on(self, row: Worktree) -> None:
        """A merge that was cut off: finished if the branch was moved, else not begun."""
        done, problem = await self.yard.of(row, partial(merging.finished, row))
        if done:
            why = "it was merged when it was approved before"
            await self.core.change(lambda tx: withdraw(self.core, tx, Kind.MERGE, row.id, "controller", why))
            await self._merged(row, problem)
        else:
            after = moved(row, _E.FAIL, merge=None, by="", problem="the merge was cut off before anything was changed")
            await self.core.change(lambda tx: self.yard.put(tx, after, "not_merged", "controller"))


def _copied(tree: str, copy: Path, repository: Repository) -> None:
    """The tree in a folder of its own, its owner's to change."""
    with repository.blobs() as blobs:
        write_out(repository.tree(tree), blobs, copy)
    owner = repository.git.owner
    if not owner.ours:
        _chown(copy, owner.uid, owner.gid)


def _take_back(place: Path) -> None:
    """What a desktop's own user made there is ours again."""
    if os.geteuid() == 0:
        _chown(place, 0, 0)


def _chown(place: Path, uid: int, gid: int) -> None:
    for _, _, names, fd in os.fwalk(place, follow_symlinks=False):
        for name in names:
            os.chown(name, uid, gid, dir_fd=fd, follow_symlinks=False)
        os.fchown(fd, uid, gid)


def _intents(lease: str, tx: Tx) -> list[str]:
    """What the agent said it did, in its own words."""
    return [entry.intent for entry in tx.newest(limit=_INTENTS, lease=lease) if entry.intent]


def _told(row: Worktree) -> dict[str, object]:
    commit = row.merge.after if row.merge else None
    return {"worktree": row.id, "merged_into": row.into, "commit": commit, "branch": row.branch}
