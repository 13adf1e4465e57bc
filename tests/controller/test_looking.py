"""What an agent is shown and what its coordinates mean: views, frame ids, unchanged, settled and blank screens."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cu_fleet.backends.memory_inside import MemoryDesktop
from cu_fleet.model.access import Caller
from cu_fleet.model.action import parse_actions
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import ConflictError, DeniedError, FleetError, InvalidError, NotFoundError, UnavailableError
from cu_fleet.model.profile import Profile
from cu_fleet.model.request import Acted, Shot, Shown
from cu_fleet.testing.saboteurs import HANG, Saboteur
from tests.controller.fleet import ANA, Fleet, profile, running
from tests.support import run, until

RED, WHITE = (250, 20, 20), (255, 255, 255)


@dataclass
class Seat:
    """An agent at its desktop."""

    fleet: Fleet
    lease: str
    who: Caller
    desktop: MemoryDesktop

    async def look(self, **shot: Any) -> Shown:
        return await self.fleet.controller.screenshot(self.who, self.lease, Shot.model_validate(shot))

    async def act(self, *actions: dict[str, Any], shot: dict[str, Any] | None = None, **more: Any) -> Acted:
        wanted = None if shot is None else Shot.model_validate(shot)
        return await self.fleet.controller.act(self.who, self.lease, parse_actions(list(actions)), shot=wanted, **more)

    async def clicked(self, x: int, y: int, **more: Any) -> tuple[int, int]:
        """Where on the screen a click arrives."""
        before = len(self.desktop.events)
        await self.act({"type": "click", "x": x, "y": y}, **more)
        (down,) = [e for e in self.desktop.events[before:] if e[0] == "pointer" and e[3]]
        return int(str(down[1])), int(str(down[2]))

    async def entries(self, what: str) -> list[Entry]:
        return await self.fleet.controller.audit(ANA, limit=1000, what=what, lease=self.lease)


async def seat_of(fleet: Fleet, agent: str = "a", **ask: Any) -> Seat:
    lease = await fleet.granted(agent, **ask)
    who = await fleet.controller.caller(fleet.lease_token(lease.lease))
    return Seat(fleet, lease.lease, who, fleet.backend.desktop(lease.desktop or ""))


@asynccontextmanager
async def seated(home: Path, *profiles: Profile, **more: Any) -> AsyncIterator[Seat]:
    async with running(home, *profiles, **more) as fleet:
        yield await seat_of(fleet)


def size(shown: Shown) -> tuple[int, int]:
    found = Image.open(BytesIO(shown.data)).size
    assert found == (shown.width, shown.height)
    return found


def pixel(shown: Shown, x: int, y: int) -> Any:
    return Image.open(BytesIO(shown.data)).convert("RGB").getpixel((x, y))


# views and coordinates


def test_an_agent_sees_and_points_in_its_lease_s_view(tmp_path: Path) -> None:
    async def body() -> None:
        small = profile("small", screen={"width": 200, "height": 120, "view": 100})
        async with running(tmp_path, profile(), small) as fleet:
            seat = await seat_of(fleet, name="small")
            view = await fleet.controller.lease(ANA, seat.lease)
            assert (view.width, view.height, view.screen_width, view.screen_height) == (100, 60, 200, 120)
            assert view.scale == 0.5
            shown = await seat.look()
            assert size(shown) == (100, 60)
            assert (shown.scale, shown.screen_width, shown.within) == (0.5, 200, 0.0)
            assert await seat.clicked(0, 0) == (1, 1)
            assert await seat.clicked(99, 59) == (199, 119)
            seat.desktop.screen.fill(40, 20, 20, 20, RED)
            assert size(region := await seat.look(region=[20, 10, 10, 10])) == (10, 10)
            assert {pixel(region, 0, 0), pixel(region, 9, 9)} == {RED}
            with pytest.raises(InvalidError, match="off the view, which is 100x60"):
                await seat.clicked(100, 0)
            (act, *_) = await seat.entries("act")
            assert (act.action or {})["x"] == 1
            assert act.facts["asked"] == {"x": 0, "y": 0}

    run(body())


def test_the_view_asked_for_at_acquire_wins_and_stays(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            seat = await seat_of(fleet, view=50)
            assert size(await seat.look()) == (50, 30)
            to = await fleet.controller.reassign(ANA, seat.lease, to="b", clean=False)
            assert (to.width, to.height) == (50, 30)
            whole = await seat_of(fleet, "c", view=5000)
            assert size(await whole.look()) == (200, 120)

    run(body())


def test_a_zoom_comes_with_all_its_pixels_and_is_pointed_at_by_its_frame(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            seat = await seat_of(fleet, view=100)
            seat.desktop.screen.fill(61, 41, 1, 1, RED)
            zoom = await seat.look(region=[30, 20, 10, 10], max_edge=2000)
            assert size(zoom) == (20, 20), "never more than the screen has"
            assert pixel(zoom, 1, 1) == RED
            assert pixel(zoom, 0, 0) != RED
            assert await seat.clicked(1, 1, frame=zoom.frame) == (61, 41)
            closer = await seat.look(region=[0, 0, 4, 4], frame=zoom.frame, max_edge=100)
            assert size(closer) == (4, 4)
            assert await seat.clicked(3, 3, frame=closer.frame) == (63, 43)
            assert await seat.clicked(1, 1) == (3, 3), "without a frame, the view"
            with pytest.raises(InvalidError, match=f"off frame {closer.frame}, which is 4x4"):
                await seat.clicked(4, 0, frame=closer.frame)
            with pytest.raises(InvalidError) as refused:
                await seat.act({"type": "key", "keys": "a"}, shot={"region": [0, 0, 300, 1]})
            assert refused.value.code == "off_screen"
            assert not [event for event in seat.desktop.events if event[0] == "key"], "refused before anything is sent"

    run(body())


def test_a_frame_that_is_not_of_this_desktop_as_it_is_now_is_refused_by_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            seat, other = await seat_of(fleet), await seat_of(fleet, "b")
            theirs = await other.look()
            mine = await seat.look()
            snapshot = await fleet.controller.save(ANA, seat.lease, "")
            await fleet.controller.restore(ANA, snapshot.id)
            await fleet.settled()
            seat.desktop = fleet.backend.desktop((await fleet.controller.lease(ANA, seat.lease)).desktop or "")
            cases: list[tuple[str, type[FleetError], str, str]] = [
                (theirs.frame, DeniedError, "other_lease", "of another lease"),
                (mine.frame, ConflictError, "old_generation", "of generation"),
                ("fr_unknown", NotFoundError, "no_frame", "is not known"),
            ]
            for frame, kind, code, words in cases:
                before = list(seat.desktop.events)
                for call in (seat.clicked(1, 1, frame=frame), seat.look(region=[0, 0, 9, 9], frame=frame)):
                    with pytest.raises(kind, match=f"frame {frame} {words}|frame {frame} is .*{words}") as refused:
                        await call
                    assert refused.value.code == code
                    assert "take a new screenshot" in refused.value.remedy
                assert seat.desktop.events == before

    run(body())


# what has not changed


def test_unchanged_is_said_without_pixels_and_is_on_record(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            first = await seat.look()
            again = await seat.look(if_changed_since=first.frame)
            assert again.unchanged
            assert again.data == b""
            assert (again.frame, again.sha256) == (first.frame, first.sha256)
            assert (await seat.act({"type": "wait", "seconds": 0}, shot={"if_changed_since": first.frame})).screenshot
            looks = await seat.entries("look")
            assert [entry.facts.get("unchanged", False) for entry in looks] == [False, True, True]
            assert {entry.frames for entry in looks} == {(first.sha256,)}
            assert {entry.facts["frame"] for entry in looks} == {first.frame}
            await seat.fleet.check()

    run(body())


def test_whatever_would_look_different_is_shown(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            whole = await seat.look()
            for other in ({"region": [0, 0, 50, 50]}, {"max_edge": 100}, {"format": "jpeg"}):
                assert not (await seat.look(if_changed_since=whole.frame, **other)).unchanged
            assert (await seat.look(if_changed_since="fr_unknown")).data
            part = await seat.look(region=[0, 0, 50, 50])
            seat.desktop.screen.fill(100, 100, 4, 4, RED)
            assert (await seat.look(if_changed_since=part.frame, region=[0, 0, 50, 50])).unchanged, "not in this region"
            changed = await seat.look(if_changed_since=whole.frame)
            assert not changed.unchanged
            assert pixel(changed, 101, 101) == RED
            pointer = await seat.look(pointer=True)
            await seat.act({"type": "move", "x": 9, "y": 9})
            assert not (await seat.look(if_changed_since=pointer.frame, pointer=True)).unchanged

    run(body())


def test_what_changed_and_changed_back_is_unchanged_also_over_a_new_connection(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            before = bytes(seat.desktop.screen.pixels)
            first = await seat.look()
            seat.desktop.screen.fill(0, 0, 9, 9, RED)
            assert not (await seat.look(if_changed_since=first.frame)).unchanged
            seat.desktop.screen.show(before)
            assert (await seat.look(if_changed_since=first.frame)).unchanged
            (lease,) = await seat.fleet.controller.leases(ANA)
            await seat.fleet.controller.actors.of(lease.desktop or "").disconnect()
            assert (await seat.look(if_changed_since=first.frame)).unchanged

    run(body())


# settled


def test_a_batch_answers_with_the_settled_picture(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:

            async def draw() -> None:
                for number in range(1, 5):
                    seat.desktop.screen.fill(50, 50, 20, 20, (number, 200, 9))
                    await asyncio.sleep(0.01)

            drawing = asyncio.create_task(draw(), name="test: draw")
            acted = await seat.act({"type": "key_up", "key": "a"}, shot={"settle_ms": 700, "settle_timeout_ms": 20_000})
            await drawing
            assert acted.screenshot
            assert acted.screenshot.settled is True
            assert pixel(acted.screenshot, 60, 60) == (4, 200, 9)
            at_once = await seat.act({"type": "key_up", "key": "a"}, shot={"settle_ms": 0})
            assert at_once.screenshot
            assert at_once.screenshot.settled is None
            by_default = await seat.act({"type": "key_up", "key": "a"}, shot={})
            assert by_default.screenshot
            assert by_default.screenshot.settled is not None
            assert (await seat.look()).settled is None

    run(body())


def test_a_screen_that_never_rests_is_shown_all_the_same(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:

            async def flicker() -> None:
                for number in range(10**9):
                    seat.desktop.screen.fill(0, 0, 9, 9, (number % 250, 1, 1))
                    await asyncio.sleep(0.01)

            flickering = asyncio.create_task(flicker(), name="test: flicker")
            wanted = {"settle_ms": 10_000, "settle_timeout_ms": 300}
            acted = await seat.act({"type": "key_up", "key": "a"}, shot=wanted)
            looked = await seat.look(**wanted)
            elsewhere = await seat.look(settle_ms=100, settle_timeout_ms=20_000, region=[100, 50, 50, 50])
            flickering.cancel()
            assert acted.screenshot
            assert (acted.screenshot.settled, looked.settled, elsewhere.settled) == (False, False, True)

    run(body())


def test_a_pause_ends_the_waiting_for_rest_and_what_was_done_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            wanted = {"settle_ms": 9_000, "settle_timeout_ms": 20_000}
            task = asyncio.create_task(seat.act({"type": "key", "keys": "a"}, shot=wanted), name="test: act")
            await until(lambda: ("key", ord("a"), False) in seat.desktop.events)
            await until(lambda: seat.fleet.controller.audit(ANA, what="act.done"))
            await seat.fleet.controller.pause(ANA, seat.lease, reason="wait")
            acted = await task
            assert [done.ok for done in acted.done] == [True]
            assert acted.screenshot is None
            assert acted.not_shown
            assert acted.not_shown.code == "lease_paused"
            assert (await seat.look(settle_ms=50)).settled, "looking is allowed, and waits for rest too"

    run(body())


# what is no picture


def test_a_blank_screen_is_said_not_shown(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            for colour, words in ((0, 0, 0), r"#000000 \(black\)"), (WHITE, r"#ffffff \(white\)"), (RED, "#fa1414;"):
                seat.desktop.screen.fill(0, 0, 200, 120, colour)
                with pytest.raises(UnavailableError, match=words) as refused:
                    await seat.look()
                assert refused.value.code == "blank_screen"
                assert "allow_blank" in refused.value.remedy
                assert pixel(await seat.look(allow_blank=True), 5, 5) == colour
            (first, *_) = await seat.entries("look")
            assert (first.result, first.facts["colour"]) == ("blank_screen", "#000000")
            seat.desktop.screen.fill(5, 5, 1, 1, WHITE)
            assert (await seat.look(region=[50, 50, 10, 10])).data, "a plain part of a screen that shows something"

    run(body())


def test_what_was_done_is_told_and_remembered_if_there_is_no_picture_of_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            seat.desktop.screen.fill(0, 0, 200, 120, WHITE)
            for _ in range(2):
                acted = await seat.act({"type": "key_up", "key": "a"}, shot={"settle_ms": 0}, request_id="r1")
                assert [done.ok for done in acted.done] == [True]
                assert acted.screenshot is None
                assert acted.not_shown
                assert acted.not_shown.code == "blank_screen"
                assert "allow_blank" in (acted.not_shown.detail or "")
            assert len(await seat.entries("act")) == 1, "the same request is not done twice"

    run(body())


def test_a_batch_that_failed_in_the_middle_is_shown_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            batch = [
                {"type": "key_up", "key": "x"},
                {"type": "wait_change", "timeout_ms": 1},
                {"type": "key", "keys": "b"},
            ]
            acted = await seat.act(*batch, shot={})
            assert [done.code for done in acted.done] == [None, "no_change", "not_done"]
            assert acted.screenshot

    run(body())


def test_a_request_that_was_cut_off_is_not_done_again(tmp_path: Path) -> None:
    async def body() -> None:
        async with seated(tmp_path) as seat:
            batch = [{"type": "key", "keys": "a"}, {"type": "wait", "seconds": 60}, {"type": "key", "keys": "b"}]
            task = asyncio.create_task(seat.act(*batch, request_id="r1"), name="test: act")
            await until(lambda: seat.fleet.controller.audit(ANA, what="act.done"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            acted = await seat.act(*batch, request_id="r1")
            assert [done.code for done in acted.done] == [None, "interrupted", "not_done"]
            assert seat.desktop.events.count(("key", ord("a"), True)) == 1

    run(body())


# what is remembered between calls


def test_what_changes_about_a_lease_counts_at_once(tmp_path: Path) -> None:
    async def body() -> None:
        saboteurs: list[Saboteur] = []

        def wrap(backend: Any) -> Any:
            saboteurs.append(Saboteur(backend))
            return saboteurs[-1]

        async with seated(tmp_path, wrap=wrap) as seat:
            await seat.look()
            (lease,) = await seat.fleet.controller.leases(ANA)
            await seat.fleet.controller.freeze(ANA, lease.desktop or "")
            with pytest.raises(ConflictError, match="is frozen"):
                await seat.look()
            with pytest.raises(ConflictError, match="is frozen"):
                await seat.clicked(1, 1)
            await seat.fleet.controller.thaw(ANA, lease.desktop or "")
            assert (await seat.look()).data
            saboteurs[-1].at("endpoint", HANG)
            assert (await seat.look()).data, "a connected screen asks its backend nothing"
            await seat.fleet.controller.pause(ANA, seat.lease, looking=False)
            with pytest.raises(FleetError) as refused:
                await seat.look()
            assert refused.value.code == "lease_paused"

    run(body())


def test_only_so_many_frames_of_leases_under_way_are_remembered(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            a, b = await seat_of(fleet), await seat_of(fleet, "b")
            frames = [(await a.look(region=[0, 0, 2, 2])).frame for _ in range(129)]
            await b.look()
            with pytest.raises(NotFoundError, match="the last 128"):
                await a.clicked(0, 0, frame=frames[0])
            assert await a.clicked(0, 0, frame=frames[1]) == (0, 0)
            known = fleet.controller.sweeper.looking._known  # noqa: SLF001 - what is kept in memory
            assert {lease: len(of) for lease, of in known.items()} == {a.lease: 128, b.lease: 1}
            await fleet.controller.release(ANA, b.lease)
            await fleet.controller.sweeper.sweep()
            assert set(fleet.controller.sweeper.looking._known) == {a.lease}  # noqa: SLF001
            assert await a.clicked(0, 0, frame=frames[2]) == (0, 0)

    run(body())
