"""The controller killed before commands that it gives to git and before lines that it writes down: started again, it
loses nothing of what an agent made, leaves nothing behind, and merges once or not at all.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.controller.git import Git
from cu_fleet.controller.yard import Yard
from cu_fleet.model.errors import FleetError
from cu_fleet.model.worktree import WorktreeView
from tests.controller.fleet import ANA, Fleet
from tests.controller.worktree import Repository, Run, begun, ended, fleet_and_repository, row
from tests.support import run, until

pytestmark = pytest.mark.slow
STRIDE = 3  # with 1 it tries every point, in a minute and a half


class Killed(BaseException):
    """What stands in for SIGKILL: nothing catches it."""


class Points:
    """Counts what happens, and dies before number `at`."""

    def __init__(self) -> None:
        self.at, self.seen = 0, 0

    def next(self, at: int) -> None:
        self.at, self.seen = at, 0

    def one(self) -> None:
        if self.at:
            self.seen += 1
            if self.seen >= self.at:
                raise Killed

    @property
    def died(self) -> bool:
        return bool(self.at) and self.seen >= self.at


@pytest.fixture
def points(monkeypatch: pytest.MonkeyPatch) -> Points:
    points = Points()
    process, put = Git._process, Yard.put  # noqa: SLF001 - every command passes there

    @contextlib.contextmanager
    def counted(self: Git, *args: Any) -> Iterator[Any]:
        points.one()
        with process(self, *args) as one:
            yield one

    def written(self: Yard, *args: Any, **more: Any) -> Any:
        points.one()
        return put(self, *args, **more)

    monkeypatch.setattr(Git, "_process", counted)
    monkeypatch.setattr(Yard, "put", written)
    return points


async def _killed_in(fleet: Fleet, points: Points, at: int, work: Callable[[], Coroutine[Any, Any, object]]) -> bool:
    """Do the work until it dies; a new controller takes over. False if there was no such point any more."""
    points.next(at)
    task = asyncio.ensure_future(work())
    await until(lambda: task.done() or points.died, every=0.005)
    died, points.at = points.died, 0
    task.cancel()
    with contextlib.suppress(Killed, FleetError, asyncio.CancelledError):
        await task
    await fleet.kill()
    await fleet.start()
    return died


def _through(tmp_path: Path, body: Callable[[Fleet, Repository, int], Awaitable[bool]]) -> None:
    """Once for every point that there is, and once beyond."""

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(_but_killed)
        async with fleet_and_repository(tmp_path, max_desktops=2) as (fleet, repository):
            for at in range(1, 100, STRIDE):
                if not await body(fleet, repository, at):
                    assert at > 5, "there were hardly any"
                    return
            raise AssertionError("it does not end")

    run(whole(), 100)


def _but_killed(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Nobody is told of a task that was killed."""
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)


async def _kept(fleet: Fleet, one: Run, text: str) -> WorktreeView:
    view = await ended(fleet, one.worktree)
    assert (view.state, view.files) == ("kept", 1), view
    assert f"+{text}" in await fleet.controller.worktree_diff(ANA, one.worktree)
    return view


def test_while_it_is_made(tmp_path: Path, points: Points) -> None:
    async def body(fleet: Fleet, repository: Repository, at: int) -> bool:
        async def make() -> None:
            await begun(fleet, repository, agent=f"a{at}")

        died = await _killed_in(fleet, points, at, make)
        leases = await fleet.controller.leases(ANA)
        for view in await fleet.controller.worktrees(ANA):

            async def settled(key: str = view.worktree) -> bool:
                found = await row(fleet, key)
                return bool(found.place) or found.state == "gone"

            await until(settled)
            found = await row(fleet, view.worktree)
            if found.place:
                assert (Path(found.place) / "README").read_text() == "hello\n"
                assert Path(found.place).parent.name == found.desktop
        for lease in leases:
            await fleet.controller.release(ANA, lease.lease)
        await until(lambda: repository.left() == "")
        assert repository.git("fsck", "--no-dangling") == ""
        return died

    _through(tmp_path, body)


def test_while_it_comes_back(tmp_path: Path, points: Points) -> None:
    async def body(fleet: Fleet, repository: Repository, at: int) -> bool:
        one = await begun(fleet, repository, agent=f"a{at}")
        (one.place / "work").write_text(f"of {at}\n")
        died = await _killed_in(fleet, points, at, one.release)
        lease = await fleet.controller.lease(ANA, one.lease)
        if lease.state == "active":
            await fleet.controller.release(ANA, one.lease)
        await _kept(fleet, one, f"of {at}")
        assert len(await fleet.controller.approvals(ANA)) == 1
        await fleet.controller.discard_worktree(ANA, one.worktree)
        assert repository.left() == ""
        assert await fleet.controller.approvals(ANA) == []
        return died

    _through(tmp_path, body)


def test_while_it_is_merged(tmp_path: Path, points: Points) -> None:
    async def body(fleet: Fleet, repository: Repository, at: int) -> bool:
        one = await begun(fleet, repository, agent=f"a{at}")
        (one.place / "work").write_text(f"of {at}\n")
        await one.release()
        before = repository.commit("meanwhile", other=f"{at}\n")
        (approval,) = await fleet.controller.approvals(ANA)

        async def merge() -> None:
            await fleet.controller.answer(ANA, approval.approval, approve=True)
            await ended(fleet, one.worktree)

        died = await _killed_in(fleet, points, at, merge)
        view = await ended(fleet, one.worktree)
        if view.state == "kept":
            assert repository.git("rev-parse", "next") == before, "nothing was changed"
            await fleet.controller.merge_worktree(ANA, one.worktree)
        await until(lambda: repository.left() == "")
        assert (await ended(fleet, one.worktree)).outcome == "merged"
        assert repository.git("status", "--short") == ""
        assert (repository.top / "work").read_text() == f"of {at}\n"
        assert repository.git("rev-list", "--count", "--no-merges", f"{before}..next") == "1"
        assert await fleet.controller.approvals(ANA) == []
        return died

    _through(tmp_path, body)
