"""The record as people get it, what never gets into it or anywhere else, and that `down` leaves nothing behind."""

import asyncio
import contextlib
import json
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.acceptance.eyes import inside
from tests.acceptance.home import Home, command_lines, home
from tests.support import run, until

pytestmark = pytest.mark.real
TYPED = "correct horse battery staple"
CALM = {"type": "wait", "seconds": 0.01}


@pytest.fixture
def talkative() -> Iterator[Home]:
    with home(log_level="debug") as one:
        yield one


def test_tokens_and_typed_text_are_written_down_nowhere(talkative: Home) -> None:
    one = talkative
    operator = one.run("operator", "add", "ana").stdout.decode().strip()
    agent = one.run("agent", "add", "a", "--leases", "2").stdout.decode().strip()
    url = one.cli("status")["url"]
    view = one.cli("lease", "acquire", "--profile", "local", CU_FLEET_TOKEN=agent, CU_FLEET_URL=url)
    own = {"CU_FLEET_TOKEN": view["token"], "CU_FLEET_URL": url}
    one.cli("act", view["lease"], json.dumps({"type": "type", "text": TYPED}), "--intent", "to log in", **own)
    one.cli("act", view["lease"], json.dumps({"type": "key", "keys": "q"}), **own)
    one.cli("act", view["lease"], '{"type": "click", "x": 5000, "y": 1}', exit_code=2, **own)
    waiting = one.start("lease", "acquire", "--profile", "local", "--desktop", "x", "--json", CU_FLEET_TOKEN=operator)

    async def wrongly() -> None:
        async with httpx.AsyncClient(base_url=url) as http:
            for headers in ({"Authorization": f"Bearer {view['token']}x"}, {"Authorization": view["token"]}):
                answer = await http.get(f"/v1/leases/{view['lease']}", headers=headers)
                assert answer.status_code == 401
                assert view["token"] not in answer.text
            assert (await http.get("/v1/leases", params={"token": view["token"]})).status_code == 401

    run(wrongly())
    tokens = [operator, agent, view["token"], (one.fleet_home / "operator.token").read_text().strip()]
    assert all(token.startswith(("cfo_", "cfa_", "cfl_")) for token in tokens)
    macs = [token.rpartition("_")[2] for token in tokens]
    told = "\n".join([*command_lines(), *_outputs(one)])
    waiting.communicate(timeout=30)
    one.cli("lease", "revoke", view["lease"], "--reason", "enough")
    for mac in macs:
        assert mac not in told

    lease = [x for x in _entries(one) if x["lease"] == view["lease"]]
    acts = [x for x in lease if x["what"] == "act"]
    assert [x["intent"] for x in acts] == ["to log in", None]
    assert acts[0]["action"]["type"] == "type"
    assert str(len(TYPED)) in json.dumps(acts[0]["action"])
    one.cli("down")
    with contextlib.closing(sqlite3.connect(one.fleet_home / "fleet.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for path in one.fleet_home.rglob("*"):
        if path.is_file() and path.name != "operator.token":
            data = path.read_bytes()
            for secret in [*macs, TYPED]:
                assert secret.encode() not in data, f"{secret} is in {path}"


def _outputs(one: Home) -> list[str]:
    """What those who only look are shown."""
    shown = [["lease", "list", "--all"], ["lease", "list", "--all", "--json"], ["agent", "list", "--json"]]
    shown += [["operator", "list", "--json"], ["audit", "export"], ["status", "--json"], ["desktop", "list", "--json"]]
    return [one.run(*words).stdout.decode() for words in shown]


def _entries(one: Home) -> list[dict[str, object]]:
    return [json.loads(line) for line in one.run("audit", "export").stdout.splitlines()]


def test_every_deed_is_on_record_and_streamed_as_it_happens(house: Home) -> None:
    async def body() -> list[int]:
        async with house.client() as fleet:
            last = (await fleet.status())["audit"]["entries"]
            heard: list[dict[str, object]] = []

            async def listen() -> None:
                async for entry in fleet.events(after=last):
                    heard.append(entry.model_dump())

            listening = asyncio.create_task(listen(), name="listen")
            async with fleet.lease(agent="a", profile="small") as desktop:
                lease = desktop.id
                await desktop.act([{"type": "click", "x": 5, "y": 6}, CALM], intent="to try", screenshot=True)
                shown = (await desktop.screenshot(intent="to see")).frame.sha256
                await desktop.put_file("in/x", b"x")
                await desktop.windows()
                await desktop.launch("terminal")
                await inside(fleet, lease, "true")
                await fleet.pause(lease, reason="look")
                await fleet.resume(lease)
            await until(lambda: any(x["lease"] == lease and x["what"] == "lease.released" for x in heard))
            await until(lambda: any(x["what"] == "desktop.rolled_back" for x in heard))
            listening.cancel()
            export = [x.model_dump() async for x in fleet.export_audit()]
            assert [x["seq"] for x in export] == list(range(1, len(export) + 1))
            assert heard == [x for x in export if last < x["seq"] <= heard[-1]["seq"]]
            mine = [x for x in heard if x["lease"] == lease]
            whats = [x["what"] for x in mine]
            order = ["lease.asked", "lease.granted", "act", "act.done", "act", "act.done", "look", "look", "file.put"]
            order += ["windows", "launch", "launch.done", "lease.paused", "lease.resumed", "lease.released"]
            assert whats == order
            assert {x["agent"] for x in mine} == {"a"}
            assert {x["generation"] for x in mine[1:]} == {desktop.lease.generation}
            assert {x["desktop"] for x in mine[1:]} == {desktop.lease.desktop}
            assert [x["intent"] for x in mine if x["what"] in ("act", "look")] == ["to try"] * 3 + ["to see"]
            assert mine[2]["action"] == {"type": "click", "x": 5, "y": 6} | {  # type: ignore[comparison-overlap]
                key: value
                for key, value in mine[2]["action"].items()
                if key not in ("type", "x", "y")  # type: ignore[attr-defined]
            }
            assert mine[3]["of"] == mine[2]["seq"]
            assert mine[3]["result"] == "ok"
            assert mine[7]["frames"] == (shown,)
            assert all(x["seconds"] >= 0 for x in mine if x["what"] in ("act.done", "look"))  # type: ignore[operator]
            assert next(x["who"] for x in heard if x["what"] == "exec").startswith("operator ")  # type: ignore[attr-defined]
            return [int(x["seq"]) for x in mine]  # type: ignore[call-overload]

    assert run(body(), timeout=60)
    assert house.cli("audit", "verify")["ok"] is True
    assert b"cu_fleet_audit_entries" in _metrics(house)


def _metrics(house: Home) -> bytes:
    url, token = house.cli("status")["url"], (house.fleet_home / "operator.token").read_text().strip()
    return httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}).content


def test_a_record_that_was_changed_cut_or_written_anew_does_not_verify() -> None:
    with home() as one:
        view = one.cli("lease", "acquire", "--agent", "a", "--profile", "local")
        one.cli("act", view["lease"], '{"type": "key", "keys": "a"}')
        one.cli("lease", "release", view["lease"])
        one.cli("down")
        database, anchors = one.fleet_home / "fleet.db", one.fleet_home / "audit.anchors"
        whole, anchored = database.read_bytes(), anchors.read_bytes()
        for sql in (
            'UPDATE audit SET body = replace(body, \'"agent":"a"\', \'"agent":"b"\')',
            "DELETE FROM audit WHERE seq = (SELECT max(seq) / 2 FROM audit)",
            "DELETE FROM audit WHERE seq > (SELECT max(seq) - 3 FROM audit)",
        ):
            database.write_bytes(whole)
            anchors.write_bytes(anchored)
            _tamper(database, sql)
            told = one.cli("audit", "verify", exit_code=1)
            assert told["error"].startswith("audit_"), told
            one.run("down")
        database.write_bytes(whole)
        anchors.write_bytes(anchored)
        assert one.cli("audit", "verify")["ok"] is True


def _tamper(database: Path, sql: str) -> None:
    """Whoever can write the file can drop what guards it."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {name}")
        assert connection.execute(sql).rowcount > 0
        connection.commit()


# down

WITH_NETWORK = "backend: local\nnetwork: full\ngates: none\nscreen: {width: 320, height: 240}\n"


def outside() -> set[str]:
    """Names in places where programs leave things, and what is mounted."""
    found = {line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()}
    for place in ("/tmp", "/var/tmp", "/run", "/dev/shm", "/var/lib", "/run/user", "/run/lock"):
        with contextlib.suppress(OSError):
            found |= set(map(str, Path(place).iterdir()))
    return found


@pytest.mark.parametrize("killed", [False, True], ids=["running", "killed"])
def test_down_leaves_nothing_whatever_was_going_on(killed: bool) -> None:
    before = outside()
    with home() as one:
        one.write_profile("net", WITH_NETWORK)
        controller = one.up()
        run(until(lambda: one.run("status").returncode == 0))
        url = one.cli("status")["url"]
        with_network = one.run("lease", "acquire", "-a", "n", "-p", "net")  # where this machine lets it
        views = [one.cli("lease", "acquire", "-a", "a", "-p", "local", "--desktop", name) for name in ("x", "y")]
        views.append(one.cli("lease", "acquire", "-a", "b", "-p", "local"))
        hide = "(setsid nohup sh -c 'trap \"\" TERM HUP INT; sleep 98765; :' &) >/dev/null 2>&1; echo kept > ~/kept"
        one.cli("desktop", "exec", "x", "--", "sh", "-c", hide)
        one.cli("desktop", "freeze", "y")
        one.cli("snapshot", "save", views[2]["desktop"])
        busy = [
            one.start("act", views[2]["lease"], *[json.dumps({"type": "type", "text": "x" * 100_000})] * 10),
            one.start("desktop", "exec", "x", "--", "sleep", "98764"),
            one.start("lease", "acquire", "-a", "c", "-p", "local", "--desktop", "x", "--wait", "forever"),
        ]
        run(until(lambda: [x["state"] for x in one.cli("lease", "list")["leases"]].count("waiting") == 1))
        if killed:
            one.kill(controller)
        assert one.cli("down")["stopped"] is True
        controller.wait(20)
        if killed:
            busy[2].terminate()  # it would wait a while longer for a controller that comes back
        said = []
        for process in busy:
            said.append(" ".join(b" ".join(process.communicate(timeout=60)).decode().split()))
            assert process.returncode != 0
        if not killed:
            assert "was released by controller: cu-fleet was shut down" in said[0]
            assert said[2].endswith("was not granted: cu-fleet was shut down")
            assert "could not be withdrawn" not in said[2]
        assert one.left() == []
        assert not [words for words in command_lines() if "98765" in words or "98764" in words]
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as s:
            assert s.connect_ex((host, int(port))) != 0
        names = (one.path.name, run(one.fleet()))
        new = outside() - before - {str(one.path)}
        assert not {path for path in new if any(name in path for name in names)}, new
        assert {path.name for path in one.fleet_home.glob("*.sock")} == set()
        assert with_network.returncode == 0 or b"/dev/net/tun" in with_network.stderr

        again = one.cli("lease", "acquire", "-a", "a", "-p", "local", "--desktop", "x")
        assert again["state"] == "active"
        kept = one.cli("desktop", "exec", "x", "--", "cat", "kept")["stdout"]
        assert kept == "kept\n", "a named desktop sleeps through it"
        assert one.cli("audit", "verify")["ok"] is True
