"""What the record says of a batch that was refused, failed or cut off in the middle: the truth about each action."""

import asyncio
from pathlib import Path

import pytest

from cu_fleet.controller import actor
from cu_fleet.controller.batch import Batch
from cu_fleet.model.errors import FleetError, TooLongError
from tests.controller.fleet import ANA, profile
from tests.controller.test_looking import Seat, seated
from tests.support import run, until

A, B = {"type": "key", "keys": "a"}, {"type": "key", "keys": "b"}
NEVER = {"type": "wait_stable", "quiet_ms": 1000, "timeout_ms": 1}


async def told(seat: Seat) -> list[tuple[str, str | None]]:
    """Every intent with its result, in order; and what was refused."""
    entries = await seat.fleet.controller.audit(ANA, limit=1000, lease=seat.lease)
    results = {entry.of: entry.result for entry in entries if entry.what == "act.done"}
    acts = [entry for entry in entries if entry.what in ("act", "act.refused")]
    assert len(results) == sum(entry.what == "act.done" for entry in entries), "two results of one intent"
    return [(entry.what, results.get(entry.seq, entry.result)) for entry in acts]


def test_what_is_refused_takes_nothing_from_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            honest, calls = Batch.intend, 0

            async def paused_before_the_third(self: Batch, action: object) -> None:
                nonlocal calls
                calls += 1
                if calls == 3:
                    pausing = asyncio.create_task(seat.fleet.controller.pause(ANA, seat.lease), name="test: pause")
                    await until(lambda: seat.fleet.controller.audit(ANA, what="lease.paused"))
                    pausings.append(pausing)
                await honest(self, action)  # type: ignore[arg-type]

            pausings: list[asyncio.Task[object]] = []
            monkeypatch.setattr(Batch, "intend", paused_before_the_third)
            acted = await seat.act(A, B, A, B)
            assert [done.code for done in acted.done] == [None, None, "lease_paused", "not_done"]
            assert await told(seat) == [("act", "ok"), ("act", "ok"), ("act.refused", "lease_paused")]
            await pausings[0]
            await seat.fleet.check()

    run(body())


def test_what_failed_and_what_was_cut_off_have_one_result_each(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            await seat.act(A, NEVER, B)
            with pytest.raises(TooLongError):
                await seat.act(NEVER, B)
            assert await told(seat) == [("act", "ok"), ("act", "not_stable"), ("act", "not_stable")]
            task = asyncio.create_task(seat.act(A, {"type": "wait", "seconds": 60}, B), name="test: act")
            await until(lambda: _begun(seat, 5))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await told(seat))[3:] == [("act", "ok"), ("act", "interrupted")]
            await seat.act(B)
            assert (await told(seat))[5:] == [("act", "ok")]

    run(body())


async def _begun(seat: Seat, count: int) -> bool:
    return len(await seat.entries("act")) == count


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_wherever_it_is_cancelled_each_intent_has_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """Cancelled while an intent, or the last result, is being written down: it may have landed or not."""

    async def body() -> None:
        async with seated(tmp_path) as seat:
            core, honest, calls = seat.fleet.controller.core, seat.fleet.controller.core.note, 0

            async def cancelled(work: object) -> object:
                nonlocal calls
                calls += 1
                result = await honest(work)  # type: ignore[arg-type, var-annotated]
                if calls == before + 1:
                    task.cancel()
                    await asyncio.sleep(0)
                return result

            monkeypatch.setattr(core, "note", cancelled)
            task = asyncio.create_task(seat.act(A, B, A, request_id="r"), name="test: act")
            with pytest.raises(asyncio.CancelledError):
                await task
            monkeypatch.undo()
            record = await told(seat)
            assert [result for _, result in record[:-1]] == ["ok"] * (len(record) - 1)
            assert record[-1][1] == ("ok" if before == 3 else "interrupted")
            again = await seat.act(A, B, A, request_id="r")
            assert [done.ok for done in again.done] == [True] * before + [False] * (3 - before)
            assert await told(seat) == record, "nothing is done again"
            assert await core.read(lambda tx: tx.get_meta(f"acting:{seat.desktop.screen.name.split()[1]}")) is None

    run(body())


def test_a_batch_of_a_kept_profile_that_fails_keeps_what_it_left(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path, profile("local", frames="actions")) as seat:
            with pytest.raises(FleetError):
                await seat.act(NEVER)
            await seat.act(A, NEVER)
            entries = await seat.entries("act.done")
            assert [len(entry.frames) for entry in entries] == [1, 2, 1], "one where before and after are one picture"

    run(body())


def test_answers_kept_for_those_who_ask_again_lose_their_pictures_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            first = await seat.act(A, shot={"allow_blank": True}, request_id="first")
            assert first.screenshot
            assert await seat.act(A, shot={"allow_blank": True}, request_id="first") == first
            monkeypatch.setattr(actor, "_PICTURES", len(first.screenshot.data) * 3 // 2)
            second = await seat.act(A, shot={"allow_blank": True}, request_id="second")
            again = await seat.act(A, shot={"allow_blank": True}, request_id="first")
            assert (again.done, again.screenshot) == (first.done, None)
            assert again.not_shown
            assert again.not_shown.code == "not_kept"
            assert await seat.act(A, shot={"allow_blank": True}, request_id="second") == second
            assert len(await seat.entries("act")) == 2, "nothing is done again"

    run(body())
