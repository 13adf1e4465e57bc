"""A person is asked, answers, and only the very actions that were agreed to go, once."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.controller import pending
from cu_fleet.controller.actor import Actor
from cu_fleet.controller.pending import withdraw
from cu_fleet.controller.worktrees import Worktrees
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.action import parse_actions
from cu_fleet.model.approval import Approval, Check, Kind, Scope
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, InvalidError
from cu_fleet.model.lease import Lease, LeaseState
from cu_fleet.model.view import ApprovalView
from cu_fleet.stores.base import Tx
from tests.controller.fleet import ANA, GENEROUS, Fleet, profile, running
from tests.controller.test_looking import Seat, seated
from tests.support import run, until

A, B = {"type": "key", "keys": "a"}, {"type": "type", "text": "top secret"}


async def asked(seat: Seat, *actions: object, **more: Any) -> ApprovalView:
    controller = seat.fleet.controller
    return await controller.ask_approval(seat.who, seat.lease, parse_actions(list(actions)), **more)


async def act(seat: Seat, approval: str, *actions: object) -> Any:
    return await seat.fleet.controller.act(seat.who, seat.lease, parse_actions(list(actions)), approval=approval)


async def refused(seat: Seat, code: str, approval: str, *actions: object) -> FleetError:
    """Nothing reaches the screen, and it is on record."""
    sent = len(seat.desktop.events)
    with pytest.raises(FleetError) as caught:
        await act(seat, approval, *actions)
    assert caught.value.code == code, caught.value
    assert caught.value.what
    assert len(seat.desktop.events) == sent
    assert (await seat.entries("act.refused"))[-1].result == code
    return caught.value


async def entries(seat: Seat) -> list[Entry]:
    return await seat.fleet.controller.audit(ANA, limit=1000, lease=seat.lease)


async def answer(seat: Seat, approval: str, approve: bool, reason: str = "", who: Caller = ANA) -> ApprovalView:
    return await seat.fleet.controller.answer(who, approval, approve=approve, reason=reason)


def test_what_is_agreed_to_goes_once_and_nothing_else(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, A, B, reason="log in", checks=[Check(id="c", message="a password")])
            assert (await asked(seat, A, B)).approval == one.approval, "the same question is one approval"
            assert "approval_wait" not in str(await refused(seat, "approval_waiting", one.approval, A, B))
            yes = await answer(seat, one.approval, True, "fine")
            assert (yes.state, yes.by, yes.answer) == ("approved", "operator ana", "fine")
            await refused(seat, "other_actions", one.approval, A)
            await refused(seat, "other_actions", one.approval, B, A)
            await refused(seat, "no_approval", "ap_0000000000", A, B)
            done = await act(seat, one.approval, A, B)
            assert all(x.ok for x in done.done)
            error = await refused(seat, "approval_used", one.approval, A, B)
            assert "ask anew" in str(error)
            again = await asked(seat, A, B)
            assert again.approval != one.approval, "an answer used up answers nothing any more"
            acts = await seat.entries("act")
            assert [x.facts["approval"] for x in acts] == [one.approval] * 2
            kinds = [x.what for x in await entries(seat) if x.what.startswith("approval.")]
            assert kinds == ["approval.asked", "approval.approved", "approval.used", "approval.asked"]
            await seat.fleet.check()

    run(body())


def test_a_no_is_told_with_its_reason(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, A)
            await answer(seat, one.approval, False, "wrong account")
            error = await refused(seat, "approval_denied", one.approval, A)
            assert isinstance(error, DeniedError)
            assert "operator ana: wrong account" in str(error)
            for approve in (True, False):
                with pytest.raises(ConflictError, match="was denied by operator ana"):
                    await answer(seat, one.approval, approve)

    run(body())


def test_what_is_typed_is_shown_to_the_person_and_kept_nowhere(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, B)
            assert one.actions == (B,)
            await answer(seat, one.approval, True)
            await act(seat, one.approval, B)
            after = await seat.fleet.controller.approval(ANA, one.approval)
            assert after.state == "used"
            assert after.actions[0]["text"]["length"] == 10  # type: ignore[index]
            assert "top secret" not in str(await entries(seat))
            denied = await asked(seat, B)
            assert "top secret" not in str(await answer(seat, denied.approval, False))

    run(body())


def test_a_person_sees_the_screen_as_it_was_when_it_was_asked(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path, profile("local", frames="none")) as seat:
            one = await asked(seat, A)
            view, data = await seat.fleet.controller.frame(ANA, one.frame or "")
            assert (view.lease, view.why, data[:4]) == (seat.lease, "approval", b"\x89PNG")
            assert (await seat.entries("approval.asked"))[0].frames == (one.frame,)

    run(body())


def test_without_a_picture_a_person_is_asked_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            monkeypatch.setattr(Actor, "screen", property(lambda _: _broken()))
            one = await asked(seat, A)
            assert (one.frame, one.state) == (None, "waiting")
            assert "no room" in str(one.facts["no_picture"])

    def _broken() -> Any:
        raise OSError("no room")

    run(body())


def test_the_clock_stands_still_until_the_last_answer(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            fleet, controller = seat.fleet, seat.fleet.controller
            before = (await controller.lease(ANA, seat.lease)).remaining
            one, two = await asked(seat, A, within=5000), await asked(seat, B, within=5000)
            await fleet.clock.advance(4000)  # far longer than the lease would live
            view = await controller.lease(ANA, seat.lease)
            assert (view.state, view.approvals, view.expires_at) == ("active", (one.approval, two.approval), None)
            assert view.remaining == pytest.approx(before, abs=1)
            await controller.renew(seat.who, seat.lease)
            await answer(seat, one.approval, False)
            assert (await controller.lease(ANA, seat.lease)).expires_at is None
            await controller.pause(ANA, seat.lease)
            await answer(seat, two.approval, True)
            assert (await controller.lease(ANA, seat.lease)).expires_at is None, "it is paused"
            view = await controller.resume(ANA, seat.lease)
            assert (view.approvals, view.remaining) == ((), pytest.approx(before, abs=1))
            three = await asked(seat, A)
            await controller.pause(ANA, seat.lease)
            assert (await controller.resume(ANA, seat.lease)).expires_at is None, "somebody still has to answer"
            await answer(seat, three.approval, True)
            assert (await controller.lease(ANA, seat.lease)).expires_at

    run(body())


def test_asking_is_an_action_of_the_agents_own_and_renews_its_lease(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            await seat.fleet.clock.advance(600)
            one = await asked(seat, A)
            await answer(seat, one.approval, True)
            view = await seat.fleet.controller.lease(ANA, seat.lease)
            assert view.remaining == view.ttl

    run(body())


def test_no_answer_in_time_is_a_no_and_no_use_in_time_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            controller = seat.fleet.controller
            one, two = await asked(seat, A, within=100), await asked(seat, B)
            await answer(seat, two.approval, True)
            await seat.fleet.clock.advance(101)
            gone = await until(lambda: _settled(seat, one.approval))
            assert (gone.state, gone.by) == ("expired", "")
            assert "which is a no" in str(await refused(seat, "approval_expired", one.approval, A))
            with pytest.raises(ConflictError, match="not answered in time"):
                await answer(seat, one.approval, True)
            assert (await controller.lease(ANA, seat.lease)).expires_at, "nobody waits any more"
            await controller.renew(seat.who, seat.lease)
            await seat.fleet.clock.advance(600)
            assert (await until(lambda: _settled(seat, two.approval))).state == "expired"
            assert "not used in time" in str(await refused(seat, "approval_expired", two.approval, B))

    run(body())


def test_the_moment_of_a_deadline_decides_not_when_it_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one, two = await asked(seat, A, within=100), await asked(seat, B, within=100)
            await answer(seat, two.approval, True)
            now = seat.fleet.clock.now()
            monkeypatch.setattr(seat.fleet.controller.core, "now", lambda: now + 700)  # before anything expires it
            with pytest.raises(ConflictError, match="was not answered in time"):
                await answer(seat, one.approval, True)
            assert await seat.fleet.controller.approvals(ANA) == []
            await refused(seat, "approval_expired", two.approval, B)

    run(body())


async def _settled(seat: Seat, approval: str) -> ApprovalView | None:
    view = await seat.fleet.controller.approval(ANA, approval)
    return view if view.settled_at else None


ENDS = {
    "take": "a person has taken over",
    "revoke": "was revoked: enough",
    "release": "was released",
    "reassign": "was given to agent b",
    "expire": "ran out of time",
    "lost": "lost its desktop",
    "restore": "put back to snapshot",
}


@pytest.mark.parametrize("end", ENDS)
def test_what_ends_or_takes_over_makes_void_what_is_pending(tmp_path: Path, end: str) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            controller, lease = seat.fleet.controller, seat.lease
            one, two = await asked(seat, A), await asked(seat, B)
            await answer(seat, two.approval, True)
            if end == "take":
                await controller.take(ANA, lease)
            elif end == "revoke":
                await controller.revoke(ANA, lease, reason="enough")
            elif end == "release":
                await controller.release(seat.who, lease)
            elif end == "reassign":
                await controller.reassign(ANA, lease, to="b", clean=False)
            elif end == "expire":
                await answer(seat, one.approval, True)
                await controller.renew(seat.who, lease, 10)
                await seat.fleet.clock.advance(11)
                await seat.fleet.reached(lease, LeaseState.EXPIRED)
            elif end == "lost":
                await seat.desktop.screen.close()
                await seat.fleet.reached(lease, LeaseState.LOST)
            else:
                snapshot = await controller.save(ANA, lease, "")
                await controller.restore(ANA, snapshot.id)
            views = [await controller.approval(seat.who, x.approval) for x in (one, two)]
            assert [x.state for x in views] == ["void", "void"]
            assert ENDS[end] in views[0].answer, views[0]
            assert "top secret" not in str(views)
            if end == "restore":
                view = await controller.lease(ANA, lease)
                assert (view.approvals, view.expires_at is not None) == ((), True)
                assert "is void" in str(await refused(seat, "approval_void", two.approval, B))
            with pytest.raises(ConflictError, match="is void"):
                await answer(seat, one.approval, True)
            await seat.fleet.check()

    run(body())


def test_another_lease_gets_nothing_from_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, A)
            await answer(seat, one.approval, True)
            view = await seat.fleet.granted("b")
            b = Caller(lease=view.lease, agent="b")
            with pytest.raises(DeniedError) as caught:
                await seat.fleet.controller.act(b, view.lease, parse_actions([A]), approval=one.approval)
            assert caught.value.code == "other_lease"
            with pytest.raises(DeniedError):
                await seat.fleet.controller.approval(b, one.approval)
            assert await seat.fleet.controller.approvals(b) == []

    run(body())


def test_only_a_person_answers(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            controller = seat.fleet.controller
            await controller.add_agent(ANA, "parent", GENEROUS)
            await controller.add_agent(Caller(agent="parent"), "child", GENEROUS.but(children=0))
            view = await seat.fleet.granted("child")
            child = Caller(lease=view.lease, agent="child")
            one = await controller.ask_approval(child, view.lease, parse_actions([A]))
            callers = [child, Caller(agent="child"), Caller(agent="parent"), Caller(operator="o", role=Role.OBSERVER)]
            for who in callers:
                for approve in (True, False):
                    with pytest.raises(DeniedError) as caught:
                        await controller.answer(who, one.approval, approve=approve)
                    assert caught.value.code == "needs_operator"
                assert [x.approval for x in await controller.approvals(who)] == [one.approval], who
            with pytest.raises(DeniedError):
                await controller.ask_approval(Caller(agent="child"), view.lease, parse_actions([A]))
            bob = Caller(operator="bob", role=Role.OPERATOR)
            assert (await controller.answer(bob, one.approval, approve=True)).by == "operator bob"
            with pytest.raises(ConflictError, match="was approved by operator bob"):
                await controller.answer(ANA, one.approval, approve=False)

    run(body())


def test_what_nobody_can_judge_is_not_asked(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            with pytest.raises(InvalidError, match="off"):
                await asked(seat, {"type": "click", "x": 5000, "y": 1})
            with pytest.raises(InvalidError) as caught:
                await asked(seat, {"type": "type", "text": "x" * 100_000})
            assert caught.value.code == "too_large"
            for number in range(16):
                await asked(seat, {"type": "click", "x": number, "y": 1})
            with pytest.raises(ConflictError) as full:
                await asked(seat, A)
            assert full.value.code == "too_many_approvals"
            first = (await seat.fleet.controller.approvals(ANA))[0].approval
            with pytest.raises(InvalidError, match="is allowed once, not always"):
                await seat.fleet.controller.answer(ANA, first, approve=True, scope=Scope.ALWAYS)
            await seat.fleet.controller.take(ANA, seat.lease)
            with pytest.raises(FleetError):
                await asked(seat, A)
            with pytest.raises(FleetError):
                await seat.fleet.controller.ask_approval(ANA, seat.lease, parse_actions([A]))

    run(body())


def test_whoever_waits_hears_the_answer(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, A)
            get = seat.fleet.controller.approval
            assert (await get(seat.who, one.approval, wait=0.01)).state == "waiting"
            waiting = asyncio.create_task(get(seat.who, one.approval, wait=50), name="test: wait")
            await asyncio.sleep(0)
            await seat.act(A)  # other things happen
            assert not waiting.done()
            await answer(seat, one.approval, True)
            assert (await waiting).state == "approved"

    run(body())


def test_a_batch_of_looks_alone_is_agreed_to_and_used_up_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat)
            with pytest.raises(ConflictError) as caught:
                await act(seat, one.approval)
            assert caught.value.code == "approval_waiting"
            await answer(seat, one.approval, True)
            await act(seat, one.approval)
            assert (await seat.fleet.controller.approval(ANA, one.approval)).state == "used"

    run(body())


def test_a_request_sent_twice_is_answered_twice_and_done_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, A)
            await answer(seat, one.approval, True)
            more = {"approval": one.approval, "request_id": "r"}
            first = await seat.fleet.controller.act(seat.who, seat.lease, parse_actions([A]), **more)  # type: ignore[arg-type]
            again = await seat.fleet.controller.act(seat.who, seat.lease, parse_actions([A]), **more)  # type: ignore[arg-type]
            assert first == again
            assert len(await seat.entries("approval.used")) == 1

    run(body())


def test_of_two_who_use_it_at_once_one_does(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, A)
            await answer(seat, one.approval, True)
            results = await asyncio.gather(*(act(seat, one.approval, A) for _ in range(3)), return_exceptions=True)
            codes = [x.code for x in results if isinstance(x, FleetError)]
            assert codes == ["approval_used"] * 2
            assert len(await seat.entries("act")) == 1

    run(body())


@pytest.mark.parametrize("landed", [False, True])
def test_cancelled_while_it_is_used_it_is_used_up_only_with_an_intent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, landed: bool
) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            one = await asked(seat, A)
            await answer(seat, one.approval, True)
            core, honest = seat.fleet.controller.core, seat.fleet.controller.core.change

            async def cancelled(work: Any) -> Any:
                if not landed:
                    raise asyncio.CancelledError
                await honest(work)
                task.cancel()
                await asyncio.sleep(0)

            monkeypatch.setattr(core, "change", cancelled)
            task = asyncio.create_task(act(seat, one.approval, A), name="test: act")
            with pytest.raises(asyncio.CancelledError):
                await task
            monkeypatch.undo()
            results = [entry.result for entry in await seat.entries("act.done")]
            assert (len(await seat.entries("act")), results) == (int(landed), ["interrupted"] * landed)
            if landed:
                await refused(seat, "approval_used", one.approval, A)
            else:
                assert (await act(seat, one.approval, A)).done[0].ok

    run(body())


@pytest.mark.parametrize("kills", [1, 2])
def test_approvals_outlive_a_killed_controller(tmp_path: Path, kills: int) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            view = await fleet.granted("a")
            who = Caller(lease=view.lease, agent="a")
            first = await fleet.controller.ask_approval(who, view.lease, parse_actions([A]), within=1000)
            second = await fleet.controller.ask_approval(who, view.lease, parse_actions([B]), within=1000)
            await fleet.controller.answer(ANA, second.approval, approve=True)
            for _ in range(kills):
                await fleet.controller.core.note(lambda tx: tx.set_meta("alive_at", repr(fleet.clock.now())))
                await fleet.kill()
                await fleet.clock.advance(5000)
                await fleet.start()
            await fleet.settled()
            now = await fleet.controller.approval(who, first.approval)
            assert (now.state, now.remaining) == ("waiting", pytest.approx(1000, abs=5))
            lease = await fleet.controller.lease(ANA, view.lease)
            assert (lease.state, lease.approvals) == ("active", (first.approval,))
            await fleet.controller.act(who, view.lease, parse_actions([B]), approval=second.approval)
            await fleet.controller.answer(ANA, first.approval, approve=True)
            await fleet.controller.act(who, view.lease, parse_actions([A]), approval=first.approval)
            await fleet.check()

    run(body())


# what a yes does at once


class Merging:
    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.calls, self.fails = fleet, 0, True
        self.gate = asyncio.Event()
        self.gate.set()
        fleet.controller.approving.on_approved[Kind.MERGE] = self.merge

    async def merge(self, approval: Approval, who: Caller) -> dict[str, object]:
        self.calls += 1
        await self.gate.wait()
        if self.fails:
            raise ConflictError("main has moved on", code="merge_conflict")
        return {"commit": approval.subject, "by": who.who}

    async def ask(self, lease_id: str) -> Approval:
        def work(tx: Tx) -> Approval:
            lease = tx.get(Lease, lease_id)
            assert lease
            ask = self.fleet.controller.approving.ask_about
            return ask(tx, Kind.MERGE, "wt_1", lease, reason="merge it", facts={"into": "main"}, within=86400)

        return await self.fleet.controller.core.change(work)


def test_a_merge_is_made_by_the_answer_that_allows_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            view, merging = await fleet.granted("a"), Merging(fleet)
            one = await merging.ask(view.lease)
            assert (await merging.ask(view.lease)).id == one.id
            lease = await fleet.controller.lease(ANA, view.lease)
            assert (lease.approvals, lease.expires_at is not None) == ((), True), "it rests on no lease"
            await fleet.controller.revoke(ANA, view.lease)
            assert (await fleet.controller.approval(ANA, one.id)).state == "waiting"
            with pytest.raises(ConflictError, match="main has moved on"):
                await fleet.controller.answer(ANA, one.id, approve=True)
            failed = await fleet.controller.approval(ANA, one.id)
            assert (failed.state, failed.result and failed.result["code"]) == ("waiting", "merge_conflict")
            merging.fails = False
            done = await fleet.controller.answer(ANA, one.id, approve=True, reason="well done")
            assert (done.state, done.result) == ("used", {"commit": "wt_1", "by": "operator ana"})
            assert done.answer == "well done"
            with pytest.raises(ConflictError):
                await fleet.controller.answer(ANA, one.id, approve=True)
            assert merging.calls == 2
            told = [x.what for x in await fleet.controller.audit(ANA) if x.what.startswith("approval.")]
            again = ["approval.approved", "approval.failed", "approval.approved", "approval.used"]
            assert told == ["approval.asked", *again]
            assert (await fleet.controller.audit(ANA, what="approval.used"))[0].facts["result"] == done.result

    run(body())


def test_a_merge_that_is_cut_off_waits_for_an_answer_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setattr(Worktrees, "_withdraw", lambda *_: None)  # there is no worktree behind this question
        async with running(tmp_path) as fleet:
            view, merging = await fleet.granted("a"), Merging(fleet)
            one = await merging.ask(view.lease)
            merging.fails = False
            merging.gate.clear()
            task = asyncio.create_task(fleet.controller.answer(ANA, one.id, approve=True), name="test: answer")
            await until(lambda: merging.calls)
            with pytest.raises(ConflictError, match="was approved by operator ana"):
                await fleet.controller.answer(ANA, one.id, approve=True)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await fleet.controller.approval(ANA, one.id)).state == "waiting"
            stuck = asyncio.create_task(fleet.controller.answer(ANA, one.id, approve=True), name="test: answer")
            await until(lambda: merging.calls == 2)
            await fleet.kill()
            stuck.cancel()
            await asyncio.gather(stuck, return_exceptions=True)
            await fleet.start()
            Merging(fleet).fails = False
            again = await fleet.controller.approval(ANA, one.id)
            assert (again.state, again.by, again.result and again.result["code"]) == ("waiting", "", "interrupted")
            assert (await fleet.controller.answer(ANA, one.id, approve=True)).state == "used"

    run(body())


def test_what_is_settled_otherwise_is_withdrawn_and_what_is_old_is_forgotten(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            view, merging = await fleet.granted("a"), Merging(fleet)
            core = fleet.controller.core
            one = await merging.ask(view.lease)
            await core.change(lambda tx: withdraw(core, tx, Kind.MERGE, "wt_1", "operator ana", "it was discarded"))
            gone = await fleet.controller.approval(ANA, one.id)
            assert (gone.state, gone.answer) == ("void", "it was discarded")
            two = await merging.ask(view.lease)
            assert two.id != one.id
            await core.change(lambda tx: pending.forget(tx, core.now() + 1))
            assert [x.approval for x in await fleet.controller.approvals(ANA, everything=True)] == [two.id]

    run(body())


def test_the_numbers_say_how_many_wait(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            await asked(seat, A)
            assert (await seat.fleet.controller.status(ANA))["approvals"] == {"waiting": 1}
            assert "cu_fleet_approvals_waiting 1" in await seat.fleet.controller.metrics(ANA)

    run(body())
