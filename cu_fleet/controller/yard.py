"""What the parts share that deal with worktrees: their rows, their folders, and git on a thread of its own."""

import asyncio
import contextlib
import fnmatch
import os
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from cu_fleet.backends.base import Lending
from cu_fleet.backends.tree import wipe
from cu_fleet.controller.core import Core
from cu_fleet.controller.git import Git
from cu_fleet.controller.repository import Repository
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import ConflictError, DeniedError, NotFoundError, UnsupportedError
from cu_fleet.model.lease import Lease, LeaseState
from cu_fleet.model.worktree import Worktree
from cu_fleet.stores.base import Tx
from cu_fleet.threads import Threads

T = TypeVar("T")
P = ParamSpec("P")
_SOON = 5.0  # seconds
_AT_ONCE = 8  # pieces of work with git; what is quick must not wait behind what goes through all files


class Yard:
    def __init__(self, core: Core) -> None:
        self.core = core
        self._turns: dict[str, asyncio.Lock] = {}
        self._threads = Threads("worktree", _AT_ONCE)

    def get(self, tx: Tx, key: str) -> Worktree:
        row = tx.get(Worktree, key)
        if row is None:
            raise NotFoundError(
                f"there is no worktree {key}", remedy="cu-fleet worktree list --all", code="no_worktree", worktree=key
            )
        return row

    async def now(self, key: str) -> Worktree:
        return await self.core.read(lambda tx: self.get(tx, key))

    def put(self, tx: Tx, row: Worktree, what: str, by: str, **facts: Any) -> Worktree:
        """Write a worktree down, with an entry of the record."""
        tx.put(row)
        lease = tx.get(Lease, row.lease)
        told = {"worktree": row.id, "branch": row.branch, **{name: x for name, x in facts.items() if x}}
        self.core.record(tx, f"worktree.{what}", by, lease=lease, facts=told)
        return row

    def held(self, tx: Tx, row: Worktree) -> bool:
        """Whether its lease still has the desktop it was made for."""
        lease = tx.get(Lease, row.lease)
        return lease is not None and lease.state is LeaseState.ACTIVE and lease.desktop == row.desktop

    async def desktop(self, row: Worktree) -> Desktop | None:
        return await self.core.read(lambda tx: tx.get(Desktop, row.desktop))

    def lending(self, desktop: Desktop) -> Lending:
        lending = self.core.backend(desktop.backend).abilities.lending
        if lending is None:
            raise UnsupportedError(
                f"no folder of this machine can lie in the slot of a desktop of backend {desktop.backend}",
                code="nolending",
                backend=desktop.backend,
            )
        return lending

    # turns

    def turn(self, key: str) -> asyncio.Lock:
        """Whoever does something to a worktree does it alone."""
        return self._turns.setdefault(key, asyncio.Lock())

    @contextlib.asynccontextmanager
    async def turn_soon(self, key: str) -> AsyncIterator[None]:
        """The same, for a person: refused if it is being worked on for long."""
        turn = self.turn(key)
        try:
            async with asyncio.timeout(_SOON):
                await turn.acquire()
        except TimeoutError:
            raise ConflictError(
                f"worktree {key} is being worked on", remedy="ask again soon", code="worktree_busy", worktree=key
            ) from None
        try:
            yield
        finally:
            turn.release()

    def forget(self, key: str) -> None:
        self._turns.pop(key, None)

    # folders

    def home(self, row: Worktree) -> Path:
        """What is kept of it: the folder itself and, once it is back, a summary."""
        return self.core.settings.home / "worktrees" / row.id

    def folder(self, row: Worktree) -> Path:
        return self.home(row) / row.name

    def wipe(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                wipe(parent, path.name)
            finally:
                os.close(parent)

    # git

    def protected(self, branch: str) -> bool:
        return any(fnmatch.fnmatchcase(branch, pattern) for pattern in self.core.settings.protected_branches)

    def refuse_protected(self, into: str) -> None:
        if self.protected(into):
            raise DeniedError(
                f"{into} is a protected branch: nothing is merged into it",
                remedy="choose another with --into BRANCH, or none",
                code="protected_branch",
                into=into,
            )

    async def in_thread(self, work: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
        """On a thread of the worktrees' own: what takes its time here keeps nobody else waiting."""
        return await self._threads.give(partial(work, *args, **more)).settled()

    async def within(self, repository: str, owner: int, work: Callable[[Repository], T]) -> T:
        """Work with git on a thread. Cancelled, what runs is ended, and this returns when it has."""
        git = Git(Path(repository), owner)
        job = asyncio.create_task(self.in_thread(lambda: work(Repository(git))), name=f"git in {repository}")
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            git.stop()
            await asyncio.wait([job])
            if not job.cancelled():
                job.exception()  # seen
            raise

    async def of(self, row: Worktree, work: Callable[[Repository], T]) -> T:
        return await self.within(row.repository, row.owner, work)
