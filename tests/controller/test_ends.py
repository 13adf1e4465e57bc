"""Pause, revoke, reassign, expiry, kill: what reaches the screen, what the token opens, who gets the desktop next."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cu_fleet.backends.base import Spec
from cu_fleet.backends.memory_inside import Call, MemoryDesktop, MemoryFile
from cu_fleet.controller.evidence import Evidence
from cu_fleet.model.access import Caller, Grants
from cu_fleet.model.action import parse_actions
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import (
    ConflictError,
    DeniedError,
    FleetError,
    LeaseOverError,
    LeasePausedError,
    UnavailableError,
)
from cu_fleet.model.lease import LeaseState
from cu_fleet.model.request import Acquire, Shot
from cu_fleet.stores.base import TakenError
from tests.controller.fleet import ANA, GENEROUS, Fleet, profile, running
from tests.support import run, until

LONG = [{"type": "type", "text": "x" * 20_000}]


def down_of(desktop: MemoryDesktop) -> set[object]:
    """The keys that are down, and the buttons, after all that reached this screen."""
    keys: set[object] = set()
    buttons: object = 0
    for event in desktop.events:
        if event[0] == "key":
            (keys.add if event[2] else keys.discard)(event[1])
        else:
            buttons = event[3]
    return keys | ({"buttons"} if buttons else set())


async def caller_of(fleet: Fleet, lease: str) -> Caller:
    return await fleet.controller.caller(fleet.lease_token(lease))


async def in_the_middle(fleet: Fleet, lease: str, actions: list[dict[str, object]]) -> asyncio.Task[object]:
    """A batch that is under way: some of its keys have arrived."""
    view = await fleet.controller.lease(ANA, lease)
    events = fleet.backend.desktop(view.desktop or "").events
    before = len(events)
    who = await caller_of(fleet, lease)
    task = asyncio.create_task(fleet.controller.act(who, lease, parse_actions(actions)), name="test: act")
    await until(lambda: len(events) > before + 5)
    return task


def test_revoke_in_the_middle_of_typing_is_final(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            old = fleet.backend.desktop(lease.desktop or "")
            old.files["/home/agent/mine"] = MemoryFile(b"x")
            task = await in_the_middle(fleet, lease.lease, [{"type": "key_down", "key": "shift"}, *LONG])
            await fleet.controller.revoke(ANA, lease.lease, reason="enough")
            arrived = len(old.events)
            assert not down_of(old)
            done = await asyncio.gather(task, return_exceptions=True)
            assert len(old.events) == arrived
            acted = done[0]
            assert not isinstance(acted, BaseException)
            assert acted.done[0].ok  # type: ignore[attr-defined]
            assert acted.done[1].code == "lease_revoked"  # type: ignore[attr-defined]
            who = await caller_of(fleet, lease.lease)
            with pytest.raises(LeaseOverError, match="was revoked by operator ana: enough"):
                await fleet.controller.screenshot(who, lease.lease, Shot())
            await fleet.settled()
            assert len(old.events) == arrived
            entries = await fleet.controller.audit(ANA, limit=1000, what="lease.evidence")
            assert entries[0].frames
            kept, data = await fleet.controller.frame(ANA, entries[0].frames[0])
            assert (kept.why, kept.lease, len(data)) == ("evidence", lease.lease, kept.size)
            with pytest.raises(DeniedError, match="barred"):
                await fleet.acquire("a")
            await fleet.controller.unbar_agent(ANA, "a")
            again = await fleet.granted("a")
            assert again.desktop == lease.desktop
            assert (again.generation or 0) > (lease.generation or 0)
            assert "/home/agent/mine" not in fleet.backend.desktop(again.desktop or "").files
            await fleet.check()

    run(body())


def test_pause_stops_input_at_once_and_the_clock(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", ttl=100)
            screen = fleet.backend.desktop(lease.desktop or "")
            task = await in_the_middle(fleet, lease.lease, LONG)
            view = await fleet.controller.pause(ANA, lease.lease, reason="let me see")
            assert (view.control, view.expires_at, view.reason) == ("paused", None, "let me see")
            arrived = len(screen.events)
            assert not down_of(screen)
            with pytest.raises(LeasePausedError, match="paused by operator ana: let me see"):
                await task
            who = await caller_of(fleet, lease.lease)
            assert (await fleet.controller.screenshot(who, lease.lease, Shot())).data
            await fleet.clock.advance(1000)
            await fleet.controller.pause(ANA, lease.lease, looking=False)
            with pytest.raises(LeasePausedError):
                await fleet.controller.screenshot(who, lease.lease, Shot())
            view = await fleet.controller.resume(ANA, lease.lease)
            assert (view.state, view.control) == ("active", "agent")
            assert 90 < (view.remaining or 0) <= 100
            assert len(screen.events) == arrived
            await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            assert len(screen.events) == arrived + 2

    run(body())


def test_a_person_takes_over_and_gives_back(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            who = await caller_of(fleet, lease.lease)
            key = parse_actions([{"type": "key", "keys": "a"}])
            await fleet.controller.take(ANA, lease.lease, reason="login")
            with pytest.raises(LeasePausedError, match="taken over by operator ana: login"):
                await fleet.controller.act(who, lease.lease, key)
            await fleet.controller.act(ANA, lease.lease, key)
            bob = ANA.but(operator="bob")
            with pytest.raises(LeasePausedError):
                await fleet.controller.act(bob, lease.lease, key)
            await fleet.controller.resume(ANA, lease.lease)
            await fleet.controller.act(who, lease.lease, key)
            entries = await fleet.controller.audit(ANA, limit=1000, what="act")
            assert [x.who for x in entries] == ["operator ana", "agent a"]

    run(body())


def test_a_lease_runs_out_unless_it_acts(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", ttl=100)
            who = await caller_of(fleet, lease.lease)
            for _ in range(3):
                await fleet.clock.advance(80)
                await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            await fleet.clock.advance(101)
            view = await fleet.reached(lease.lease, LeaseState.EXPIRED)
            assert "not renewed" in view.reason
            with pytest.raises(LeaseOverError, match="ran out of time"):
                await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))

    run(body())


@pytest.mark.parametrize("clean", [True, False])
def test_reassign_gives_the_desktop_to_another_agent(tmp_path: Path, clean: bool) -> None:
    async def body() -> None:
        async with running(tmp_path, max_desktops=1) as fleet:
            lease = await fleet.granted("a", resources=["r"])
            waiting = await fleet.acquire("c")
            fleet.backend.desktop(lease.desktop or "").files["/home/agent/of-a"] = MemoryFile(b"x")
            new = await fleet.controller.reassign(ANA, lease.lease, to="b", clean=clean)
            assert (new.agent, new.state, new.desktop, new.resources) == ("b", "active", lease.desktop, ("r",))
            assert new.token
            assert (new.generation or 0) > (lease.generation or 0)
            there = "/home/agent/of-a" in fleet.backend.desktop(new.desktop or "").files
            assert there is not clean
            who = await caller_of(fleet, lease.lease)
            with pytest.raises(LeaseOverError, match="given to"):
                await fleet.controller.screenshot(who, lease.lease, Shot())
            who = await caller_of(fleet, new.lease)
            assert (await fleet.controller.screenshot(who, new.lease, Shot())).generation == new.generation
            assert (await fleet.controller.lease(ANA, waiting.lease)).state == "waiting"
            await fleet.check()

    run(body())


def test_no_wait_names_the_holder_and_changes_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            holder = await fleet.granted("a", desktop="finance")
            with pytest.raises(TakenError) as refused:
                await fleet.acquire("b", desktop="finance", wait=0)
            assert str(refused.value).startswith(
                f'lease denied: agent b asked for desktop "finance", but agent a holds it (lease {holder.lease}) '
                "until it is released, revoked or runs out at "
            )
            assert refused.value.facts["holder"]["lease"] == holder.lease  # type: ignore[index]
            assert [x.lease for x in await fleet.controller.leases(ANA)] == [holder.lease]
            denied = await fleet.controller.audit(ANA, limit=1000, what="lease.denied")
            assert denied[0].facts["agent"] == "b"
            granted = await fleet.controller.acquire(ANA, Acquire(agent="b", profile="local", wait=0), hold=0)
            assert granted.state == "active"

    run(body())


def test_a_waiting_request_hears_its_place_and_leaves_at_its_deadline(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, max_desktops=1) as fleet:
            holder = await fleet.granted("a")
            first = await fleet.acquire("b", wait=50)
            second = await fleet.acquire("c")
            assert (first.place, second.place) == (1, 2)
            assert holder.lease in (second.message or "")
            assert (await fleet.controller.lease(ANA, holder.lease)).waiters == 2
            await fleet.clock.advance(51)
            over = await fleet.reached(first.lease, LeaseState.CANCELLED)
            assert "it waited" in over.reason
            await fleet.controller.release(ANA, holder.lease)
            assert (await fleet.reached(second.lease, LeaseState.ACTIVE)).desktop == holder.desktop

    run(body())


def test_a_named_desktop_keeps_its_files_sleeps_and_is_reset_for_others(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, max_desktops=1) as fleet:
            lease = await fleet.granted("a", desktop="finance")
            fleet.backend.desktop(lease.desktop or "").files["/home/agent/ledger"] = MemoryFile(b"x")
            await fleet.controller.release(ANA, lease.lease)
            pool = await fleet.granted("b")  # no room: finance goes to sleep
            assert pool.desktop != lease.desktop
            assert (await fleet.controller.desktop(ANA, "finance")).stage == "parked"
            await fleet.controller.release(ANA, pool.lease)
            back = await fleet.granted("a", desktop="finance")
            assert "/home/agent/ledger" in fleet.backend.desktop(back.desktop or "").files
            await fleet.controller.release(ANA, back.lease)
            other = await fleet.granted("c", desktop="finance")
            assert "/home/agent/ledger" not in fleet.backend.desktop(other.desktop or "").files
            await fleet.check()

    run(body())


def test_a_killed_controller_loses_nothing_and_resumes_no_batch(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", ttl=100)
            paused = await fleet.granted("b", ttl=100)
            waiting = await fleet.acquire("c", desktop="finance")
            await fleet.reached(waiting.lease, LeaseState.ACTIVE)
            await fleet.controller.pause(ANA, paused.lease, reason="hold")
            queued = await fleet.acquire("d")
            task = await in_the_middle(fleet, lease.lease, LONG)
            await fleet.clock.advance(5)
            await fleet.kill()
            await asyncio.gather(task, return_exceptions=True)
            screen = fleet.world.desktops[lease.desktop or ""]
            arrived = len(screen.events)
            await fleet.clock.advance(3000)
            await fleet.start()
            await fleet.settled()
            views = {x.lease: x for x in await fleet.controller.leases(ANA)}
            assert {views[x.lease].state for x in (lease, paused, waiting)} == {"active"}
            assert views[paused.lease].control == "paused"
            assert views[queued.lease].state == "waiting"
            assert 100 < (views[lease.lease].remaining or 0) < 140
            assert [e for e in screen.events[arrived:] if e[0] == "key" and e[2]] == []
            done = await fleet.controller.audit(ANA, limit=1000, what="act.done")
            assert done[-1].result == "interrupted"
            who = await caller_of(fleet, lease.lease)
            await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            who = await caller_of(fleet, paused.lease)
            with pytest.raises(LeasePausedError, match="hold"):
                await fleet.controller.act(who, paused.lease, parse_actions([{"type": "key", "keys": "a"}]))
            await fleet.check()

    run(body())


def test_a_dead_screen_ends_its_lease_and_is_replaced(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            await fleet.backend.desktop(lease.desktop or "").screen.close()
            view = await fleet.reached(lease.lease, LeaseState.LOST)
            assert "screen died" in view.reason
            again = await fleet.granted("a")
            assert again.desktop != lease.desktop
            await fleet.settled()
            assert set(fleet.world.desktops) == {again.desktop}

    run(body())


def test_a_desktop_that_cannot_be_ended_at_the_end_is_named_and_the_rest_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: object) -> None:
        raise UnavailableError("its engine does not answer", code="gone")

    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease, other = await fleet.granted("a"), await fleet.granted("b")
            stop = fleet.backend.stop
            monkeypatch.setattr(
                fleet.backend, "stop", lambda handle: (refuse if handle["desktop"] == lease.desktop else stop)(handle)
            )
            with pytest.raises(UnavailableError, match=rf"not ended within 1 s: {lease.desktop} \(memory") as told:
                await fleet.controller.shut_down()
            assert str(other.desktop) not in str(told.value)
            assert told.value.code == "not_ended"
            assert set(fleet.world.desktops) == {lease.desktop}
            monkeypatch.setattr(fleet.backend, "stop", stop)

    monkeypatch.setattr("cu_fleet.controller._END_TIMEOUT", 1.0)
    run(body())


def test_grants_bound_an_agents_own_token_and_parents_supervise_only_their_children(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, profile("local"), profile("browser")) as fleet:
            control = fleet.controller
            added = await control.add_agent(ANA, "p", GENEROUS.but(profiles=("local",)))
            parent = await control.caller(added.token)
            with pytest.raises(DeniedError, match="may not lease profile browser"):
                await control.acquire(parent, Acquire(profile="browser"), hold=5)
            with pytest.raises(DeniedError, match="cannot lease for agent"):
                await control.acquire(parent, Acquire(agent="q", profile="local"), hold=5)
            with pytest.raises(DeniedError, match="its parent does not have it"):
                await control.add_agent(parent, "kid", Grants(profiles=("browser",)))
            kid = await control.caller((await control.add_agent(parent, "kid", Grants(profiles=("local",)))).token)
            stranger = await fleet.granted("stranger")
            mine = await control.acquire(kid, Acquire(profile="local"), hold=5)
            assert mine.token
            with pytest.raises(DeniedError, match="1 of the 1 leases"):
                await control.acquire(kid, Acquire(profile="local"), hold=5)
            with pytest.raises(DeniedError):
                await control.pause(parent, stranger.lease)
            with pytest.raises(DeniedError):
                await control.lease(kid, stranger.lease)
            with pytest.raises(DeniedError):
                await control.screenshot(kid, mine.lease, Shot())
            with pytest.raises(DeniedError):
                await control.exec(kid, mine.desktop or "", ["true"], cwd=None, env=None)
            assert (await control.pause(parent, mine.lease)).control == "paused"
            token = fleet.lease_token(mine.lease)
            with pytest.raises(DeniedError, match="that lease and nothing else"):
                await control.screenshot(await control.caller(token), stranger.lease, Shot())
            await control.resume(parent, mine.lease)
            for hold in (control.pause, control.take):
                await hold(ANA, mine.lease)
                with pytest.raises(DeniedError, match="operator ana"):
                    await control.resume(parent, mine.lease)
                with pytest.raises(DeniedError, match="operator ana"):
                    await control.pause(parent, mine.lease)
                with pytest.raises(DeniedError, match="operator ana"):
                    await control.reassign(parent, mine.lease, to="p", clean=False)
            await control.resume(ANA, mine.lease)
            for other in ("stranger", "nobody-yet"):
                with pytest.raises(DeniedError, match="is no child of"):
                    await control.reassign(parent, mine.lease, to=other, clean=False)
            rotated = await control.rotate_agent(ANA, "kid")
            assert rotated.token
            with pytest.raises(FleetError, match="rotated"):
                await control.caller(control.core.mint.agent("kid", 1))

    run(body())


def test_restore_keeps_lease_and_token_under_a_new_generation(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            fleet.backend.desktop(lease.desktop or "").files["/home/agent/good"] = MemoryFile(b"x")
            snapshot = await fleet.controller.save(ANA, lease.lease, "good")
            files = fleet.backend.desktop(lease.desktop or "").files
            files["/home/agent/bad"] = files.pop("/home/agent/good")
            await fleet.controller.restore(ANA, snapshot.id)
            after = await fleet.controller.lease(ANA, lease.lease)
            assert (after.state, after.desktop) == ("active", lease.desktop)
            assert (after.generation or 0) > (lease.generation or 0)
            files = fleet.backend.desktop(lease.desktop or "").files
            assert "/home/agent/good" in files
            assert "/home/agent/bad" not in files
            who = await caller_of(fleet, lease.lease)
            await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            await fleet.controller.delete_snapshot(ANA, snapshot.id)
            with pytest.raises(FleetError, match="no snapshot"):
                await fleet.controller.restore(ANA, snapshot.id)
            assert not fleet.world.snapshots

    run(body())


def test_a_frozen_desktop_takes_no_input_until_it_is_thawed(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            await fleet.controller.freeze(ANA, lease.lease)
            who = await caller_of(fleet, lease.lease)
            with pytest.raises(ConflictError, match="frozen"):
                await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            await fleet.controller.thaw(ANA, lease.lease)
            await fleet.controller.act(who, lease.lease, parse_actions([{"type": "key", "keys": "a"}]))
            await fleet.controller.freeze(ANA, lease.lease)
            await fleet.controller.release(ANA, lease.lease)
            await fleet.settled()
            again = await fleet.granted("b")
            assert again.desktop == lease.desktop

    run(body())


def test_a_revoked_named_desktop_ends_what_runs_keeps_its_files_and_its_evidence(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a", desktop="finance")
            desktop = fleet.backend.desktop(lease.desktop or "")
            desktop.files["/home/agent/ledger"] = MemoryFile(b"x")
            desktop.slot["out/report"] = MemoryFile(b"report")
            await fleet.controller.revoke(ANA, lease.lease, reason="stop", bar=None, snapshot=True)
            await fleet.settled()
            assert (await fleet.controller.desktop(ANA, "finance")).stage == "parked"
            assert not fleet.world.desktops
            kinds = sorted(x.purpose for x in await fleet.controller.snapshots(ANA, None))
            assert kinds == ["evidence", "parked"]
            assert (tmp_path / "artifacts" / lease.lease / "out" / "report").read_bytes() == b"report"
            back = await fleet.granted("a", desktop="finance")
            assert "/home/agent/ledger" in fleet.backend.desktop(back.desktop or "").files

    run(body())


def test_a_lease_that_ends_while_its_desktop_is_restored_leaves_a_clean_one(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            desktop = fleet.backend.desktop(lease.desktop or "")
            desktop.files["/home/agent/of-a"] = MemoryFile(b"x")
            desktop.slot["of-a"] = MemoryFile(b"x")
            snapshot = await fleet.controller.save(ANA, lease.lease, "")
            begun, go_on, real = asyncio.Event(), asyncio.Event(), fleet.backend.restore

            async def slowly(handle: Handle, spec: Spec) -> AsyncIterator[Handle]:
                begun.set()
                await go_on.wait()
                async for better in real(handle, spec):
                    yield better

            fleet.backend.restore = slowly  # type: ignore[method-assign]
            restoring = asyncio.create_task(fleet.controller.restore(ANA, snapshot.id), name="test: restore")
            await begun.wait()
            ending = asyncio.create_task(fleet.controller.release(ANA, lease.lease), name="test: release")
            await fleet.reached(lease.lease, LeaseState.RELEASED)
            go_on.set()
            await asyncio.gather(restoring, ending)
            await fleet.settled()
            await fleet.check()
            again = await fleet.granted("b")
            assert again.desktop == lease.desktop
            assert not fleet.backend.desktop(again.desktop or "").files
            assert not fleet.backend.desktop(again.desktop or "").slot

    run(body())


def test_what_a_frozen_desktop_leaves_is_kept_though_its_screen_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_picture(*what: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(Evidence, "_last_frame", no_picture)

    async def body() -> None:
        async with running(tmp_path) as fleet:
            lease = await fleet.granted("a")
            desktop = fleet.backend.desktop(lease.desktop or "")
            desktop.slot["out/report"] = MemoryFile(b"report")
            await fleet.controller.freeze(ANA, lease.lease)
            await fleet.controller.revoke(ANA, lease.lease, snapshot=True)
            await fleet.settled()
            assert (tmp_path / "artifacts" / lease.lease / "out" / "report").read_bytes() == b"report"
            assert [x.purpose for x in await fleet.controller.snapshots(ANA, None)] == ["evidence"]
            (entry,) = await fleet.controller.audit(ANA, what="lease.evidence")
            assert str(entry.facts["not_kept"]).startswith("TimeoutError")

    run(body())


def test_a_frozen_desktop_is_kept_as_it_stands_before_anything_in_it_goes_on(tmp_path: Path) -> None:
    async def body() -> None:
        async with running(tmp_path, evidence=False) as fleet:  # no picture: one that stands still gives none
            lease = await fleet.granted("a")
            desktop = fleet.backend.desktop(lease.desktop or "")
            desktop.slot["out/report"] = MemoryFile(b"as it stood")
            went_on: list[Call] = []

            async def go_on(call: Call) -> int:
                went_on.append(call)
                desktop.slot["out/report"] = desktop.files["/home/agent/later"] = MemoryFile(b"later")
                return 0

            fleet.backend.commands["go-on"] = go_on
            await fleet.controller.freeze(ANA, lease.lease)
            assert fleet.backend.abilities.exec
            await fleet.backend.abilities.exec.exec({"desktop": lease.desktop}, ["go-on"])
            await fleet.controller.revoke(ANA, lease.lease, snapshot=True)
            await fleet.settled()
            assert went_on, "planting has let it go on, in the end"
            assert (tmp_path / "artifacts" / lease.lease / "out" / "report").read_bytes() == b"as it stood"
            (kept,) = fleet.world.snapshots.values()
            assert not kept.files

    run(body())
