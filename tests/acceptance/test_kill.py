"""A real controller over real desktops is killed at random moments, under load, many times; nothing is lost."""

import asyncio
import random
import subprocess

import pytest

from cu_fleet.client import Fleet
from cu_fleet.model.errors import FleetError
from tests.acceptance.home import Home, check_grants, home, serving
from tests.support import run, until

KILLS = 12
AGENTS = 4


async def work(fleet_home: Home, agent: str, luck: random.Random, seen: dict[str, str]) -> None:
    """One agent's day: a desktop, some typing, a look, and away with it; through any number of crashes."""
    while True:
        try:
            async with fleet_home.client() as fleet:
                await _one_lease(fleet, agent, luck, seen)
        except (FleetError, OSError):
            await asyncio.sleep(0.05)


async def _one_lease(fleet: Fleet, agent: str, luck: random.Random, seen: dict[str, str]) -> None:
    request = f"{agent}-{luck.random()}"
    desktop = await fleet.acquire(agent=agent, profile="local", wait=30, request_id=request)
    again = await fleet.acquire(agent=agent, profile="local", wait=30, request_id=request)
    assert again.id == desktop.id
    seen[desktop.id] = desktop.lease.desktop or ""
    for _ in range(luck.randrange(1, 6)):
        await desktop.type("the quick brown fox")
        await desktop.screenshot()
    if luck.random() < 0.8:
        await fleet.release(desktop.id)
    else:
        await fleet.revoke(desktop.id, reason="chance", bar="none")


@pytest.mark.real
@pytest.mark.slow
def test_killed_at_random_under_load(capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(10**9)
    print(f"seed {seed}")  # shown when it fails
    luck = random.Random(seed)

    async def body(one: Home) -> None:
        seen: dict[str, str] = {}
        controller = one.up()
        agents = [
            asyncio.create_task(work(one, f"agent-{n}", random.Random(luck.random()), seen), name=f"agent {n}")
            for n in range(AGENTS)
        ]
        try:
            for _ in range(KILLS):
                if luck.random() < 0.8:  # else it may be killed while it starts
                    await serving(one)
                await asyncio.sleep(luck.uniform(0.0, 3.0))
                await asyncio.to_thread(one.kill, controller)
                assert check_grants(await one.record()) >= 0
                controller = one.up()
        finally:
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)
        await check_after(one, controller, seen)

    with home(max_desktops=AGENTS - 1) as one:
        run(body(one), timeout=300)


async def check_after(one: Home, controller: subprocess.Popen[bytes], seen: dict[str, str]) -> None:
    assert len(seen) >= KILLS // 2, "hardly anything happened"
    await serving(one)
    async with one.client() as fleet:
        assert await fleet.verify_audit() > 0
        for view in await fleet.leases():
            await fleet.release(view.lease)

        async def at_rest() -> bool:
            return all(x.stage == "ready" for x in await fleet.desktops())

        await until(at_rest, timeout=60)
        await fleet.shutdown()
    await asyncio.to_thread(controller.wait, 30)
    entries = await one.record()
    assert check_grants(entries) >= len(seen)
    assert KILLS // 2 < sum(x.what == "controller.started" for x in entries) <= KILLS + 1
    assert not [x.facts for x in entries if x.what == "desktop.failed"]


@pytest.mark.real
def test_leases_outlive_a_kill_with_what_is_on_the_screen() -> None:
    """The same desktop, the same processes, the same token; a new lease goes on behind it."""

    async def body(one: Home) -> None:
        controller = one.up()
        await serving(one)
        async with one.client() as fleet:
            desktop = await fleet.acquire(agent="a", profile="local", wait=30)
            view = desktop.lease
            await fleet.run(view.lease, ["sh", "-c", "echo before > ~/note; (sleep 1000 &) >/dev/null 2>&1"])
            before = (await desktop.screenshot()).frame.sha256
        await asyncio.to_thread(one.kill, controller)
        controller = one.up()
        await serving(one)
        async with one.client() as fleet:
            desktop = await fleet.open(view.lease)
            assert (await desktop.screenshot()).frame.sha256 == before
            note = await fleet.run(view.lease, ["cat", "/home/agent/note"])
            assert note.stdout == b"before\n"
            after = await fleet.show(view.lease)
            assert (after.generation, after.desktop, after.state) == (view.generation, view.desktop, "active")
            await fleet.shutdown()
        await asyncio.to_thread(controller.wait, 30)

    with home() as one:
        run(body(one), timeout=90)
