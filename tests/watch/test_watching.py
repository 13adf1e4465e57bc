"""Who may watch a desktop, what a viewer may do there, and when it has to go."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.memory_inside import MemoryDesktop
from cu_fleet.controller import showing, steering
from cu_fleet.model.access import Caller, Grants, Role
from cu_fleet.model.action import Click, KeyDown, Press, Type
from cu_fleet.model.audit import Entry
from cu_fleet.model.errors import DeniedError, FleetError, UnavailableError
from cu_fleet.model.view import LeaseView
from cu_fleet.rfb.handshake import RfbError
from cu_fleet.rfb.screen import Screen
from cu_fleet.watch import viewer as viewer_module
from tests.controller.fleet import ANA, Fleet
from tests.support import run, until
from tests.watch.viewers import connected, entered, hands, let_in, shows, stopped, viewer

BOB = Caller(operator="bob", role=Role.OPERATOR)
EVE = Caller(operator="eve", role=Role.OBSERVER)


@pytest.fixture(autouse=True)
def _no_time_to_lose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "WRONG", 0.05)


@asynccontextmanager
async def leased(home: Path, **more: Any) -> AsyncIterator[tuple[Fleet, LeaseView]]:
    fleet = Fleet(home, **more)
    await fleet.start()
    try:
        yield fleet, await fleet.granted("a")
    finally:
        if fleet.controller:
            await fleet.controller.close()


def agent_of(view: LeaseView) -> Caller:
    return Caller(lease=view.lease, agent=view.agent)


def inside(fleet: Fleet, view: LeaseView) -> MemoryDesktop:
    assert view.desktop
    return fleet.world.desktops[view.desktop]


def upstream(fleet: Fleet, view: LeaseView) -> Screen:
    assert view.desktop
    screen = fleet.controller.actors.of(view.desktop).screen
    assert screen
    return screen


async def entries(fleet: Fleet, what: str) -> list[Entry]:
    return [entry for entry in await fleet.controller.audit(ANA) if entry.what == what]


def events(fleet: Fleet, view: LeaseView) -> list[tuple[object, ...]]:
    return [event for event in inside(fleet, view).events if event[0] == "key" or event[3]]


# the picture


def test_any_number_of_viewers_see_what_the_agent_sees(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            screen = inside(fleet, view).screen
            async with viewer(fleet.controller, view.lease) as one, viewer(fleet.controller, view.lease, EVE) as two:
                await shows(one, upstream(fleet, view))
                screen.fill(10, 10, 150, 90, (1, 200, 30))
                await shows(one, upstream(fleet, view))
                await shows(two, upstream(fleet, view))
                seen = (await fleet.controller.lease(ANA, view.lease)).watchers
                assert [(x.who, x.control, x.way) for x in seen] == [
                    ("operator ana", False, "tcp"),
                    ("operator eve", False, "tcp"),
                ]
            await until(lambda: not fleet.controller.watching.of_lease(view.lease))
            assert [entry.facts["why"] for entry in await entries(fleet, "watch.closed")] == ["it left"] * 2

    run(body())


def test_who_never_reads_is_dropped_and_slows_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_module, "STALL", 1.0)

    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            stuck = await stopped(await fleet.controller.watch(ANA, view.lease))
            async with viewer(fleet.controller, view.lease) as awake:
                at = 0

                async def still_there() -> bool:
                    nonlocal at
                    at += 1
                    inside(fleet, view).screen.fill(0, 0, 200, 120, (at * 37 % 256, at * 101 % 256, at % 256))
                    await shows(awake, upstream(fleet, view))
                    return len(fleet.controller.watching.of_lease(view.lease)) == 1

                await until(still_there)
                assert "took nothing" in str((await entries(fleet, "watch.closed"))[0].facts["why"])
            stuck.close()

    run(body(), timeout=60)


# acting


def test_what_a_person_does_reaches_the_desktop_and_is_on_record_under_their_name(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            async with viewer(fleet.controller, view.lease, BOB, control=True) as screen:
                await hands(screen).do(Click(type="click", x=50, y=40))
                await hands(screen).do(Type(type="type", text="Ab"))
                expected = [("pointer", 50, 40, 1)]
                expected += [("key", ord(char), down) for char in "Ab" for down in (True, False)]
                await until(lambda: events(fleet, view) == expected)
                await until(lambda: entries(fleet, "watch.input.done"))
            told = await entries(fleet, "watch.input.done")
            assert {(entry.who, entry.agent, entry.result) for entry in told} == {("operator bob", "a", "ok")}
            assert [["left", 50, 40]] in [entry.facts.get("presses") for entry in told]
            typed = [entry.facts["text"] for entry in told if "text" in entry.facts]
            assert sum(text["length"] for text in typed) == 2  # type: ignore[index,call-overload]
            assert "Ab" not in str([entry.model_dump() for entry in told])
            begun = {entry.seq for entry in await entries(fleet, "watch.input")}
            assert {entry.of for entry in told} == begun

    run(body())


def test_who_may_only_look_moves_nothing(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            before = list(inside(fleet, view).events)
            async with viewer(fleet.controller, view.lease) as screen:
                await hands(screen).do(Click(type="click", x=50, y=40))
                await hands(screen).do(Type(type="type", text="x"))
                await screen.set_clipboard("secret")
                await screen.sync()
            await until(lambda: entries(fleet, "watch.closed"))
            assert inside(fleet, view).events == before
            assert await entries(fleet, "watch.input") == []
            assert inside(fleet, view).screen.clipboard == ""

    run(body())


@pytest.mark.parametrize("end", ["vanishes", "paused", "revoked"])
def test_what_a_viewer_holds_goes_up(tmp_path: Path, end: str) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            async with viewer(fleet.controller, view.lease, control=True) as screen:
                await hands(screen).do(KeyDown(type="key_down", key="shift"))
                await hands(screen).do(Press(type="press", x=5, y=6, button="left"))
                await until(lambda: events(fleet, view)[-1:] == [("pointer", 5, 6, 1)])
                if end == "paused":
                    await fleet.controller.pause(ANA, view.lease)
                elif end == "revoked":
                    await fleet.controller.revoke(ANA, view.lease)
                if end != "vanishes":
                    assert inside(fleet, view).events[-2:] == [("key", 0xFFE1, False), ("pointer", 5, 6, 0)]
            await until(lambda: ("key", 0xFFE1, False) in inside(fleet, view).events)
            await until(lambda: inside(fleet, view).events[-1] == ("pointer", 5, 6, 0))

    run(body())


def test_an_agent_does_not_act_amid_a_persons_drag(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            async with viewer(fleet.controller, view.lease, control=True) as screen:
                mine = hands(screen)
                await mine.do(Press(type="press", x=5, y=6, button="left"))
                await until(lambda: ("pointer", 5, 6, 1) in events(fleet, view))
                acting = asyncio.create_task(
                    fleet.controller.act(agent_of(view), view.lease, [Type(type="type", text="z")])
                )
                for x in range(10, 60, 10):
                    mine.fingers.point(x, 6)
                    await screen.sync()
                await until(lambda: ("pointer", 50, 6, 1) in events(fleet, view))
                assert not acting.done()
                mine.fingers.point(buttons=0)
                await acting
            told = inside(fleet, view).events
            assert told.index(("pointer", 50, 6, 0)) < told.index(("key", ord("z"), True))

    run(body())


@pytest.mark.parametrize("taken", [True, False])
def test_what_is_held_may_be_held_while_nobody_else_acts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    monkeypatch.setattr(steering, "_HELD", 0.2)

    async def body() -> None:
        async with leased(tmp_path) as (fleet, view), viewer(fleet.controller, view.lease, control=True) as screen:
            if taken:
                await fleet.controller.take(ANA, view.lease)
            hands(screen).fingers.point(5, 6, buttons=1)
            await screen.sync()
            await until(lambda: entries(fleet, "watch.input.done"))
            assert (inside(fleet, view).events[-1] == ("pointer", 5, 6, 1)) is taken
            if taken:
                hands(screen).fingers.point(7, 8, buttons=0)
                await screen.sync()
            await until(lambda: inside(fleet, view).events[-1][3] == 0)

    run(body())


def test_a_person_who_waits_for_their_turn_loses_no_press(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view), viewer(fleet.controller, view.lease, control=True) as screen:
            fingers = hands(screen).fingers
            actor = fleet.controller.actors.of(view.desktop or "")
            async with actor.turn:
                for x, y, buttons in ((10, 10, 0), (11, 11, 0), (20, 20, 0), (20, 20, 1), (30, 30, 1), (40, 40, 1)):
                    fingers.point(x, y, buttons=buttons)
                fingers.point(40, 40, buttons=0)
                await screen.sync()
            expected = [("pointer", 20, 20, 0), ("pointer", 20, 20, 1), ("pointer", 40, 40, 1), ("pointer", 40, 40, 0)]
            await until(lambda: inside(fleet, view).events[-4:] == expected)

    run(body())


def test_control_is_whose_it_is(tmp_path: Path) -> None:
    """Paused: nobody's. Taken: only theirs who took it. Resumed: everybody's again."""

    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            lease, controller = view.lease, fleet.controller
            async with (
                viewer(controller, lease, control=True) as ana,
                viewer(controller, lease, BOB, control=True) as bob,
            ):

                async def typed(*letters: tuple[Screen, str]) -> None:
                    for screen, letter in letters:
                        await hands(screen).do(Type(type="type", text=letter))
                        await screen.sync()

                def keys() -> set[object]:
                    return {event[1] for event in events(fleet, view)}

                await controller.pause(ANA, lease)
                await typed((ana, "1"), (bob, "2"))
                await controller.take(ANA, lease)
                await typed((bob, "3"), (ana, "4"))
                await until(lambda: ord("4") in keys())
                await controller.resume(ANA, lease)
                await typed((bob, "5"), (ana, "6"))
                await until(lambda: {ord("5"), ord("6")} <= keys())
                assert not keys() & {ord("1"), ord("2"), ord("3")}

    run(body())


# tickets


def test_a_ticket_is_for_one_viewer_once(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            other = await fleet.granted("b")
            ticket = await fleet.controller.watch(ANA, view.lease)
            elsewhere = await fleet.controller.watch(ANA, other.lease)
            wrong = ticket.but(port=elsewhere.port)
            with pytest.raises(RfbError, match="wrong, used or too old"):
                await entered(wrong)
            screen = await entered(ticket, unix=True)
            with pytest.raises(RfbError, match="wrong, used or too old"):
                await entered(ticket)
            await screen.close()
            late = await fleet.controller.watch(ANA, view.lease, ttl=5)
            await fleet.clock.advance(6)
            with pytest.raises(RfbError, match="wrong, used or too old"):
                await entered(late)
            assert ticket.ticket not in str([entry.model_dump() for entry in await fleet.controller.audit(ANA)])

    run(body())


def test_who_may_let_viewers_in(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            controller = fleet.controller
            await controller.add_agent(ANA, "p", Grants(children=2))
            parent = Caller(agent="p")
            await controller.add_agent(parent, "c", Grants())
            child = await fleet.granted("c")
            for who, lease in ((EVE, view), (agent_of(view), view), (parent, child)):
                async with viewer(controller, lease.lease, who) as screen:
                    assert "view only" in screen.name
                with pytest.raises(DeniedError):
                    await controller.watch(who, lease.lease, control=True)
            for who, lease in ((agent_of(view), child), (parent, view), (Caller(agent="a"), view)):
                with pytest.raises(DeniedError):
                    await controller.watch(who, lease.lease)
            for who in (ANA, BOB):
                assert (await controller.watch(who, view.lease, control=True)).control

    run(body())


def test_a_ticket_does_not_outlive_the_lease(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            ticket = await fleet.controller.watch(ANA, view.lease)
            await fleet.controller.release(ANA, view.lease)
            assert ticket.socket
            await until(lambda: not Path(ticket.socket or "").exists())
            with pytest.raises(OSError):  # noqa: PT011 - nothing listens any more
                await connected(ticket)
            with pytest.raises(FleetError) as refused:
                await fleet.controller.watch(ANA, view.lease)
            assert refused.value.code == "lease_released"

    run(body())


# going


async def _release(fleet: Fleet, lease: str) -> object:
    return await fleet.controller.release(ANA, lease)


async def _revoke(fleet: Fleet, lease: str) -> object:
    return await fleet.controller.revoke(ANA, lease, reason="wrong account")


async def _reassign(fleet: Fleet, lease: str) -> object:
    return await fleet.controller.reassign(ANA, lease, to="b", clean=False)


async def _expire(fleet: Fleet, lease: str) -> object:
    await fleet.clock.advance(1000)
    return await until(lambda: not fleet.controller.watching.of_lease(lease))


async def _restore(fleet: Fleet, lease: str) -> object:
    saved = await fleet.controller.save(ANA, lease, note="")
    return await fleet.controller.restore(ANA, saved.id)


@pytest.mark.parametrize("end", [_release, _revoke, _reassign, _expire, _restore])
def test_when_a_lease_ends_or_changes_hands_its_viewers_are_gone(tmp_path: Path, end: Any) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view), viewer(fleet.controller, view.lease, control=True) as screen:
            await screen.frame()
            await end(fleet, view.lease)
            assert fleet.controller.watching.of_lease(view.lease) == ()
            await until(screen.lost.done)
            assert (await entries(fleet, "watch.closed"))[0].facts["why"] not in ("", "it left")

    run(body())


def test_who_is_about_to_enter_has_to_go_too(tmp_path: Path) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            waiting = await let_in(await fleet.controller.watch(ANA, view.lease))
            await until(lambda: fleet.controller.watching.of_lease(view.lease))
            await fleet.controller.revoke(ANA, view.lease)
            assert fleet.controller.watching.of_lease(view.lease) == ()
            assert await asyncio.get_running_loop().sock_recv(waiting, 1) == b""
            waiting.close()

    run(body())


def test_a_pause_that_forbids_looking_closes_the_agents_viewers(tmp_path: Path) -> None:
    async def body() -> None:
        async with (
            leased(tmp_path) as (fleet, view),
            viewer(fleet.controller, view.lease, agent_of(view)) as agents,
            viewer(fleet.controller, view.lease) as ana,
        ):
            await fleet.controller.pause(ANA, view.lease, looking=True)
            await agents.frame()
            await fleet.controller.resume(ANA, view.lease)
            await fleet.controller.pause(ANA, view.lease, looking=False, reason="a password")
            inside(fleet, view).screen.fill(0, 0, 50, 50, (1, 2, 3))
            await until(agents.lost.done)
            await shows(ana, upstream(fleet, view))
            why = (await entries(fleet, "watch.closed"))[0].facts["why"]
            assert "paused by operator ana: a password" in str(why)

    run(body())


@pytest.mark.parametrize("how", ["removed", "rotated", "demoted"])
def test_whoever_lost_their_role_has_to_go(tmp_path: Path, how: str) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            await fleet.controller.add_operator(ANA, "bob", Role.OPERATOR)
            async with viewer(fleet.controller, view.lease, BOB, control=True) as bob:
                await bob.frame()
                if how == "removed":
                    await fleet.controller.remove_operator(ANA, "bob")
                elif how == "rotated":
                    await fleet.controller.rotate_operator(ANA, "bob")
                else:
                    await fleet.controller.add_operator(ANA, "bob", Role.OBSERVER)
                await until(bob.lost.done)

    run(body())


async def _killed(_: object) -> None:
    raise UnavailableError("nothing is written any more")


def test_a_killed_controller_leaves_no_viewer_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            screen = await entered(await fleet.controller.watch(ANA, view.lease, control=True))
            await hands(screen).do(Press(type="press", x=5, y=6, button="left"))
            await until(lambda: ("pointer", 5, 6, 1) in events(fleet, view))
            before = fleet.controller
            monkeypatch.setattr(before.core, "note", _killed)
            await fleet.kill()
            await before.watching.listening.close()
            await until(screen.lost.done)
            await fleet.start()
            assert [entry.result for entry in await entries(fleet, "watch.input.done")] == ["interrupted"]
            assert [entry.facts["why"] for entry in await entries(fleet, "watch.closed")] == [
                "the controller was killed"
            ]
            assert fleet.controller.watching.of_lease(view.lease) == ()
            await fleet.check()

    run(body())


# at the door


def test_whoever_shows_no_ticket_holds_no_place_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(showing, "ENTER_WITHIN", 1.0)

    async def body() -> None:
        async with leased(tmp_path) as (fleet, view):
            ticket = await fleet.controller.watch(ANA, view.lease)
            loop = asyncio.get_running_loop()
            idle = [await connected(ticket) for _ in range(showing.MOST_ENTERING)]
            greetings = [await loop.sock_recv(sock, 12) for sock in idle]
            assert set(greetings) == {b"RFB 003.008\n"}
            one_more = await connected(ticket)
            assert await loop.sock_recv(one_more, 12) == b""
            by_the_socket = await entered(ticket, unix=True)  # which others do not reach
            ends = [await loop.sock_recv(sock, 12) for sock in idle]
            assert set(ends) == {b""}
            await by_the_socket.close()
            for sock in (*idle, one_more):
                sock.close()

    run(body())
