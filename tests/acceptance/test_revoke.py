"""Revoke in the middle of an action on a real desktop: what reaches the screen, what the token hears, who is next."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from cu_fleet.client import Desktop, Fleet
from cu_fleet.model.errors import LeaseOverError, LeasePausedError
from tests.acceptance.eyes import events, held, inside, sink, terminal
from tests.acceptance.home import Home
from tests.support import run, until

pytestmark = pytest.mark.real
MANY = 50_000
LONG = [
    {"type": "key_down", "key": "shift"},
    {"type": "press", "x": 300, "y": 300},
    {"type": "type", "text": "x" * MANY},
]


async def typing(fleet: Fleet, desktop: Desktop, path: str = "/home/agent/events") -> asyncio.Task[object]:
    """A long batch that is under way: some of its keys have arrived, a modifier and a button are down."""
    task = asyncio.create_task(desktop.act(LONG), name="type")

    async def under_way() -> bool:
        done = await fleet.run(desktop.lease.desktop or "", ["grep", "-c", "^key ", path])
        return int(done.stdout) > 20

    await until(under_way)
    return task


def test_from_the_moment_it_returns_nothing_reaches_the_screen(house: Home) -> None:
    """A named desktop's programs end with the revoke, but its files stay: they tell what still came."""

    async def body() -> None:
        async with house.client() as fleet:
            desktop = await fleet.acquire(agent="a", profile="local", desktop="watched")
            where, token = desktop.lease.desktop or "", desktop.lease.token
            await sink(fleet, where)
            task = await typing(fleet, desktop)
            await fleet.revoke(desktop.id, reason="wrong account", bar="10m")
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            assert not isinstance(result, BaseException)
            assert result.done[-1].code == "lease_revoked"  # type: ignore[attr-defined]
            async with httpx.AsyncClient(base_url=desktop.lease.url or "") as http:
                for n in range(20):
                    answer = await http.post(
                        f"/v1/leases/{desktop.id}/actions",
                        json={"actions": [{"type": "key", "keys": "a"}]},
                        headers={"Authorization": f"Bearer {token}"},
                    )
                    assert answer.status_code == 410, n
                    problem = answer.json()
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert "wrong account" in problem["detail"]
                    assert problem["code"] == "lease_revoked"
            barred = house.cli("lease", "acquire", "--agent", "a", "--profile", "local", exit_code=3)
            assert "wrong account" in barred["message"]
            await fleet.unbar_agent("a")
            again = await fleet.acquire(agent="a", profile="local", desktop="watched")
            told = await fleet.run(again.lease.desktop or "", ["cat", "/home/agent/events"])
            seen = told.stdout.decode().splitlines()
            assert 20 < seen.count("key 120") < MANY, "it was not in the middle"

    run(body(), timeout=60)


def test_a_pool_desktop_is_rolled_back_and_the_next_agent_sees_nothing_of_it(house: Home, tmp_path: Path) -> None:
    async def body() -> str:
        async with house.client() as fleet:
            desktop = await fleet.acquire(agent="a", profile="small")
            where = desktop.lease.desktop or ""
            untouched = (await desktop.screenshot()).frame.sha256
            await terminal(desktop)
            await desktop.type("mkdir -p Shared/out; echo of-a > note; echo of-a > /tmp/note; cat > Shared/out/typed\n")
            await desktop.clipboard_set("of-a")
            text = "the quick brown fox jumps over the lazy dog\n" * 200
            task = asyncio.create_task(desktop.type(text), name="type")

            async def arrived() -> bool:
                return (await fleet.run(where, ["test", "-s", "Shared/out/typed"], cwd="/home/agent")).exit_code == 0

            await until(arrived)
            await fleet.revoke(desktop.id, reason="enough", snapshot=True)
            with pytest.raises(LeaseOverError, match="enough"):
                await task
            with pytest.raises(LeaseOverError, match="enough"):
                await desktop.screenshot()

            again = await fleet.acquire(agent="b", profile="small")
            assert again.lease.desktop == where
            assert (again.lease.generation or 0) > (desktop.lease.generation or 0)
            assert (await again.screenshot()).frame.sha256 == untouched
            assert await again.clipboard_get() == ""
            assert await again.windows() == []
            search = "ls -A ~/Shared; find ~ /tmp /dev/shm -name note; ps -eo comm= | grep -c xterm || true"
            assert await inside(fleet, where, search) == "0\n"
            return desktop.id

    lease = run(body(), timeout=90)
    typed = (house.fleet_home / "artifacts" / lease / "out" / "typed").read_text()
    assert 0 < len(typed) < 44 * 200
    assert ("the quick brown fox jumps over the lazy dog\n" * 200).startswith(typed)
    kept = house.cli("audit", "show", "--lease", lease, "--what", "lease.evidence")["entries"][0]
    picture = tmp_path / "last-frame.png"
    house.cli("frames", "get", kept["frames"][0], "-o", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    evidence = house.cli("snapshot", "list")["snapshots"]
    assert kept["facts"]["snapshot"] in [one["id"] for one in evidence]
    house.cli("snapshot", "delete", kept["facts"]["snapshot"])


def test_pause_stops_typing_at_once_and_tells_why(house: Home) -> None:
    async def body() -> None:
        async with house.client() as fleet:
            desktop = await fleet.acquire(agent="a", profile="local")
            where = desktop.lease.desktop or ""
            await sink(fleet, where)
            task = await typing(fleet, desktop)
            paused = await fleet.pause(desktop.id, "let me look")
            assert (paused.control, paused.expires_at) == ("paused", None)
            seen = await events(fleet, where, 1)
            assert held(seen) == set()
            result = (await asyncio.gather(task, return_exceptions=True))[0]
            assert result.done[-1].code == "lease_paused"  # type: ignore[union-attr]
            with pytest.raises(LeasePausedError, match="let me look"):
                await desktop.key("a")
            assert (await desktop.screenshot(allow_blank=True)).size == (1280, 800)
            assert await events(fleet, where, 2) == [*seen, "mark 1"]

            taken = await asyncio.to_thread(house.cli, "lease", "take", desktop.id, "--reason", "a login")
            assert taken["control"] == "human"
            with pytest.raises(LeasePausedError, match="a login"):
                await desktop.key("a")
            await (await fleet.open(desktop.id, as_operator=True)).key("b")
            await asyncio.to_thread(house.cli, "lease", "resume", desktop.id)
            await desktop.key("c")
            assert (await events(fleet, where, 3))[-4:] == ["key 98", "keyup 98", "key 99", "keyup 99"]
            who = [x.who for x in await fleet.audit(lease=desktop.id, what="act")][-2:]
            assert who[0].startswith("operator ")
            assert who[1] == "agent a"

    run(body(), timeout=60)


@pytest.mark.parametrize("how", ["--clean", "--as-is"])
def test_reassign_hands_the_desktop_over_under_a_new_token(house: Home, how: str) -> None:
    async def body() -> None:
        async with house.client() as fleet:
            desktop = await fleet.acquire(agent="a", profile="small", resources=["bank"])
            where = desktop.lease.desktop or ""
            await inside(fleet, where, "echo of-a > ~/note; echo of-a > ~/Shared/note")
            await sink(fleet, where)
            task = await typing(fleet, desktop)
            await asyncio.to_thread(house.cli, "lease", "reassign", desktop.id, "--to", "b", exit_code=2)
            new = await asyncio.to_thread(house.cli, "lease", "reassign", desktop.id, "--to", "b", how)
            assert (new["agent"], new["state"], new["desktop"]) == ("b", "active", where)
            assert new["resources"] == ["bank"]
            assert new["token"] != desktop.lease.token
            assert new["generation"] > (desktop.lease.generation or 0)
            await asyncio.gather(task, return_exceptions=True)
            with pytest.raises(LeaseOverError, match="agent b"):
                await desktop.key("a")
            notes = await inside(fleet, where, "cat ~/note ~/Shared/note 2>/dev/null || true")
            assert notes == ("" if how == "--clean" else "of-a\nof-a\n")
            other = await fleet.open(new["lease"])
            await other.key("a")
            if how == "--as-is":
                seen = await events(fleet, where, 1)
                assert held(seen) == set()
                assert seen[-2:] == ["key 97", "keyup 97"]
            told = [x.facts for x in await fleet.audit(lease=desktop.id, what="lease.reassigned")]
            assert told[0]["data_of"] == "a"

    run(body(), timeout=60)


def test_a_lease_that_is_not_used_runs_out_and_one_that_acts_does_not(house: Home) -> None:
    async def body() -> None:
        async with house.client() as fleet:
            idle = await fleet.acquire(agent="a", profile="local", ttl=2)
            busy = await fleet.acquire(agent="b", profile="local", ttl=2)
            await sink(fleet, idle.lease.desktop or "")

            async def over() -> bool:
                await busy.key("a")
                return (await fleet.show(idle.id)).state == "expired"

            await until(over)
            await busy.key("a")
            with pytest.raises(LeaseOverError, match="ran out of time"):
                await idle.key("a")
            told = await asyncio.to_thread(house.run, "act", idle.id, json.dumps({"type": "key", "keys": "a"}))
            assert told.returncode == 6
            assert b"not renewed for 2 s" in told.stderr

    run(body(), timeout=60)
