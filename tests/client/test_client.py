"""The asynchronous client against a real door."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cu_fleet.backends.memory_inside import Call
from cu_fleet.client import Desktop, Fleet
from cu_fleet.model.errors import (
    ConflictError,
    DeniedError,
    FleetError,
    InvalidError,
    LeaseOverError,
    LeasePausedError,
    NotFoundError,
    TooLongError,
    UnauthorizedError,
    UnavailableError,
)
from cu_fleet.model.ui import Ui, UiNode, UiWindow
from tests.api.door import Door, open_door, served
from tests.controller.fleet import ANA, profile, running
from tests.support import run, until


@asynccontextmanager
async def connected(home: Path, *profiles: Any, **more: Any) -> AsyncIterator[tuple[Door, Fleet]]:
    async with open_door(home, *profiles, **more) as door, Fleet.connect(home=home, start=False) as fleet:
        yield door, fleet


async def _states(door: Door) -> dict[str, str]:
    return {view.agent: view.state for view in await door.fleet.controller.leases(ANA, everything=True, agent=None)}


# leasing


def test_a_lease_is_there_in_the_block_and_given_back_after_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):
            async with fleet.lease(agent="a", profile="local", resources=["browser:x"], ttl="10m") as desktop:
                assert (desktop.lease.state, desktop.lease.ttl, desktop.lease.resources) == (
                    "active", 600, ("browser:x",),
                )  # fmt: skip
                assert await _states(door) == {"a": "active"}
            assert await _states(door) == {"a": "released"}
            with pytest.raises(LeaseOverError, match="was released"):
                await desktop.click(1, 1)

    run(body())


def test_an_error_in_the_block_gives_it_back_and_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):
            with pytest.raises(ZeroDivisionError):
                async with fleet.lease(agent="a", profile="local"):
                    raise ZeroDivisionError
            assert await _states(door) == {"a": "released"}

    run(body())


def test_cancelling_the_block_gives_it_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):
            inside = asyncio.Event()

            async def work() -> None:
                async with fleet.lease(agent="a", profile="local"):
                    inside.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await _states(door) == {"a": "released"}

    run(body())


def test_who_waits_gets_it_when_it_is_released(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):
            order: list[str] = []

            async def work(agent: str) -> None:
                async with fleet.lease(agent=agent, profile="local", desktop="one", wait=None):
                    order.append(agent)
                    await until(lambda: _waiting(door, 3 - len(order)))

            tasks = []
            for agent in ("a", "b", "c"):
                tasks.append(asyncio.create_task(work(agent)))
                await until(lambda agent=agent: _asked(door, agent))  # type: ignore[misc]
            await asyncio.gather(*tasks)
            assert order == ["a", "b", "c"]

    async def _waiting(door: Door, count: int) -> bool:
        return list((await _states(door)).values()).count("waiting") == count

    async def _asked(door: Door, agent: str) -> bool:
        return agent in await _states(door)

    run(body())


def test_waiting_too_long_says_for_whom_and_leaves_the_queue(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):
            await door.fleet.granted("a", desktop="one")

            async def pass_time() -> None:
                await until(lambda: _is_waiting(door))
                await door.fleet.clock.advance(31)

            passing = asyncio.create_task(pass_time())
            with pytest.raises(TooLongError, match="agent b waited too long") as caught:
                async with fleet.lease(agent="b", profile="local", desktop="one", wait=30):
                    raise AssertionError("granted")
            await passing
            assert "agent a" in str(caught.value)
            assert (await _states(door))["b"] == "cancelled"

    async def _is_waiting(door: Door) -> bool:
        return (await _states(door)).get("b") == "waiting"

    run(body())


def test_who_will_not_wait_hears_who_holds_it(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):
            held = await door.fleet.granted("a", desktop="one")
            with pytest.raises(ConflictError) as caught:
                async with fleet.lease(agent="b", profile="local", desktop="one", wait=0):
                    raise AssertionError("granted")
            assert (caught.value.code, caught.value.facts["agent"]) == ("taken", "b")
            assert caught.value.facts["holder"]["lease"] == held.lease  # type: ignore[index]
            assert str(caught.value).startswith("lease denied: agent b asked")

    run(body())


def test_cancelling_who_waits_withdraws_the_request(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):
            await door.fleet.granted("a", desktop="one")

            async def work() -> None:
                async with fleet.lease(agent="b", profile="local", desktop="one", wait=None):
                    raise AssertionError("granted")

            task = asyncio.create_task(work())
            await until(lambda: _is(door, "b", "waiting"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await _is(door, "b", "cancelled")

    async def _is(door: Door, agent: str, state: str) -> bool:
        return (await _states(door)).get(agent) == state

    run(body())


def test_cancelled_at_any_moment_nothing_stays_leased(tmp_path: Path) -> None:
    """Cancel after 0, 1, 2, … steps of the loop: whatever was under way, no lease outlives it."""

    async def body() -> None:
        async with connected(tmp_path) as (door, fleet):

            async def work() -> None:
                async with fleet.lease(agent="a", profile="local"):
                    await asyncio.sleep(0)

            for steps in range(0, 200, 7):
                task = asyncio.create_task(work())
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                assert task.cancelled() or task.exception() is None
            await until(lambda: _nothing_stays(door))

    async def _nothing_stays(door: Door) -> bool:
        """The controller hears of some only when their connection has ended."""
        return set((await _states(door)).values()) <= {"released", "cancelled"}

    run(body())


def test_a_door_that_closes_and_opens_again_loses_nobodys_place(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as controller:
            held = await controller.granted("a", desktop="one")

            async def work() -> str:
                async with fleet.lease(agent="b", profile="local", desktop="one", wait=None) as desktop:
                    await desktop.click(1, 1)
                    return desktop.id

            async with served(controller):
                fleet = await Fleet.connect(home=tmp_path, start=False).__aenter__()
                working = asyncio.create_task(work())
                [waiting] = await until(lambda: controller.controller.leases(ANA, everything=False, agent="b"))
            async with served(controller):
                await controller.controller.release(ANA, held.lease)
                assert await working == waiting.lease
            await fleet.close()

    run(body())


def test_a_lease_is_renewed_while_the_block_runs(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet), fleet.lease(agent="a", profile="local", ttl=0.3) as desktop:
            began = desktop.lease.expires_at
            for _ in range(3):
                await door.fleet.clock.advance(0.25)
                now = door.fleet.clock.now()
                await until(lambda now=now: _lasts(door, desktop, now + 0.2))  # type: ignore[misc]
            assert desktop.lease.state == "active"
            assert began is not None

    async def _lasts(door: Door, desktop: Desktop, at: float) -> bool:
        from cu_fleet.model.lease import Lease

        lease = await door.fleet.controller.core.read(lambda tx: tx.get(Lease, desktop.id))
        return lease is not None and lease.expires_at is not None and lease.expires_at > at

    run(body())


def test_the_agent_hears_why_its_lease_was_revoked(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet):
            async with fleet.lease(agent="a", profile="local") as desktop:
                await fleet.pause(desktop.id, "look here")
                with pytest.raises(LeasePausedError, match="look here"):
                    await desktop.type("x")
                assert (await desktop.refresh()).control == "paused"
                await fleet.resume(desktop.id)
                await desktop.type("x")
                await fleet.revoke(desktop.id, "wrong site", bar=None)
                with pytest.raises(LeaseOverError, match="wrong site") as caught:
                    await desktop.type("x")
                assert caught.value.code == "lease_revoked"
            async with fleet.lease(agent="a", profile="local") as again:
                assert again.id != desktop.id

    run(body())


def test_an_operator_who_takes_over_acts_under_their_own_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            await fleet.take(desktop.id)
            mine = await fleet.open(desktop.id, as_operator=True)
            await mine.click(5, 6)
            with pytest.raises(LeasePausedError):
                await (await fleet.open(desktop.id)).click(5, 6)
            [entry] = await fleet.audit(what="act")
            assert entry.who.startswith("operator ")

    run(body())


def test_reassign_and_lists(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet):
            desktop = await fleet.acquire(agent="a", profile="local")
            new = await fleet.reassign(desktop.id, "b", mode="as-is", reason="b is better")
            assert (new.agent, new.state) == ("b", "active")
            await (await fleet.open(new.lease)).click(1, 1)
            with pytest.raises(LeaseOverError, match="b is better"):
                await desktop.click(1, 1)
            assert [view.agent for view in await fleet.leases()] == ["b"]
            assert {view.agent for view in await fleet.leases(everything=True)} == {"a", "b"}
            assert (await fleet.renew(new.lease, "20m")).ttl == 1200
            assert (await fleet.release(new.lease)).state == "released"

    run(body())


# the desktop

DEEDS: list[tuple[Callable[[Desktop], Awaitable[object]], dict[str, object]]] = [
    (lambda d: d.click(1, 2), {"type": "click", "x": 1, "y": 2, "button": "left", "count": 1, "modifiers": []}),
    (
        lambda d: d.click(1, 2, button="right", count=3, modifiers=["ctrl"]),
        {"type": "click", "x": 1, "y": 2, "button": "right", "count": 3, "modifiers": ["ctrl"]},
    ),
    (lambda d: d.double_click(3, 4), {"type": "click", "x": 3, "y": 4, "button": "left", "count": 2, "modifiers": []}),
    (lambda d: d.move(5, 6), {"type": "move", "x": 5, "y": 6}),
    (lambda d: d.press(7, 8), {"type": "press", "x": 7, "y": 8, "button": "left"}),
    (lambda d: d.release(), {"type": "release", "button": "left"}),
    (
        lambda d: d.drag([(1, 1), (9, 9)]),
        {"type": "drag", "path": [[1, 1], [9, 9]], "button": "left", "modifiers": []},
    ),
    (lambda d: d.scroll(1, 1, dy=2), {"type": "scroll", "x": 1, "y": 1, "dx": 0, "dy": 2, "modifiers": []}),
    (lambda d: d.key("ctrl+s"), {"type": "key", "keys": "ctrl+s"}),
    (lambda d: d.key_down("shift"), {"type": "key_down", "key": "shift"}),
    (lambda d: d.key_up("shift"), {"type": "key_up", "key": "shift"}),
    (lambda d: d.hold_key("down", 0.01), {"type": "hold_key", "keys": "down", "seconds": 0.01}),
    (lambda d: d.wait(0.001), {"type": "wait", "seconds": 0.001}),
    (
        lambda d: d.wait_stable(quiet_ms=1),
        {"type": "wait_stable", "quiet_ms": 1, "timeout_ms": 10_000, "ignore": [], "ignore_below": 0},
    ),
]


def test_every_deed_arrives_as_its_action(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            for deed, _ in DEEDS:
                await deed(desktop)
            entries = await fleet.audit(what="act")
            assert [entry.action for entry in entries] == [action for _, action in DEEDS]
            await desktop.click(1, 1, intent="because")
            assert (await fleet.audit(what="act"))[-1].intent == "because"

    run(body())


def test_typed_text_reaches_the_screen_and_not_the_record(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet), fleet.lease(agent="a", profile="local") as desktop:
            await desktop.type("hi")
            events = door.fleet.backend.desktop(desktop.lease.desktop or "").events
            assert ("key", ord("h"), True) in events
            assert ("key", ord("i"), False) in events
            [entry] = await fleet.audit(what="act")
            assert entry.action is not None
            assert entry.action["text"] != "hi"

    run(body())


def test_a_wrong_deed_is_refused_by_its_key(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            with pytest.raises(InvalidError, match="off the screen") as caught:
                await desktop.click(200, 0)
            assert caught.value.facts["width"] == 200
            with pytest.raises(InvalidError):
                await desktop.key("no-such-key")

    run(body())


def test_a_batch_tells_what_became_of_each(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            actions = [{"type": "click", "x": 1, "y": 1}, {"type": "key", "keys": "a"}]
            result = await desktop.act(actions, screenshot={"format": "png", "max_edge": 100}, intent="both")
            assert [done.ok for done in result.done] == [True, True]
            assert result.image is not None
            assert max(result.image.size) == 100
            assert result.image.frame.scale == 0.5
            assert (await desktop.act(actions)).image is None

    run(body())


def test_a_screenshot_is_an_image_that_knows_its_frame(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            image = await desktop.screenshot()
            assert isinstance(image, Image.Image)
            assert image.size == (200, 120)
            assert hashlib.sha256(image.frame.data).hexdigest() == image.frame.sha256
            assert Image.open(BytesIO(image.frame.data)).convert("RGB").tobytes() == image.convert("RGB").tobytes()
            assert (image.frame.generation, image.frame.id[:3]) == (desktop.lease.generation, "fr_")
            part = await desktop.screenshot(region=(10, 10, 50, 40), format="webp", pointer=True)
            assert (part.size, part.frame.format) == ((50, 40), "webp")

    run(body())


def test_a_picture_says_all_of_itself_and_unchanged_is_none(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local", view=100) as desktop:
            assert (desktop.lease.width, desktop.lease.screen_width, desktop.lease.scale) == (100, 200, 0.5)
            image = await desktop.screenshot(settle_ms=1)
            assert image.size == image.frame.size == (100, 60)
            assert (image.frame.scale, image.frame.within, image.frame.settled) == (0.5, 0.0, True)
            assert (await desktop.screenshot()).frame.settled is None
            assert await desktop.screenshot(if_changed_since=image.frame.id) is None
            same = await desktop.act([], screenshot={"if_changed_since": image.frame.id})
            assert (same.image, same.unchanged, same.not_shown) == (None, True, None)
            zoom = await desktop.screenshot(region=(0, 0, 10, 10), max_edge=20)
            assert zoom.size == (20, 20)
            await desktop.click(19, 19, frame=zoom.frame.id)
            with pytest.raises(InvalidError, match="off frame"):
                await desktop.move(20, 19, frame=zoom.frame.id)
            changed = await desktop.screenshot(if_changed_since=image.frame.id)
            assert changed is not None
            await desktop.wait_stable(quiet_ms=1, region=(0, 0, 5, 5), ignore=[(0, 0, 2, 2)], ignore_below=3)

    run(body())


def test_what_was_done_is_told_though_it_cannot_be_shown(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (server, fleet), fleet.lease(agent="a", profile="local") as desktop:
            server.fleet.backend.desktop(desktop.lease.desktop or "").screen.fill(0, 0, 200, 120, (0, 0, 0))
            result = await desktop.act([{"type": "key_up", "key": "a"}], screenshot={"settle_ms": 0})
            assert [done.ok for done in result.done] == [True]
            assert result.image is None
            assert result.not_shown
            assert result.not_shown.code == "blank_screen"
            with pytest.raises(UnavailableError, match="is blank"):
                await desktop.screenshot()
            assert (await desktop.screenshot(allow_blank=True)).getpixel((0, 0)) == (0, 0, 0)

    run(body())


def test_kept_frames(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path, profile("local", frames="all")) as (_, fleet):
            async with fleet.lease(agent="a", profile="local") as desktop:
                image = await desktop.screenshot()
                (kept,) = await fleet.frames(desktop.id)
                assert (kept.sha256, kept.agent) == (image.frame.sha256, "a")
                assert await fleet.frame(kept.sha256[:10]) == image.frame.data
            assert (await fleet.prune_frames(lease=desktop.id))["removed"] == 1
            assert await fleet.frames() == []

    run(body())


def test_files_go_both_ways(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            local = tmp_path / "big.bin"
            local.write_bytes(bytes(range(256)) * 4000)
            assert await desktop.put_file("in/ä ?#%.bin", local, mode=0o600) == 1_024_000
            assert await desktop.put_file("note.txt", b"hello") == 5
            [file] = await desktop.files("in")
            assert (file.path, file.mode, file.size) == ("in/ä ?#%.bin", 0o600, 1_024_000)
            assert await desktop.get_file("note.txt") == b"hello"
            target = tmp_path / "out.bin"
            assert await desktop.download("in/ä ?#%.bin", target) == 1_024_000
            assert target.read_bytes() == local.read_bytes()
            await desktop.remove_file("note.txt")
            with pytest.raises(NotFoundError):
                await desktop.get_file("note.txt")
            before = _names(tmp_path)
            with pytest.raises(NotFoundError):
                await desktop.download("note.txt", tmp_path / "never")
            assert _names(tmp_path) == before

    run(body())


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# operating


def test_commands_run_inside(tmp_path: Path) -> None:
    async def body() -> None:
        async def wordy(call: Call) -> int:
            await call.out(await call.read())
            await call.err("no")
            return 3

        async with connected(tmp_path) as (door, fleet), fleet.lease(agent="a", profile="local") as desktop:
            where = desktop.lease.desktop or ""
            door.fleet.backend.commands["wordy"] = wordy
            done = await fleet.run(where, ["wordy"], stdin=b"fed")
            assert (done.exit_code, done.stdout, done.stderr) == (3, b"fed", b"wordy: no\n")
            async with fleet.exec(where, ["echo", "hi"]) as command:
                assert [x async for x in command] == [(1, b"hi\n")]
                assert command.exit_code == 0
            with pytest.raises(TooLongError):
                await fleet.run(where, ["sleep", "600"], timeout=0.05)
            inside = door.fleet.backend.desktop(where)
            async with fleet.exec(where, ["sleep", "600"]):
                await until(lambda: inside.processes)
            await until(lambda: not inside.processes)
            with pytest.raises(NotFoundError):
                await fleet.run("dk_nothere000", ["true"])

    run(body())


def test_desktops_snapshots_people_profiles_and_the_record(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path, profile("local"), profile("big")) as (door, fleet):
            lease = await door.fleet.granted("a")
            where = lease.desktop or ""
            assert [view.desktop for view in await fleet.desktops()] == [where]
            assert (await fleet.desktop(where)).stage == "held"
            assert (await fleet.freeze(where)).frozen
            assert not (await fleet.thaw(where)).frozen
            assert "boot" in await fleet.logs(where)
            saved = await fleet.save(where, "mine")
            assert [one.note for one in await fleet.snapshots(where)] == ["mine"]
            assert (await fleet.restore(saved.id)).desktop == where
            await fleet.delete_snapshot(saved.id)
            assert await fleet.snapshots() == []
            await fleet.release(lease.lease)
            assert {one.name for one in await fleet.profiles()} == {"local", "big"}
            assert (await fleet.profile("big")).screen.width == 200
            agent = await fleet.add_agent("kid", profiles=["local"], leases=2)
            assert (agent.grants.leases, agent.token is not None) == (2, True)
            assert (await fleet.rotate_agent("kid")).token != agent.token
            assert (await fleet.unbar_agent("kid")).barred_until is None
            assert {one.agent for one in await fleet.agents()} == {"a", "kid"}
            await fleet.remove_agent("kid")
            operator = await fleet.add_operator("bea", "observer")
            assert (await fleet.rotate_operator("bea")).token != operator.token
            assert [one.operator for one in await fleet.operators()] == ["bea"]
            await fleet.remove_operator("bea")
            entries = [entry async for entry in fleet.export_audit()]
            assert len(entries) == await fleet.verify_audit()
            assert entries[:5] == await fleet.audit(limit=5)
            assert (await fleet.status())["fleet"] == "f1"
            assert "cu_fleet" in await fleet.metrics()
            await until(lambda: _gone(fleet, where))

    async def _gone(fleet: Fleet, desktop: str) -> bool:
        try:
            await fleet.remove_desktop(desktop)
        except ConflictError:
            return False  # it is still being cleaned
        return True

    run(body())


def test_events_go_on_across_a_break(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            async with served(fleet) as door:
                client = await Fleet.connect(home=tmp_path, start=False).__aenter__()
                events = client.events(after=0)
                await door.operator("observer", "first")
                seen = [(await anext(events)).facts.get("operator")]
            coming = asyncio.create_task(anext(events))  # type: ignore[arg-type]
            async with served(fleet) as door:
                await door.operator("observer", "second")
                while "second" not in seen:
                    seen.append((await coming).facts.get("operator"))
                    coming = asyncio.create_task(anext(events))  # type: ignore[arg-type]
                assert seen.count("first") == 1
                coming.cancel()
                await asyncio.wait([coming])
                await events.aclose()  # type: ignore[attr-defined]
                await client.close()

    run(body())


# reaching it


def test_who_may_not_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            token = await door.agent("a", profiles=("other",))
            async with Fleet.connect(url=door.url, token=token) as fleet:
                with pytest.raises(DeniedError) as caught:
                    await fleet.acquire(profile="local")
                assert caught.value.code == "not_granted"
            async with Fleet.connect(url=door.url + "/") as fleet:
                with pytest.raises(UnauthorizedError):
                    await fleet.status()
            async with (
                Fleet.connect(url=door.url, token=await door.agent("b")) as fleet,
                fleet.lease(profile="local") as desktop,
            ):
                assert desktop.lease.agent == "b"
                await desktop.click(1, 1)

    run(body())


def test_the_environment_points_the_way_unless_a_home_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            monkeypatch.setenv("CU_FLEET_URL", door.url)
            monkeypatch.setenv("CU_FLEET_TOKEN", await door.operator("observer"))
            async with Fleet.connect() as fleet:
                await fleet.status()
                with pytest.raises(DeniedError):
                    await fleet.add_operator("x")
            async with Fleet.connect(home=tmp_path) as fleet:
                await fleet.add_operator("x")
            monkeypatch.delenv("CU_FLEET_URL")
            monkeypatch.delenv("CU_FLEET_TOKEN")
            monkeypatch.setenv("CU_FLEET_HOME", str(tmp_path))
            async with Fleet.connect() as fleet:
                await fleet.add_operator("y")

    run(body())


def test_a_home_with_a_long_path_is_reached(tmp_path: Path) -> None:
    async def body() -> None:
        home = tmp_path / ("a long name " * 15)
        home.mkdir()
        async with connected(home) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            await desktop.click(1, 1)

    run(body())


@pytest.mark.parametrize("stale", ["nothing", "a socket nobody listens on"])
def test_a_controller_that_is_not_there_is_told(tmp_path: Path, stale: str) -> None:
    async def body() -> None:
        import socket

        with socket.socket(socket.AF_UNIX) as left:
            if stale != "nothing":
                left.bind(str(tmp_path / "controller.sock"))
            with pytest.raises(UnavailableError, match="no controller runs") as caught:
                async with Fleet.connect(home=tmp_path, start=False):
                    raise AssertionError("connected")
            assert caught.value.code == "not_running"
        with pytest.raises(UnavailableError, match="no controller runs"):
            async with Fleet.connect(url="http://127.0.0.1:1"):
                raise AssertionError("connected")
        with pytest.raises(InvalidError):
            async with Fleet.connect(url="gopher://x"):
                raise AssertionError("connected")

    run(body())


def test_what_is_no_controller_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 5\r\nConnection: close\r\n\r\nproxy")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        async with server:
            with pytest.raises(FleetError, match="no cu-fleet controller answered with status 502"):
                async with Fleet.connect(url=f"http://{host}:{port}"):
                    raise AssertionError("connected")

    run(body())


def test_closing_the_fleet_ends_what_it_has_under_way(tmp_path: Path) -> None:
    async def body() -> None:
        async with open_door(tmp_path) as door:
            fleet = await Fleet.connect(home=tmp_path, start=False).__aenter__()
            await fleet.lease(agent="a", profile="local").__aenter__()
            await fleet.close()
            assert not [t for t in asyncio.all_tasks() if t.get_name().startswith(("renew", "release", "ask"))]
            assert await _states(door) == {"a": "active"}  # it lives by time

    run(body())


def test_elements_are_found_clicked_and_typed_into_by_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (door, fleet), fleet.lease(agent="a", profile="local") as desktop:
            asked: list[object] = []
            node = UiNode(ref="e7", depth=0, role="button", name="Buy", box=(20, 10, 30, 20), x=35, y=20)

            async def ui(who: object, lease: str, **words: object) -> Ui:
                asked.append(words)
                return Ui(windows=(UiWindow(title="Shop", app="shop", toolkit="gtk"),), nodes=(node,))

            async def where(who: object, lease: str, ref: str) -> tuple[int, int]:
                if ref != node.ref:
                    raise ConflictError(f"{ref} is not known (any more)", code="helper_stale")
                return node.x, node.y

            monkeypatch.setattr(door.fleet.controller, "ui", ui)
            monkeypatch.setattr(door.fleet.controller, "where", where)
            (found,) = (await desktop.ui(role="button", text="Buy", intent="buy")).nodes
            assert asked == [{"window": "", "role": "button", "text": "Buy", "intent": "buy"}]
            await desktop.click(ref=found.ref)
            await desktop.type("x", ref=found.ref)
            (inside,) = door.fleet.world.desktops.values()
            assert inside.events.count(("pointer", 35, 20, 1)) >= 2
            assert inside.events.index(("key", ord("x"), True)) > inside.events.index(("pointer", 35, 20, 1))
            before = len(inside.events)
            with pytest.raises(ConflictError, match="not known"):
                await desktop.type("y", ref="e8")
            for wrong in ({"x": 1, "y": 2, "ref": "e7"}, {"x": 1}, {}):
                with pytest.raises(InvalidError, match="the ref of an element"):
                    await desktop.double_click(**wrong)  # type: ignore[arg-type]
            assert len(inside.events) == before

    run(body())


# a person's answer


KEYS = [{"type": "key", "keys": "a"}]


def test_a_person_is_asked_and_answers(tmp_path: Path) -> None:
    async def body() -> None:
        async with connected(tmp_path) as (_, fleet), fleet.lease(agent="a", profile="local") as desktop:
            asked = await desktop.ask_approval(KEYS, "save it", checks=[{"id": "c", "message": "look"}], within="5m")
            assert (asked.state, asked.remaining) == ("waiting", 300)
            assert [x.approval for x in await fleet.approvals()] == [asked.approval]
            with pytest.raises(ConflictError) as caught:
                await desktop.act(KEYS, approval=asked.approval)
            assert caught.value.code == "approval_waiting"
            waiting = asyncio.create_task(desktop.approval(asked.approval), name="test: wait")
            await fleet.approve(asked.approval, "go on")
            assert ((await waiting).state, (await waiting).answer) == ("approved", "go on")
            assert (await desktop.act(KEYS, approval=asked.approval)).done[0].ok
            assert (await fleet.approval(asked.approval)).state == "used"
            other = await desktop.ask_approval(KEYS)
            await fleet.deny(other.approval, "no")
            with pytest.raises(DeniedError, match=": no; nothing was sent"):
                await desktop.act(KEYS, approval=other.approval)
            assert [x.state for x in await fleet.approvals(everything=True, lease=desktop.id)] == ["used", "denied"]

    run(body())


@pytest.mark.slow
def test_whoever_waits_for_an_answer_outlives_the_controller(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as home, AsyncExitStack() as stack:
            async with served(home):
                fleet = await stack.enter_async_context(Fleet.connect(home=tmp_path, start=False))
                desktop = await fleet.acquire(agent="a", profile="local")
                asked = await desktop.ask_approval(KEYS)
                waiting = asyncio.create_task(desktop.approval(asked.approval), name="test: wait")
            await home.kill()
            await home.start()
            async with served(home):
                await home.controller.answer(ANA, asked.approval, approve=True)
                assert (await waiting).state == "approved"

    run(body())
