"""Several agents at the same moment: each on its own desktop, and what is taken is refused or waited for."""

import asyncio
import contextlib
import json
import subprocess
from pathlib import Path

import pytest

from cu_fleet.client import Fleet
from cu_fleet.model.errors import FleetError
from tests.acceptance.eyes import events, inside, sink, terminal
from tests.acceptance.home import Home, at_rest, command_lines, home
from tests.support import run, until

pytestmark = pytest.mark.real


def test_three_agents_type_at_once_each_into_its_own(house: Home, tmp_path: Path) -> None:
    words = {"ada": "analytical engine ", "bob": "BRIDGES & BEAMS ", "cyd": "Grüße, año, 42% {} "}

    async def work(fleet: Fleet, agent: str) -> tuple[str, str]:
        async with fleet.lease(agent=agent, profile="local") as desktop:
            await terminal(desktop)
            await desktop.type("cat > Shared/mine\n")
            await until(lambda: _there(fleet, desktop.id, "Shared/mine"))  # until then the shell's own line reads keys
            for _ in range(12):
                await desktop.type(words[agent] * 3 + "\n")
                focused = [window["title"] for window in await desktop.windows() if window["focused"]]
                assert len(focused) == 1
            await desktop.key("ctrl+d")
            await desktop.type("clear; cat Shared/mine; echo done > Shared/done\n")
            await until(lambda: _there(fleet, desktop.id, "Shared/done"))
            picture = await desktop.screenshot()
            picture.save(tmp_path / f"{agent}.png")
            return desktop.lease.desktop or "", (await desktop.get_file("mine")).decode()

    async def body() -> None:
        async with house.client() as fleet:
            done = await asyncio.gather(*(work(fleet, agent) for agent in words))
            assert len({where for where, _ in done}) == 3
            assert [text for _, text in done] == [(words[agent] * 3 + "\n") * 12 for agent in words]
            typed = [x for x in await fleet.audit(after=0, limit=1000, what="act") if x.agent in words]
            order = [x.agent for x in typed]
            assert order != sorted(order), "they did not work at the same time"

    run(body(), timeout=90)


async def _there(fleet: Fleet, lease: str, path: str) -> bool:
    return (await fleet.run(lease, ["test", "-e", path])).exit_code == 0


def test_a_screen_is_what_its_profile_says_and_its_pixels_are_its_coordinates(house: Home, tmp_path: Path) -> None:
    async def body() -> None:
        async with house.client() as fleet, fleet.lease(agent="a", profile="small") as desktop:
            image = await desktop.screenshot()
            assert image.size == (desktop.lease.width, desktop.lease.height) == (640, 480)
            await sink(fleet, desktop.id)
            await desktop.act([{"type": "click", "x": 639, "y": 479}, {"type": "key", "keys": "ctrl+shift+F5"}])
            seen = await events(fleet, desktop.id, 1)
            assert seen[1:3] == ["button 1", "buttonup 1"]
            assert len(seen) == 1 + 2 + 6
            assert (await desktop.screenshot(allow_blank=True)).getpixel((639, 479)) == (0x33, 0x66, 0x99)

    run(body(), timeout=60)


def test_who_holds_it_is_told_and_who_waits_gets_it_when_it_is_released(house: Home) -> None:
    ask = ("lease", "acquire", "--profile", "local", "--desktop", "finance")
    held = house.cli(*ask, "--agent", "a")
    denied = house.run(*ask, "--agent", "b", "--no-wait")
    assert denied.returncode == 3
    words = (
        f'lease denied: agent b asked for desktop "finance", but agent a holds it (lease {held["lease"]}) until it is'
    )
    assert words in " ".join(denied.stderr.decode().split())
    assert house.cli(*ask, "--agent", "b", "--no-wait", exit_code=3)["holder"]["agent"] == "a"
    assert house.cli(*ask, "--agent", "b", "--wait", "0.2s", exit_code=4)["error"] == "waited_too_long"
    assert [one["lease"] for one in house.cli("lease", "list")["leases"]] == [held["lease"]]

    waiting = house.start(*ask, "--agent", "b", "--json")
    run(until(lambda: len(house.cli("lease", "list")["leases"]) == 2))
    assert house.cli("lease", "show", held["lease"])["waiters"] == 1
    house.cli("desktop", "exec", "finance", "--", "sh", "-c", "echo of-a > ~/ledger")
    house.cli("lease", "release", held["lease"])
    out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == 0, err
    assert "number 1 in line" in " ".join(err.decode().split())
    got = json.loads(out)
    assert (got["agent"], got["desktop"]) == ("b", held["desktop"])
    assert got["generation"] > held["generation"]
    ledger = house.cli("desktop", "exec", "finance", "--", "cat", "ledger", exit_code=None)
    assert ledger["exit"] != 0, "a named desktop that goes to another agent is reset"


def test_resources_are_had_by_one_lease_all_or_none_and_nobody_deadlocks(house: Home) -> None:
    async def body() -> None:
        async with house.client() as fleet:
            first = await fleet.acquire(agent="a", profile="small", resources=["bank", "mail"])
            with pytest.raises(FleetError, match='resource "mail", but agent a holds it') as refused:
                await fleet.acquire(agent="b", profile="small", resources=["calendar", "mail"], wait=0)
            assert refused.value.code == "taken"
            assert (await fleet.acquire(agent="c", profile="small", resources=["calendar"], wait=0)).id
            crossed = [
                asyncio.create_task(fleet.acquire(agent=agent, profile="small", resources=wanted, wait=40))
                for agent, wanted in (("d", ["mail", "bank"]), ("e", ["bank", "mail"]))
            ]
            await until(lambda: _waiting(fleet, 2))
            await fleet.release(first.id)
            done, pending = await asyncio.wait(crossed, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            await fleet.release(done.pop().result().id)
            other = await pending.pop()
            assert set(other.lease.resources) == {"bank", "mail"}

    run(body(), timeout=90)


async def _waiting(fleet: Fleet, count: int) -> bool:
    return [x.state for x in await fleet.leases()].count("waiting") == count


def test_the_same_request_is_the_same_lease_and_limits_hold(house: Home) -> None:
    ask = ("lease", "acquire", "--agent", "a", "--profile", "small")
    first = house.cli(*ask, "--request-id", "r1")
    again = house.cli(*ask, "--request-id", "r1")
    assert (again["lease"], again["token"]) == (first["lease"], first["token"])
    second = house.cli(*ask)
    assert second["desktop"] != first["desktop"]
    too_many = house.cli(*ask, exit_code=3)
    assert (too_many["error"], "2 of the 2 leases" in too_many["message"]) == ("too_many_leases", True)
    assert len(house.cli("lease", "list")["leases"]) == 2


def test_agents_with_tokens_get_what_they_were_granted_and_no_more(house: Home) -> None:
    token = house.run("agent", "add", "limited", "--profile", "small", "--resource", "mail*").stdout.decode().strip()
    me = {"CU_FLEET_TOKEN": token, "CU_FLEET_URL": house.cli("status")["url"]}
    mine = house.cli("lease", "acquire", "--profile", "small", "--resource", "mail:a", **me)
    assert mine["agent"] == "limited"
    for words in (
        ["lease", "acquire", "--profile", "local"],
        ["lease", "acquire", "--profile", "small", "--resource", "bank"],
        ["lease", "acquire", "--profile", "small", "--desktop", "finance"],
        ["lease", "acquire", "--profile", "small"],  # one at a time, unless granted more
        ["desktop", "exec", mine["desktop"], "--", "true"],
        ["lease", "revoke", mine["lease"]],
        ["desktop", "list"],
        ["audit", "show"],
        ["agent", "add", "child"],
    ):
        refused = house.cli(*words, exit_code=3, **me)
        assert refused["message"], words
    other = house.cli("lease", "acquire", "--agent", "b", "--profile", "small")
    for theirs in (me["CU_FLEET_TOKEN"], mine["token"]):
        here = me | {"CU_FLEET_TOKEN": theirs}
        assert house.cli("act", other["lease"], '{"type": "key", "keys": "a"}', exit_code=3, **here)["message"]
    here = me | {"CU_FLEET_TOKEN": mine["token"]}
    house.cli("act", mine["lease"], '{"type": "key", "keys": "a"}', **here)
    house.cli("lease", "release", mine["lease"], **me)
    house.cli("agent", "remove", "limited")
    assert house.cli("lease", "list", exit_code=3, **me)["error"] == "outdated_token"


# a home of its own: how many desktops there may be is a setting


def test_room_is_bounded_and_real_commands_are_served_in_the_order_they_came() -> None:
    with home(max_desktops=2) as one:
        one.write_profile("one", "backend: local\nscreen: {width: 320, height: 240}\ngates: none\n")
        first = one.cli("lease", "acquire", "--agent", "a", "--profile", "one")
        second = one.cli("lease", "acquire", "--agent", "b", "--profile", "one")  # the warm one of `local` gives way
        waiting = [_in_line(one, n) for n in range(3)]
        leases = {x["agent"]: x for x in one.cli("lease", "list")["leases"]}
        assert [leases[f"w{n}"]["place"] for n in range(3)] == [1, 2, 3]
        assert "all 2 this machine has room for are taken" in leases["w0"]["message"]
        assert leases["w0"]["holder"]["lease"] in (first["lease"], second["lease"])
        served = [first["lease"]]
        for n, command in enumerate(waiting):
            assert command.poll() is None
            one.cli("lease", "release", served[-1])
            out, err = command.communicate(timeout=30)
            assert command.returncode == 0, err
            served.append(json.loads(out)["lease"])
            assert [later.poll() for later in waiting[n + 1 :]] == [None] * (2 - n)
            assert one.cli("status")["capacity"]["used"] == 2
        run(_after(one, [second["lease"], served[-1]]), timeout=60)
        assert _most(one) == 2


def _in_line(one: Home, n: int) -> subprocess.Popen[bytes]:
    command = one.start("lease", "acquire", "--agent", f"w{n}", "--profile", "one", "--wait", "forever", "--json")
    run(until(lambda: f"w{n}" in [x["agent"] for x in one.cli("lease", "list")["leases"]]))
    return command


async def _after(one: Home, leases: list[str]) -> None:
    """Room that is free again is for the warm desktop, whose profile wants one."""
    async with one.client() as fleet:
        for lease in leases:
            await fleet.release(lease)
        await at_rest(fleet)

        async def warm() -> bool:
            profiles = [x.profile for x in await fleet.desktops() if x.stage == "ready"]
            return profiles.count("local") <= 1 and len(profiles) <= 2

        await until(warm)


def _most(one: Home) -> int:
    """By the record, how many desktops there were at most at one time."""
    most = alive = 0
    for entry in one.cli("audit", "show", "-n", "10000")["entries"]:
        alive += {"desktop.planned": 1, "desktop.gone": -1}.get(entry["what"], 0)
        most = max(most, alive)
    return most


def test_a_warm_desktop_is_granted_at_once_and_another_takes_its_place(house: Home) -> None:
    async def body() -> None:
        async with house.client() as fleet:
            await at_rest(fleet)
            ready = {x.desktop for x in await fleet.desktops() if x.profile == "local" and x.stage == "ready"}
            assert ready
            desktop = await fleet.acquire(agent="a", profile="local")
            assert desktop.lease.desktop in ready

            async def refilled() -> bool:
                now = [x for x in await fleet.desktops() if x.profile == "local" and x.stage == "ready"]
                return len(now) >= 1

            await until(refilled)

    run(body(), timeout=60)


@pytest.mark.parametrize("name", [None, "lasting"])
def test_a_screen_that_dies_is_told_and_its_desktop_replaced(house: Home, name: str | None) -> None:
    async def body() -> None:
        async with house.client() as fleet:
            desktop = await fleet.acquire(agent="a", profile="small", desktop=name)
            await inside(fleet, desktop.id, "echo kept > ~/file")
            with contextlib.suppress(FleetError):  # the command may die with its desktop
                await fleet.run(desktop.id, ["pkill", "-9", "Xvnc"])

            async def lost() -> bool:
                return (await fleet.show(desktop.id)).state == "lost"

            await until(lost)
            told = await asyncio.to_thread(house.run, "act", desktop.id, '{"type": "key", "keys": "a"}')
            assert told.returncode == 6
            assert b"its screen died" in told.stderr
            again = await fleet.acquire(agent="a", profile="small", desktop=name)
            assert (await again.screenshot()).size == (640, 480)
            await again.key("a")
            kept = await fleet.run(again.id, ["cat", "/home/agent/file"])
            assert kept.stdout == (b"kept\n" if name else b"")
            if not name:
                assert again.lease.desktop != desktop.lease.desktop
                gone = f"/{desktop.lease.desktop}"
                await until(lambda: not [words for words in command_lines() if gone in words])
            assert (await fleet.audit(desktop=desktop.lease.desktop, what="desktop.died"))[-1].facts["why"]

    run(body(), timeout=60)
