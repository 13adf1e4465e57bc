"""The life of worktrees: made, lent to a desktop, fetched back before its slot is emptied, judged, merged or removed.

Each worktree that has something to do has one task, which takes one step after another until it rests. What is about to
be done is written down before, and every step may be taken again: a start is nothing but poking what does not rest.
While a lease lives its worktree is in the slot; whoever is about to empty that slot has it fetched first, and does not
go on if that fails. From then on the agent reaches it no more.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from cu_fleet.controller.approving import Approving
from cu_fleet.controller.carrying import write_out
from cu_fleet.controller.core import Core, folder
from cu_fleet.controller.judging import Judging
from cu_fleet.controller.pending import withdraw
from cu_fleet.controller.planning import Planning
from cu_fleet.controller.repository import Repository
from cu_fleet.controller.yard import Yard
from cu_fleet.model.access import Caller
from cu_fleet.model.approval import OPEN, Approval, Kind
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import ConflictError, FleetError, UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.worktree import (
    NOT_GONE,
    Outcome,
    Worktree,
    WorktreeAsk,
    WorktreeEvent,
    WorktreeState,
    branch_name,
    folder_name,
    moved,
)
from cu_fleet.stores.base import Tx

log = logging.getLogger(__name__)
_S, _E = WorktreeState, WorktreeEvent
_KEEPERS = (Stage.CLEANING, Stage.PARKING, Stage.STOPPING)  # of a desktop whose slot its keeper is about to empty


class Worktrees:
    def __init__(self, core: Core, approving: Approving) -> None:
        self.core = core
        self.yard = yard = Yard(core)
        self.planning = Planning(yard)
        self.judging = Judging(yard, approving)
        self.judging.poke = self.poke
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._watching: asyncio.Task[None] | None = None

    # the tasks

    async def start(self) -> None:
        await self.core.change(self._withdraw)
        for row in await self.core.read(lambda tx: tx.find(Worktree, state=NOT_GONE)):
            self.poke(row.id)
        self._watching = asyncio.create_task(self._watch(), name="worktrees of leases that end")

    def _withdraw(self, tx: Tx) -> None:
        """Questions that were cut off after they had been dealt with wait for nobody."""
        for approval in tx.find(Approval, kind=Kind.MERGE, state=OPEN):
            row = tx.get(Worktree, approval.subject)
            if row is None or row.outcome:
                why = f"the worktree is {row.outcome if row else 'gone'}"
                withdraw(self.core, tx, Kind.MERGE, approval.subject, "controller", why)

    async def close(self) -> None:
        tasks = [*self._tasks.values(), *([self._watching] if self._watching else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def poke(self, worktree: str) -> "asyncio.Task[None]":
        """See to this worktree: it may have something to do."""
        task = self._tasks.get(worktree)
        if task is None or task.done():
            task = self._tasks[worktree] = asyncio.create_task(self._keep(worktree), name=f"worktree {worktree}")
        else:
            self._again.add(worktree)
        return task

    async def _keep(self, worktree: str) -> None:
        while not self.core.closing:
            self._again.discard(worktree)
            try:
                went_on = await self._step(worktree)
            except FleetError as e:
                log.warning("worktree %s: %s", worktree, e)
                went_on = False
            except Exception:
                log.exception("worktree %s: a step failed", worktree)
                went_on = False
            if not went_on and worktree not in self._again:
                return

    async def _step(self, worktree: str) -> bool:
        """One step; returns whether there may be another."""
        async with self.yard.turn(worktree):
            row = await self.core.read(lambda tx: tx.get(Worktree, worktree))
            steps: dict[WorktreeState, Callable[[Worktree], Awaitable[None]]] = {
                _S.PLANNED: self._make,
                _S.LENT: self._lend,
                _S.BACK: self.judging.judge,
                _S.MERGING: self.judging.go_on,
                _S.REMOVING: self._remove,
            }
            step = steps.get(row.state) if row else None
            if row is None or step is None:
                return False
            await step(row)
        after = await self.core.read(lambda tx: tx.get(Worktree, worktree))
        return after is not None and after.state is not row.state

    async def _watch(self) -> None:
        """Leases also end where no slot is emptied: of desktops that keep their state."""
        while True:
            rings = self.core.turned.rings
            try:
                for row in await self.core.read(self._overdue):
                    self.poke(row.id)
            except FleetError as e:
                log.warning("worktrees of leases that are over could not be looked for: %s", e)
            await self.core.turned.heard(rings)

    def _overdue(self, tx: Tx) -> list[Worktree]:
        return [
            row for row in tx.find(Worktree, state=_S.LENT) if not self.yard.held(tx, row) and not _kept_by(tx, row)
        ]

    async def tidy(self) -> None:
        """What time brings: those that nobody wanted in time go, and what could not be finished is tried again."""
        now, forget = self.core.now(), self.core.now() - self.core.settings.keep_leases
        for row in await self.core.read(lambda tx: tx.find(Worktree)):
            if row.state is _S.KEPT and row.until is not None and row.until <= now:
                with contextlib.suppress(ConflictError):  # somebody is at it
                    await self.remove(row.id, "too old", "controller")
            elif row.state in (_S.PLANNED, _S.BACK, _S.MERGING, _S.REMOVING):
                self.poke(row.id)
            elif row.state is _S.GONE and (row.back_at or row.created_at) < forget:
                await self.core.read(lambda tx, row=row: tx.delete(row))  # type: ignore[misc]
                self.yard.forget(row.id)
                self._tasks.pop(row.id, None)

    # making one

    async def make(self, who: Caller, lease_id: str, ask: WorktreeAsk) -> Worktree:
        """Make it and put it into the slot of the lease's desktop."""
        plan = await self.planning.plan(ask)
        name = folder_name(Path(plan.top or plan.repository).name)

        def work(tx: Tx) -> str:
            lease = self.core.get_lease(tx, lease_id)
            desktop = self.planning.desktop_for(tx, lease, plan.size_bytes)
            row = Worktree(
                id=(key := new_id("wt")),
                lease=lease.id,
                agent=lease.agent,
                desktop=desktop.id,
                name=name,
                owner=plan.uid,
                branch=branch_name(lease.agent, key),
                intent=ask.intent,
                asked_by=who.who,
                created_at=self.core.now(),
                **plan.model_dump(include={"repository", "top", "base", "base_commit", "into", "protected"}),
            )
            self.yard.put(tx, row, "asked", who.who, repository=row.repository, base=row.base, into=row.into)
            return row.id

        key = await self.core.change(work)
        await asyncio.shield(self.poke(key))
        row = await self.yard.now(key)
        if row.state is not _S.LENT or not row.place:
            raise UnavailableError(
                f"worktree {key} was not made: {row.problem or 'its lease is over'}", code="no_worktree", worktree=key
            )
        return row

    async def _make(self, row: Worktree) -> None:
        """Branch, entry and folder, anew if there was a beginning of it."""
        try:
            if not await self.core.read(lambda tx: self.yard.held(tx, row)):
                raise UnavailableError("its lease is over", code="lease_over")
            inode = await self.yard.of(row, partial(self._fill, row))
        except (FleetError, OSError) as e:
            await self._give_up(row, "not made", "controller", str(e))
            return

        def work(tx: Tx) -> None:
            if self.yard.held(tx, row):
                self.yard.put(tx, moved(row, _E.MADE, inode=inode), "made", "controller")
            else:
                self.yard.put(tx, _removing(row, "not made", "controller"), "given_up", "controller")

        await self.core.change(work)

    def _fill(self, row: Worktree, repository: Repository) -> tuple[int, int]:
        self.yard.wipe(self.yard.home(row))
        place = folder(self.yard.home(row)) / row.name
        place.mkdir()
        repository.link(row, place)
        with repository.blobs() as blobs:
            write_out(repository.tree(row.base_commit), blobs, place)
        repository.marks(row, place)
        found = place.stat()
        return found.st_dev, found.st_ino

    # in the slot, and out of it

    async def _lend(self, row: Worktree) -> None:
        """Into the slot while the lease lives; out of it afterwards, unless the desktop's keeper is about to ask."""
        held = await self.core.read(lambda tx: self.yard.held(tx, row))
        desktop = await self.yard.desktop(row)
        if held and desktop and not row.place:
            assert row.inode
            lending = self.yard.lending(desktop)
            try:
                place = await lending.lend(desktop.handle, row.name, self.yard.folder(row), row.inode)
            except FleetError as e:
                await self._fetch(row, str(e))
                return
            await self.yard.of(row, lambda repository: repository.point(row, place))
            await self.core.change(lambda tx: tx.put(self.yard.get(tx, row.id).but(place=str(place))))
        elif not held and not await self.core.read(lambda tx: _kept_by(tx, row)):
            await self._fetch(row)

    async def fetch_from(self, desktop: Desktop) -> None:
        """Before this desktop's slot is emptied. What fails here keeps it from being emptied."""
        for row in await self.core.read(lambda tx: tx.find(Worktree, desktop=desktop.id, state=_S.LENT)):
            async with self.yard.turn(row.id):
                if (now := await self.core.read(partial(self._to_fetch, row.id))) is not None:
                    await self._fetch(now)
            self.poke(row.id)

    def _to_fetch(self, key: str, tx: Tx) -> Worktree | None:
        row = self.yard.get(tx, key)
        return row if row.state is _S.LENT and not self.yard.held(tx, row) else None

    async def _fetch(self, row: Worktree, problem: str = "") -> None:
        """Out of the slot, to where it was made."""
        desktop, place = await self.yard.desktop(row), self.yard.folder(row)
        there = place.exists()
        if not there and desktop and desktop.handle and row.inode:
            await self.yard.in_thread(folder, self.yard.home(row))
            there = await self.yard.lending(desktop).fetch(desktop.handle, row.name, place, row.inode)
        problem = problem if there else "its folder was no longer in the slot"
        now = self.core.now()
        until = now + self.core.settings.worktrees_for

        def work(tx: Tx) -> None:
            after = moved(self.yard.get(tx, row.id), _E.RETURN, back_at=now, until=until, place="", problem=problem)
            self.yard.put(tx, after, "back", "controller", problem=problem)

        await self.core.change(work)

    # the end

    async def remove(self, key: str, outcome: Outcome, by: str) -> Worktree:
        """Give it up: branch, folder, and what waits for a person because of it."""
        async with self.yard.turn_soon(key):
            await self._give_up(await self.yard.now(key), outcome, by)
        await asyncio.shield(self.poke(key))
        return await self.yard.now(key)

    async def _give_up(self, row: Worktree, outcome: Outcome, by: str, problem: str = "") -> None:
        def work(tx: Tx) -> None:
            after = _removing(self.yard.get(tx, row.id), outcome, by).but(problem=problem)
            withdraw(self.core, tx, Kind.MERGE, row.id, by, f"the worktree was given up: {outcome}")
            self.yard.put(tx, after, "given_up", by, outcome=outcome, problem=problem)

        await self.core.change(work)

    async def _remove(self, row: Worktree) -> None:
        if await self.yard.in_thread(Path(row.repository).exists):
            await self.yard.of(row, lambda repository: repository.unlink(row, keep_branch=bool(row.committed)))
        await self.yard.in_thread(self.yard.wipe, self.yard.home(row))

        def work(tx: Tx) -> None:
            after = moved(self.yard.get(tx, row.id), _E.REMOVED)
            self.yard.put(tx, after, "gone", "controller", outcome=row.outcome)

        await self.core.change(work)


def _removing(row: Worktree, outcome: Outcome, by: str) -> Worktree:
    return moved(row, _E.REMOVE, outcome=outcome, by=by)


def _kept_by(tx: Tx, row: Worktree) -> bool:
    """Whether its desktop's keeper is about to empty the slot, and will ask for it when the time has come."""
    desktop = tx.get(Desktop, row.desktop)
    return desktop is not None and desktop.stage in _KEEPERS
