"""Disks: a desktop that has written more than it may stands still, whoever holds it hears why, and others go on."""

import asyncio
from pathlib import Path
from typing import NoReturn

import pytest

from cu_fleet.backends.base import Place, Room
from cu_fleet.backends.memory import MemoryBackend
from cu_fleet.backends.memory_inside import MemoryFile
from cu_fleet.controller import bounding
from cu_fleet.model.action import parse_actions
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import LeasePausedError, UnavailableError
from cu_fleet.model.view import LeaseView
from tests.controller.fleet import ANA, Fleet, profile, running
from tests.support import run, until

SMALL = profile(limits={"disk": "1M"})
MUCH = MemoryFile(b"x" * (2 << 20))
CLICK = parse_actions([{"type": "click", "x": 1, "y": 1}])


def write(fleet: Fleet, lease: LeaseView, file: MemoryFile = MUCH) -> None:
    fleet.backend.desktop(lease.desktop or "").files["/home/agent/much"] = file


async def look(fleet: Fleet) -> None:
    await fleet.clock.advance(bounding.MEASURE_EVERY + 1)


async def paused(fleet: Fleet, lease: LeaseView) -> LeaseView:
    async def so() -> LeaseView | None:
        await look(fleet)
        found = await fleet.controller.lease(ANA, lease.lease)
        return found if found.control == "paused" else None

    found = await until(so)
    assert found
    return found


def test_who_writes_more_than_the_limit_stands_still_and_hears_why(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, SMALL) as fleet:
            lease, other = await fleet.granted("a"), await fleet.granted("b")
            write(fleet, lease)
            found = await paused(fleet, lease)
            assert "it has written 2 MB, and its limit is 1 MB" in found.reason
            who = await fleet.controller.caller(fleet.lease_token(lease.lease))
            with pytest.raises(LeasePausedError, match="it has written 2 MB"):
                await fleet.controller.act(who, lease.lease, CLICK)
            view = await fleet.controller.desktop(ANA, lease.desktop or "")
            assert view.frozen
            assert "its limit is 1 MB" in view.note
            assert (view.disk_limit, (view.disk_bytes or 0) >= 2 << 20) == (1 << 20, True)
            assert (await fleet.controller.lease(ANA, other.lease)).control == "agent"
            whats = [entry.what for entry in await fleet.controller.audit(ANA)]
            assert whats.count("desktop.over_limit") == 1

    run(body())


def test_let_go_on_it_is_stopped_again_until_the_room_is_free(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, SMALL) as fleet:
            lease = await fleet.granted("a")
            write(fleet, lease)
            await paused(fleet, lease)
            await fleet.controller.thaw(ANA, lease.desktop or "")
            await fleet.controller.resume(ANA, lease.lease)
            await paused(fleet, lease)
            write(fleet, lease, MemoryFile(b""))
            await fleet.controller.thaw(ANA, lease.desktop or "")
            await fleet.controller.resume(ANA, lease.lease)
            for _ in range(5):
                await look(fleet)
            assert (await fleet.controller.lease(ANA, lease.lease)).control == "agent"

    run(body())


def test_released_it_is_clean_and_serves_the_next(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, SMALL, max_desktops=1) as fleet:
            lease = await fleet.granted("a")
            write(fleet, lease)
            await paused(fleet, lease)
            await fleet.controller.release(ANA, lease.lease)
            following = await fleet.granted("b")
            assert following.desktop == lease.desktop
            assert not (await fleet.controller.desktop(ANA, lease.desktop or "")).frozen

    run(body())


def test_one_that_nobody_holds_is_replaced(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, SMALL) as fleet:
            lease = await fleet.granted("a")
            await fleet.controller.release(ANA, lease.lease)
            await fleet.controller.keeper.settled(lease.desktop or "")
            write(fleet, lease)

            async def gone() -> bool:
                await look(fleet)
                return lease.desktop not in {x.desktop for x in await fleet.controller.desktops(ANA)}

            await until(gone)

    run(body())


@pytest.mark.parametrize(("host", "words"), [("", "of the disk"), ("me@there", "of the disk on me@there")])
def test_when_hardly_any_room_is_left_who_has_written_most_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, words: str
) -> None:
    monkeypatch.setattr(bounding, "_STEP", 1 << 20)

    async def room(handle: Handle) -> Room:
        return Room("one", 100 << 20, 10 << 30, host)

    async def body() -> None:
        async with running(tmp_path) as fleet:
            monkeypatch.setattr(fleet.backend.abilities.disk, "room", room)
            other, lease = await fleet.granted("b"), await fleet.granted("a")
            write(fleet, lease)
            found = await paused(fleet, lease)
            assert f"only 100 MB are left {words}, and it has written most, 2 MB" in found.reason
            assert (await fleet.controller.lease(ANA, other.lease)).control == "agent"

    run(body())


def test_a_host_that_does_not_answer_keeps_nobody_else_from_being_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Handle] = []

    async def hangs(handle: Handle) -> NoReturn:
        asked.append(handle)
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody answers")

    async def body() -> None:
        async with running(tmp_path, SMALL, profile("far", backend="away")) as fleet:
            away = MemoryBackend(Place(tmp_path, "f1"), fleet.world)
            monkeypatch.setattr(away.abilities.disk, "used", hangs)
            fleet.controller.core.backends["away"] = away
            lease, _ = await fleet.granted("a"), await fleet.granted("b", "far")
            await look(fleet)
            await until(lambda: asked)
            write(fleet, lease)
            await paused(fleet, lease)
            assert len(asked) == 1

    run(body())


def test_a_desktop_that_could_not_be_frozen_is_frozen_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with running(tmp_path, SMALL) as fleet:
            lease = await fleet.granted("a")
            ability = fleet.backend.abilities.freeze
            assert ability
            honest, failed = ability.freeze, []

            async def fails_once(handle: object) -> None:
                if not failed:
                    failed.append(handle)
                    raise UnavailableError("not now")
                await honest(handle)  # type: ignore[arg-type]

            monkeypatch.setattr(ability, "freeze", fails_once)
            desktop = fleet.backend.desktop(lease.desktop or "")
            write(fleet, lease)

            async def still() -> bool:
                await look(fleet)
                return not desktop.gate.is_open

            await until(still)
            whats = [entry.what for entry in await fleet.controller.audit(ANA)]
            assert whats.count("desktop.over_limit") == 1

    run(body())
