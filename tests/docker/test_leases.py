"""Leases on desktops in containers, with the real command line and a real controller: what happens to them is told."""

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from cu_fleet import Fleet
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.testing.dockerd import PrivateDocker
from tests.acceptance.home import Home, home, serving
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]

SMALL = """
backend: docker
image: cu-fleet/desktop
screen: {width: 640, height: 480}
gates: none
launch:
  terminal: {command: [xterm, -fa, "DejaVu Sans Mono", -fs, "10"]}
"""
_CHANCE, _EACH = 8, 14  # how many descriptors and threads vary by themselves, and how many a desktop has
QUIET = "backend: local\ngates: none\nwarm: 0\n"


@pytest.fixture
def house(engine: PrivateDocker) -> Iterator[Home]:
    yield from _house(engine)


@pytest.fixture
def mortal_house(own_engine: PrivateDocker) -> Iterator[Home]:
    yield from _house(own_engine)


def _house(engine: PrivateDocker) -> Iterator[Home]:
    with home() as one:
        one.env["DOCKER_HOST"] = engine.host
        one.write_profile("small", SMALL)
        one.write_profile("local", QUIET)
        yield one
        down = one.run("down")
        assert left(engine) == [], (down, one.warnings())


def left(engine: PrivateDocker) -> list[str]:
    """Containers, volumes and networks of ours that the engine still has."""

    def look(api: APIClient) -> list[str]:
        found = [one["Names"][0] for one in api.containers(all=True)]
        found += [one["Name"] for one in api.volumes().get("Volumes") or []]
        return found + [one["Name"] for one in api.networks() if one["Name"].startswith("cu-fleet-")]

    found: list[str] = Engine(engine.host).now(look)
    return found


def containers(engine: PrivateDocker) -> list[str]:
    return [name for name in left(engine) if name.startswith("/")]


def acquire(one: Home, agent: str, *words: str) -> dict[str, Any]:
    lease: dict[str, Any] = one.cli("lease", "acquire", "--agent", agent, "--profile", "small", *words)
    return lease


def over(one: Home, lease: str) -> dict[str, Any] | None:
    view: dict[str, Any] = one.cli("lease", "show", lease)
    return None if view["state"] == "active" else view


def test_a_lease_from_acquire_to_revoke(house: Home, engine: PrivateDocker, tmp_path: Path) -> None:
    lease = acquire(house, "a")
    house.cli("act", lease["lease"], '{"type": "move", "x": 320, "y": 240}', '{"type": "key", "keys": "ctrl+a"}')
    shot = tmp_path / "now.png"
    house.cli("screenshot", lease["lease"], "-o", str(shot))
    assert shot.read_bytes().startswith(b"\x89PNG")
    (tmp_path / "in").write_text("from outside")
    house.cli("cp", str(tmp_path / "in"), f"{lease['lease']}:in")
    assert house.run("desktop", "exec", lease["lease"], "--", "cat", "Shared/in").stdout == b"from outside"
    house.run("desktop", "exec", lease["lease"], "--", "sh", "-c", "echo mine > planted")
    snapshot = house.cli("snapshot", "save", lease["lease"])
    house.run("desktop", "exec", lease["lease"], "--", "rm", "planted")
    house.cli("snapshot", "restore", snapshot["id"])
    assert house.run("desktop", "exec", lease["lease"], "--", "cat", "planted").stdout == b"mine\n"
    before = containers(engine)
    house.cli("lease", "revoke", lease["lease"], "--reason", "enough", "--bar", "none")
    again = acquire(house, "b")
    assert again["desktop"] == lease["desktop"], "rolled back, not thrown away"
    assert house.run("desktop", "exec", again["lease"], "--", "ls").stdout == b"Downloads\nShared\n"
    assert containers(engine) == before, "the same name, and one container only"
    house.cli("snapshot", "delete", snapshot["id"])
    house.cli("audit", "verify")


def test_a_lease_hears_that_its_container_was_killed_and_the_next_is_served(house: Home, engine: PrivateDocker) -> None:
    lease = acquire(house, "a")
    [name] = containers(engine)
    Engine(engine.host).now(lambda api: api.kill(name[1:]))
    ended = run(until(lambda: over(house, lease["lease"]), timeout=60, every=0.2), timeout=90)
    assert ended["state"] == "lost"
    assert "exit code 137" in ended["reason"]
    refused = house.cli("act", lease["lease"], '{"type": "move", "x": 1, "y": 1}', exit_code=6)
    assert "exit code 137" in json.dumps(refused)
    acquire(house, "b")
    assert len(containers(engine)) == 1


def test_a_request_hears_that_there_is_no_image(house: Home) -> None:
    house.write_profile("none", SMALL.replace("cu-fleet/desktop", "cu-fleet/none"))
    words = ["lease", "acquire", "--agent", "a", "--profile", "none", "--wait", "30s"]
    refused = house.run(*words)
    assert refused.returncode != 0
    assert b"no image cu-fleet/none" in refused.stderr
    assert b"cu-fleet image build none" in refused.stderr


def test_an_engine_that_dies_ends_its_leases_and_serves_again(mortal_house: Home, own_engine: PrivateDocker) -> None:
    one, engine = mortal_house, own_engine
    lease = acquire(one, "a")
    engine.stop()
    ended = run(until(lambda: over(one, lease["lease"]), timeout=60, every=0.2), timeout=90)
    assert ended["state"] == "lost"
    assert "Docker engine" in ended["reason"]
    engine.start()
    again = acquire(one, "b", "--wait", "60s")
    assert one.run("desktop", "exec", again["lease"], "--", "echo", "here").stdout == b"here\n"
    one.cli("lease", "release", again["lease"])
    run(until(lambda: len(containers(engine)) <= 1, timeout=60, every=0.2), timeout=90)


def test_a_controller_killed_at_work_leaves_nothing_and_hands_nothing_out_twice(
    house: Home, engine: PrivateDocker
) -> None:
    for number, sign in enumerate(("init", "run/rfb.sock", "")):
        controller = house.up()
        run(until(lambda: house.run("status").returncode == 0, timeout=60, every=0.2), timeout=90)
        known = signs(house, sign)
        asking = house.start("lease", "acquire", "--agent", f"a{number}", "--profile", "small")
        if sign:
            run(until(lambda sign=sign, known=known: signs(house, sign) - known, timeout=60), timeout=90)  # type: ignore[misc]
        else:
            asking.wait(60)
        house.kill(controller)
        house.end_commands()
    controller = house.up()
    run(until(lambda: house.run("status").returncode == 0, timeout=60, every=0.2), timeout=90)
    kept = acquire(house, "last")
    run(until(lambda: settled(house), timeout=90, every=0.3), timeout=120)
    fleet = run(house.fleet())
    wanted = {f"/cu-fleet-{fleet}-{one['desktop']}" for one in house.cli("desktop", "list")["desktops"]}
    assert set(containers(engine)) == wanted
    held = [one["desktop"] for one in house.cli("lease", "list")["leases"] if one["state"] == "active"]
    assert len(held) == len(set(held))
    assert kept["desktop"] in held
    house.run("down")
    controller.wait(30)


def signs(house: Home, sign: str) -> set[Path]:
    """How far desktops are with their start."""
    return set((house.fleet_home / "docker").glob(f"dk_*/{sign}"))


def settled(house: Home) -> bool:
    return all(one["stage"] in ("ready", "held") for one in house.cli("desktop", "list")["desktops"])


def test_many_leases_in_a_row_leave_the_engine_and_the_controller_as_they_were(
    house: Home, engine: PrivateDocker
) -> None:
    """Two dozen here, which leave nothing each; two hundred were taken by hand with the same result."""
    house.write_profile("small", f"{SMALL}warm: 2\n")
    controller = house.up()

    def held() -> dict[str, int]:
        images, networks = Engine(engine.host).now(lambda api: (api.images(), api.networks()))
        return {
            "engine": len(list(Path(f"/proc/{engine.pid}/fd").iterdir())),
            "controller": len(list(Path(f"/proc/{controller.pid}/fd").iterdir())),
            "threads": len(list(Path(f"/proc/{controller.pid}/task").iterdir())),
            "desktops": len(containers(engine)),
            "images": len(images),
            "networks": len(networks),
        }

    async def body() -> None:
        await serving(house)
        async with house.client() as fleet:

            async def some(count: int) -> set[tuple[str | None, int | None]]:
                seen = set()
                for _ in range(count):
                    desktop = await fleet.acquire(agent="a", profile="small", wait=60)
                    seen.add((desktop.lease.desktop, desktop.lease.generation))
                    await desktop.click(10, 10)
                    await fleet.release(desktop.id)
                await until(partial(_at_rest, fleet), timeout=60)
                return seen

            grown: dict[str, tuple[int, int]] = {}
            await some(8)
            before = await asyncio.to_thread(held)
            assert len(await some(16)) == 16, "no desktop is handed out twice under one generation"

            async def as_before() -> bool:
                now = await asyncio.to_thread(held)
                more = _CHANCE + _EACH * max(0, now["desktops"] - before["desktops"])
                grown.update({what: (before[what], now[what]) for what in before})
                kept = all(now[what] == before[what] for what in ("images", "networks"))
                return kept and all(now[what] <= before[what] + more for what in ("engine", "controller", "threads"))

            try:
                await until(as_before, timeout=30, every=0.5)
            except AssertionError:
                pytest.fail(f"of what there was and is: {grown}")
            there = await asyncio.to_thread(left, engine)
            assert len(there) == 3 * len(await fleet.desktops()), "of each one container and two volumes"

    run(body(), timeout=200)
    house.run("down")
    controller.wait(30)


async def _at_rest(fleet: Fleet) -> bool:
    return all(one.stage == "ready" for one in await fleet.desktops())
