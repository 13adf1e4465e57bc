"""A run's own worktree, from its making to what a person makes of it."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.model.access import Caller, Role
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError
from cu_fleet.model.worktree import WorktreeAsk
from tests.controller.fleet import ANA, Fleet
from tests.controller.worktree import Repository, Run, begun, ended, fleet_and_repository, row
from tests.support import run, until

Body = Callable[[Fleet, Repository], Coroutine[Any, Any, None]]
BOB = Caller(operator="bob", role=Role.OPERATOR)


@pytest.fixture
def within(tmp_path: Path) -> Callable[..., None]:
    """Runs a body with a fleet and a repository."""

    def work(body: Body, **settings: object) -> None:
        async def whole() -> None:
            async with fleet_and_repository(tmp_path, **settings) as (fleet, repository):
                await body(fleet, repository)
                await fleet.check()

        run(whole(), 60)

    return work


async def approve(fleet: Fleet, run_: Run) -> dict[str, Any]:
    (approval,) = await fleet.controller.approvals(ANA)
    assert approval.facts["worktree"] == run_.worktree
    answered = await fleet.controller.answer(BOB, approval.approval, approve=True)
    return dict(answered.result or {})


def test_what_is_changed_is_staged_and_merged_when_a_person_approves(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository, intent="mend the app")
        assert (one.place / "src" / "app.py").read_text() == "print(1)\n"
        assert '"agent": "a"' in (one.place / ".cu-fleet" / "worktree.json").read_text()
        own = Repository.__new__(Repository)
        own.top = one.place
        assert own.git("status", "--short") == "", "what we put there is kept out of git"
        assert own.git("rev-parse", "--abbrev-ref", "HEAD").startswith("cu-fleet/a-")
        (one.place / "src" / "app.py").write_text("print(2)\n")
        (one.place / "new").write_text("new\n")
        (one.place / "junk.o").write_text("ignored")
        (one.place / "src" / "deep" / "er" / "x").unlink()
        view = await one.release()
        assert (view.state, view.files, view.insertions, view.deletions) == ("kept", 3, 2, 2)
        own.top = Path(view.path or "")
        assert own.top.parent.parent == fleet.home / "worktrees"
        assert own.git("status", "--short") == "A  new\nM  src/app.py\nD  src/deep/er/x"
        (own.top / "later").write_text("nobody has seen this")
        assert repository.git("log", "--format=%s") == "one", "nothing is merged before a person says so"
        told = await approve(fleet, one)
        assert repository.git("log", "-1", "--format=%an/%cn/%s") == "a/Ana/mend the app"
        assert repository.git("rev-parse", "next") == told["commit"]
        assert repository.git("status", "--short") == "", "the user's own work tree went along"
        assert (repository.top / "new").read_text() == "new\n"
        assert not (repository.top / "later").exists()
        gone = await ended(fleet, one.worktree)
        assert (gone.state, gone.outcome, gone.path) == ("gone", "merged", None)
        assert repository.left() == ""
        assert not own.top.parent.exists()

    within(body)


def test_what_is_not_changed_is_removed_with_its_branch(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository)
        (one.place / "build").mkdir()
        (one.place / "build" / "big").write_text("ignored")
        view = await one.release()
        assert (view.state, view.outcome) == ("gone", "unchanged")
        assert repository.left() == ""
        assert await fleet.controller.approvals(ANA) == []
        assert not list((fleet.home / "worktrees").iterdir())
        assert not one.place.exists()

    within(body)


async def _release(fleet: Fleet, one: Run) -> None:
    await fleet.controller.release(ANA, one.lease)


async def _revoke(fleet: Fleet, one: Run) -> None:
    await fleet.controller.revoke(ANA, one.lease, reason="enough")


async def _expire(fleet: Fleet, one: Run) -> None:
    await fleet.clock.advance(10_000)


async def _reassign(fleet: Fleet, one: Run) -> None:
    await fleet.controller.reassign(ANA, one.lease, to="b", clean=False)


async def _reassign_clean(fleet: Fleet, one: Run) -> None:
    await fleet.controller.reassign(ANA, one.lease, to="b", clean=True)


async def _die(fleet: Fleet, one: Run) -> None:
    view = await fleet.controller.lease(ANA, one.lease)
    await fleet.backend.desktop(view.desktop or "").screen.close()


async def _shut_down(fleet: Fleet, one: Run) -> None:
    await fleet.controller.shut_down()
    await fleet.start()


ENDS = [_release, _revoke, _expire, _reassign, _reassign_clean, _die, _shut_down]


@pytest.mark.parametrize("end", [pytest.param(x, marks=[pytest.mark.slow] if i else []) for i, x in enumerate(ENDS)])
def test_whatever_ends_the_lease_nothing_is_lost(
    within: Callable[..., None], end: Callable[[Fleet, Run], Awaitable[None]]
) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository)
        (one.place / "work").write_text("hours of it\n")
        await end(fleet, one)
        view = await one.ended()
        assert (view.state, view.files, view.problem) == ("kept", 1, "")
        assert (Path(view.path or "") / "work").read_text() == "hours of it\n"
        assert not one.place.exists(), "the next who has the desktop does not see it"
        assert "+hours of it" in await fleet.controller.worktree_diff(ANA, one.worktree)

    within(body)


@pytest.mark.slow
def test_commits_of_the_agents_own_are_kept_and_merged_with_the_rest(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository)
        own = Repository.__new__(Repository)
        own.top = one.place
        (one.place / "first").write_text("1\n")
        own.git("add", "-A")
        own.git("-c", "user.name=Codex", "-c", "user.email=c@x", "commit", "-qm", "own commit")
        (one.place / "second").write_text("2\n")
        repository.commit("meanwhile", other="3\n")
        view = await one.release()
        assert (view.commits, view.files) == (1, 2)
        summary = await fleet.controller.worktree_summary(ANA, one.worktree)
        assert "Codex: own commit" in summary
        await fleet.controller.merge_worktree(BOB, one.worktree)
        assert repository.git("log", "--format=%an:%s", "--first-parent", "-2").split("\n")[1] == "Ana:meanwhile"
        assert {"Codex:own commit", "a:Work of agent a"} <= set(repository.git("log", "--format=%an:%s").split("\n"))
        assert {"first", "second", "other"} <= {path.name for path in repository.top.iterdir()}
        assert repository.git("status", "--short") == ""

    within(body)


@pytest.mark.slow
def test_refused_nothing_is_changed_and_the_person_is_asked_again(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository)
        (one.place / "README").write_text("theirs\n")
        (one.place / "new").write_text("new\n")
        (repository.top / ".git" / "worktrees" / f"cu-fleet-{one.worktree[3:]}" / "index.lock").touch()
        await one.release()

        async def refused(code: str) -> None:
            before = repository.git("rev-parse", "next"), repository.git("status", "--short")
            with pytest.raises(FleetError) as told:
                await approve(fleet, one)
            assert told.value.code == code
            assert (repository.git("rev-parse", "next"), repository.git("status", "--short")) == before
            assert (await fleet.controller.worktree(ANA, one.worktree)).state == "kept"

        repository.write(README="mine, not committed\n")
        await refused("target_dirty")
        repository.git("checkout", "-q", "README")
        repository.git("update-ref", "MERGE_HEAD", "HEAD")
        await refused("under_way")
        (repository.top / ".git" / "MERGE_HEAD").unlink()
        repository.write(new="in the way\n")
        await refused("target_dirty")
        (repository.top / "new").rename(repository.top / "untracked")
        ours = repository.commit("ours", README="mine\n")
        await refused("merge_conflict")
        repository.git("reset", "-q", "--hard", f"{ours}~1")
        repository.git("config", "user.name", "")
        await refused("no_committer")
        repository.git("config", "user.name", "Ana")
        await approve(fleet, one)
        assert (repository.top / "README").read_text() == "theirs\n"

    within(body)


@pytest.mark.slow
def test_a_protected_branch_is_never_merged_into(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        plan = await fleet.controller.plan_worktree(ANA, WorktreeAsk(repository=str(repository.top), base="main"))
        assert (plan.into, plan.protected) == (None, "main")
        into = WorktreeAsk(repository=str(repository.top), base="next", into="main")
        with pytest.raises(DeniedError, match="main is a protected branch"):
            await fleet.controller.plan_worktree(ANA, into)
        one = await begun(fleet, repository, "main")
        (one.place / "new").write_text("x\n")
        await one.release()
        for _ in range(2):
            with pytest.raises(DeniedError, match="main is a protected branch") as told:
                await approve(fleet, one)
            branch = str(told.value.facts["branch"])
            assert branch in told.value.what
            assert f"git push -u origin {branch}" in told.value.remedy
            assert repository.git("log", "-1", "--format=%an %s", branch) == "a Work of agent a"
        assert repository.git("log", "-1", "--format=%s", "main") == "one"
        await fleet.controller.discard_worktree(BOB, one.worktree)
        assert repository.left() == f"refs/heads/{branch}", "what a person asked to be committed stays"

    within(body)


@pytest.mark.slow
def test_what_changes_its_protection_later_is_heard_at_the_merge(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository)
        (one.place / "new").write_text("x\n")
        await one.release()
        await fleet.controller.close()
        fleet.settings = fleet.settings.but(protected_branches=("ne*",))
        await fleet.start()
        with pytest.raises(DeniedError, match="next is a protected branch"):
            await fleet.controller.merge_worktree(BOB, one.worktree)
        assert repository.git("log", "-1", "--format=%s", "next") == "one"

    within(body)


@pytest.mark.slow
def test_the_users_checks_see_what_would_be_merged_and_reach_nothing_else(within: Callable[..., None]) -> None:
    check = "sh -c 'cat new; ls; echo bad >> README; touch /etc/bad /bad; ls {home}; cat /proc/net/dev | wc -l; exit 3'"

    async def body(fleet: Fleet, repository: Repository) -> None:
        fleet.controller.settings = fleet.controller.core.settings = fleet.settings.but(
            review=("echo first", check.format(home=fleet.home), "echo never")
        )
        one = await begun(fleet, repository)
        (one.place / "new").write_text("```\n\x1b[31mred\n")
        (one.place / "junk.o").write_text("ignored")
        view = await one.release()
        assert view.verdict == "failed"
        summary = await fleet.controller.worktree_summary(ANA, one.worktree)
        assert "first" in summary
        assert "\x1b" not in summary
        assert "\\u001b[31mred" in summary
        assert "````" in summary, "what an agent wrote cannot close its fence"
        said = summary.partition("$ sh -c")[2]
        assert "Read-only file system" in said
        assert "junk.o" not in said
        assert "fleet.db" not in said
        assert "never" not in said.partition("(it ended with 3)")[0].partition("\n")[2]
        assert (Path(view.path or "") / "README").read_text() == "hello\n"
        (approval,) = await fleet.controller.approvals(ANA)
        assert approval.facts["review"] == "failed"
        assert not list((fleet.home / "worktrees" / one.worktree).glob("review*"))

    within(body)


@pytest.mark.slow
def test_checks_that_hang_or_cannot_be_started_are_told(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        core = fleet.controller.core
        for review, verdict, words in [("sleep 60", "failed", "took longer than"), ("'", "not run", "quotation")]:
            core.settings = fleet.settings.but(review=(review,), review_timeout=0.3)
            one = await begun(fleet, repository, agent=verdict.replace(" ", "-"))
            (one.place / "new").write_text("x\n")
            view = await one.release()
            assert view.verdict == verdict
            assert words in await fleet.controller.worktree_summary(ANA, one.worktree)

    within(body)


def test_what_contradicts_itself_is_refused_before_anything_is_made(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        async def refused(code: str, base: str = "next", top: Path = repository.top, **more: str) -> None:
            with pytest.raises(FleetError) as told:
                await fleet.controller.plan_worktree(ANA, WorktreeAsk(repository=str(top), base=base, **more))
            assert told.value.code == code

        await refused("no_base", "nope")
        await refused("no_base", "--all")
        await refused("no_target", into="nope")
        await refused("no_repository", top=fleet.home.parent)
        await refused("no_repository", top=fleet.home)
        (repository.top / ".git" / "rebase-merge").mkdir()
        await refused("under_way")
        (repository.top / ".git" / "rebase-merge").rmdir()
        lease = await fleet.granted("a")
        ask = WorktreeAsk(repository=str(repository.top), base="next")
        for who in (BOB, Caller(agent="a"), Caller(agent="a", lease=lease.lease)):
            with pytest.raises(DeniedError):
                await fleet.controller.make_worktree(who, lease.lease, ask)
        named = await fleet.granted("n", desktop="named")
        with pytest.raises(ConflictError, match="keeps what lies in its slot"):
            await fleet.controller.make_worktree(ANA, named.lease, ask)
        await fleet.controller.make_worktree(ANA, lease.lease, ask)
        with pytest.raises(ConflictError, match="has worktree"):
            await fleet.controller.make_worktree(ANA, lease.lease, ask)

    within(body)


@pytest.mark.slow
def test_nobody_but_a_person_merges_and_nothing_that_is_in_use(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository)
        (one.place / "new").write_text("x\n")
        with pytest.raises(ConflictError):
            await fleet.controller.merge_worktree(BOB, one.worktree)
        with pytest.raises(ConflictError, match="until the lease ends"):
            await fleet.controller.discard_worktree(BOB, one.worktree)
        await one.release()
        observer = Caller(operator="eve", role=Role.OBSERVER)
        for who in (observer, Caller(agent="a"), Caller(agent="a", lease=one.lease)):
            with pytest.raises(DeniedError):
                await fleet.controller.merge_worktree(who, one.worktree)
            with pytest.raises(DeniedError):
                await fleet.controller.discard_worktree(who, one.worktree)
        assert "+x" in await fleet.controller.worktree_diff(observer, one.worktree)
        with pytest.raises(DeniedError):
            await fleet.controller.worktree_diff(Caller(agent="b"), one.worktree)

    within(body)


@pytest.mark.slow
def test_a_denied_one_stays_until_its_time_is_up(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one, two = await begun(fleet, repository), await begun(fleet, repository, agent="b")
        for each in (one, two):
            (each.place / "new").write_text("x\n")
            await each.release()
        (approval, _) = await fleet.controller.approvals(ANA)
        await fleet.controller.answer(BOB, approval.approval, approve=False, reason="no")
        assert (await fleet.controller.worktree(ANA, one.worktree)).state == "kept"
        await fleet.clock.advance(13 * 86400)
        await fleet.controller.sweeper.sweep()
        assert (await fleet.controller.worktree(ANA, one.worktree)).state == "kept"
        pruned = await fleet.controller.prune_worktrees(BOB, older=30 * 86400)
        assert pruned == []
        await fleet.clock.advance(2 * 86400)
        await fleet.controller.sweeper.sweep()
        for each in (one, two):
            view = await ended(fleet, each.worktree)
            assert (view.outcome, view.size_bytes > 0) == ("too old", True)
        assert repository.left() == ""
        assert await fleet.controller.approvals(ANA) == []

    within(body)


@pytest.mark.slow
def test_a_branch_that_somebody_went_on_with_stays(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        one = await begun(fleet, repository)
        (one.place / "new").write_text("x\n")
        view = await one.release()
        repository.git("update-ref", f"refs/heads/{view.branch}", repository.commit("more", more="1\n"))
        await fleet.controller.discard_worktree(BOB, one.worktree)
        assert repository.left() == f"refs/heads/{view.branch}"

    within(body)


@pytest.mark.slow
def test_without_its_repository_or_its_folder_the_rest_goes_on(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        lost, orphan = await begun(fleet, repository), await begun(fleet, repository, agent="b")
        lost.place.rename(lost.place.parent.parent / "taken")
        view = await lost.release()
        assert (view.state, view.problem) == ("gone", "its folder was no longer in the slot")
        (orphan.place / "new").write_text("x\n")
        repository.top.rename(repository.top.with_name("moved"))
        view = await orphan.release()
        assert (view.state, view.tree) == ("kept", None)
        assert "could not be looked through" in view.problem
        assert (Path(view.path or "") / "new").exists()
        await fleet.controller.discard_worktree(BOB, orphan.worktree)
        assert (await ended(fleet, orphan.worktree)).state == "gone"

    within(body)


@pytest.mark.slow
def test_runs_at_the_same_time_have_folders_and_branches_of_their_own(within: Callable[..., None]) -> None:
    async def body(fleet: Fleet, repository: Repository) -> None:
        runs = await asyncio.gather(*(begun(fleet, repository, agent=name) for name in "abc"))
        for one in runs:
            (one.place / f"of-{one.worktree}").write_text("x\n")
        views = await asyncio.gather(*(one.release() for one in runs))
        assert len({view.branch for view in views}) == 3
        for one in runs:
            await fleet.controller.merge_worktree(BOB, one.worktree)
        await until(lambda: repository.left() == "")
        assert {f"of-{one.worktree}" for one in runs} <= {path.name for path in repository.top.iterdir()}
        assert (await row(fleet, runs[0].worktree)).outcome == "merged"

    within(body)
