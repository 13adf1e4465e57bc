"""What comes too late, or is cut off: nobody is told of a desktop that is no longer theirs, and nothing stays down."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.memory_inside import Call
from cu_fleet.model.access import Caller
from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import FleetError, UnavailableError
from cu_fleet.model.lease import LeaseState
from cu_fleet.model.request import Shot
from cu_fleet.rfb.screen import Screen
from tests.controller.fleet import ANA, Fleet, running
from tests.support import run, until


class Within:
    """The helper in every desktop: it keeps account of its buttons, and answers when it may."""

    def __init__(self, fleet: Fleet) -> None:
        self.down: set[str] = set()
        self.asked: list[str] = []
        self.answers = asyncio.Event()
        self.answers.set()
        fleet.backend.commands["python3"] = self.serve

    async def serve(self, call: Call) -> int:
        while line := await call.read():
            asked = json.loads(line)
            self.asked.append(asked["do"])
            await self.answers.wait()
            match asked["do"]:
                case "button":
                    (self.down.add if asked["down"] else self.down.discard)(asked["name"])
                case "lift":
                    self.down.clear()
            answer = {"id": asked["id"], "ok": {"text": "whose it is now", "windows": []}}
            await call.out(json.dumps(answer).encode() + b"\n")
        return 0


async def caller_of(fleet: Fleet, lease: str) -> Caller:
    return await fleet.controller.caller(fleet.lease_token(lease))


async def _revoke(fleet: Fleet, lease: str) -> None:
    await fleet.controller.revoke(ANA, lease)


async def _pause(fleet: Fleet, lease: str) -> None:
    await fleet.controller.pause(ANA, lease)


async def _take(fleet: Fleet, lease: str) -> None:
    await fleet.controller.take(ANA, lease)


async def _release(fleet: Fleet, lease: str) -> None:
    await fleet.controller.release(ANA, lease)


async def _reassign(fleet: Fleet, lease: str) -> None:
    await fleet.controller.reassign(ANA, lease, to="b", clean=False)


@pytest.mark.parametrize("name", [None, "finance"])
@pytest.mark.parametrize("end", [_revoke, _pause, _take, _release, _reassign])
def test_a_button_held_from_inside_is_lifted_when_control_ends(
    tmp_path: Path, end: Callable[[Fleet, str], Coroutine[None, None, None]], name: str | None
) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            within = Within(fleet)
            lease = await fleet.granted("a", desktop=name)
            held = parse_actions(
                [{"type": "press", "x": 5, "y": 5, "button": button} for button in ("back", "forward")]
            )
            await fleet.controller.act(await caller_of(fleet, lease.lease), lease.lease, held)
            assert within.down == {"back", "forward"}
            await end(fleet, lease.lease)
            assert not within.down
            assert "lift" in within.asked

    run(body())


@pytest.mark.parametrize("end", [_revoke, _release, _pause, _reassign])
@pytest.mark.parametrize("name", [None, "finance"])
def test_an_end_that_is_cancelled_once_it_is_written_down_is_finished(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Fleet, str], Coroutine[None, None, None]],
    name: str | None,
) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", desktop=name)
            actions = parse_actions([{"type": "key_down", "key": "a"}])
            await fleet.controller.act(await caller_of(fleet, lease.lease), lease.lease, actions)
            desktop = fleet.backend.desktop(lease.desktop or "")
            store, honest = fleet.controller.core.store, fleet.controller.core.store.transact

            async def cancelled(work: object, **more: object) -> object:
                result = await honest(work, **more)  # type: ignore[arg-type, var-annotated]
                if (await honest(lambda tx: fleet.controller.core.get_lease(tx, lease.lease))) != before:
                    monkeypatch.undo()
                    ending.cancel()
                    await asyncio.sleep(0)
                return result

            before = await honest(lambda tx: fleet.controller.core.get_lease(tx, lease.lease))
            monkeypatch.setattr(store, "transact", cancelled)
            ending = asyncio.create_task(end(fleet, lease.lease), name="test: end")
            with pytest.raises(asyncio.CancelledError):
                await ending
            await until(lambda: desktop.events[-1] == ("key", ord("a"), False))
            await fleet.settled()
            await fleet.check()

    run(body())


def test_a_look_that_waits_for_rest_hears_why_its_lease_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            who = await caller_of(fleet, lease.lease)
            shot = Shot(settle_ms=5000, settle_timeout_ms=20_000)
            begun, honest = asyncio.Event(), Screen.wait_stable

            async def waiting(self: Screen, *what: Any) -> None:
                begun.set()
                await honest(self, *what)

            monkeypatch.setattr(Screen, "wait_stable", waiting)
            looking = asyncio.create_task(fleet.controller.screenshot(who, lease.lease, shot), name="test: look")
            await begun.wait()
            await fleet.controller.revoke(ANA, lease.lease, reason="enough")
            with pytest.raises(FleetError) as refused:
                await looking
            assert refused.value.code == "lease_revoked"

    run(body())


def test_a_look_at_a_blank_screen_that_is_no_longer_theirs_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", desktop="finance")
            who = await caller_of(fleet, lease.lease)
            await fleet.controller.screenshot(who, lease.lease, Shot())
            actor = fleet.controller.actors.of(lease.desktop or "")
            async with actor.turn:
                looking = asyncio.create_task(fleet.controller.screenshot(who, lease.lease, Shot()), name="test: look")
                await asyncio.sleep(0)
                ending = asyncio.create_task(fleet.controller.release(ANA, lease.lease), name="test: release")
                await fleet.reached(lease.lease, LeaseState.RELEASED)
                monkeypatch.setattr("cu_fleet.controller.looking.looks_blank", lambda frame: True)
            with pytest.raises(FleetError) as refused:
                await looking
            await ending
            assert refused.value.code == "lease_released"
            looks = await fleet.controller.audit(ANA, what="look")
            assert looks[-1].result == "lease_released"
            assert "colour" not in looks[-1].facts

    run(body())


async def _resume(fleet: Fleet, lease: str) -> None:
    await fleet.controller.resume(ANA, lease)


@pytest.mark.parametrize("end", [_revoke, _resume, _reassign])
def test_what_could_not_be_written_down_leaves_a_person_in_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[Fleet, str], Coroutine[None, None, None]]
) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            await fleet.controller.take(ANA, lease.lease)

            async def full(work: object) -> None:
                raise UnavailableError("the disk is full")

            monkeypatch.setattr(fleet.controller.core, "change", full)
            with pytest.raises(UnavailableError, match="full"):
                await end(fleet, lease.lease)
            monkeypatch.undo()
            acted = await fleet.controller.act(ANA, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            assert acted.done[0].ok

    run(body())
