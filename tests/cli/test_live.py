"""The commands against a whole controller: real doors, real store, desktops in memory."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import pytest

from cu_fleet import sync
from cu_fleet.cli import connect
from cu_fleet.cli.acquire import acquire as ask_and_wait
from cu_fleet.model.errors import FleetError
from tests.cli.support import TOP, Ended, cli, finished, start
from tests.support import run, until

PROFILE = "backend: memory\nscreen: {width: 320, height: 200}\ngates: none\nreserve: 1M\n"


class Controller:
    """`cu-fleet up` in a process of its own, over one home."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "profiles").mkdir(parents=True)
        home.chmod(0o700)
        (home / "profiles" / "mem.yaml").write_text(PROFILE)
        (home / "profiles" / "local.yaml").write_text(PROFILE)
        (home / "profiles" / "kept.yaml").write_text(PROFILE + "frames: all\n")

    def start(self, *under: str) -> "subprocess.Popen[bytes]":
        with (self.home / "test.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "tests.cli.memory_controller", "up", "--port", "0", "--json"],
                cwd=TOP,
                env={**os.environ, "CU_FLEET_HOME": str(self.home)},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        return self.process

    def ready(self) -> dict[str, object]:
        """What it prints when it serves: one JSON document, its last line a closing brace."""
        assert self.process.stdout is not None
        lines = list(iter(self.process.stdout.readline, b"}\n"))
        return dict(json.loads(b"".join(lines) + b"}"))

    @contextmanager
    def running(self) -> Iterator[Self]:
        self.start()
        try:
            self.ready()
            yield self
        finally:
            self.end()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=30)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    with Controller(tmp_path_factory.mktemp("live") / "home").running() as controller:
        yield controller


@pytest.fixture(autouse=True)
def at_home(live: Controller, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CU_FLEET_HOME", str(live.home))


def done(*words: str, **more: object) -> Ended:
    ended = cli(*words, **more)  # type: ignore[arg-type]
    assert ended.code == 0, ended.err
    return ended


def acquire(agent: str, *options: str) -> dict[str, str]:
    view = done("lease", "acquire", "--agent", agent, "--profile", "mem", *options, "--json").json
    assert view["state"] == "active"
    return dict(view)


def in_line() -> list[str]:
    leases = done("lease", "list", "--json").json["leases"]
    return [view["lease"] for view in leases if view["state"] == "waiting"]


def test_a_lease_from_beginning_to_end(tmp_path: Path) -> None:
    view = acquire("codex-a", "--ttl", "20m", "--resource", "browser:x")
    lease = view["lease"]
    assert view["mcp_url"] == view["url"] + "/mcp"
    assert (view["width"], view["height"], view["resources"]) == (320, 200, ["browser:x"])
    assert lease in done("lease", "list").out
    done("screenshot", lease, "-o", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    shot = done("screenshot", view["desktop"], "-o", str(tmp_path / "a.webp"), "--region", "0,0,64,64", "--json").json
    assert (tmp_path / "a.webp").read_bytes()[8:12] == b"WEBP"
    assert (shot["width"], shot["height"], shot["screen_width"], shot["screen_height"]) == (64, 64, 320, 200)
    acted = done("act", lease, '{"type": "click", "x": 5, "y": 6}', "--screenshot", str(tmp_path / "b.jpg"), "--json")
    assert acted.json["done"] == [{"ok": True}]
    assert (tmp_path / "b.jpg").read_bytes().startswith(b"\xff\xd8")
    off = cli("act", lease, '{"type": "click", "x": 5000, "y": 6}', "--json")
    assert (off.code, off.json["error"] != "internal") == (2, True)
    assert done("lease", "renew", lease, "--ttl", "1h", "--json").json["ttl"] == 3600
    assert done("lease", "release", lease, "--json").json["state"] == "released"
    assert cli("act", lease, '{"type": "click", "x": 5, "y": 6}').code == 6


def test_a_named_desktop_is_refused_waited_for_and_got() -> None:
    held = acquire("a", "--desktop", "finance")
    again = ("lease", "acquire", "--agent", "b", "--profile", "mem", "--desktop", "finance")
    refused = cli(*again, "--no-wait", "--json")
    assert refused.code == 3
    assert f'agent b asked for desktop "finance", but agent a holds it (lease {held["lease"]})' in refused.err
    assert refused.json["holder"]["agent"] == "a"
    too_long = cli(*again, "--wait", "0.3s", "--json")
    assert (too_long.code, too_long.json["error"]) == (4, "waited_too_long")
    assert "agent a holds it" in too_long.err
    waiting = start(*again, "--json", env={"CU_FLEET_HOME": os.environ["CU_FLEET_HOME"]})
    run(until(lambda: asyncio.to_thread(in_line)))
    assert "b" in done("lease", "list").out
    done("lease", "release", held["lease"])
    got = finished(waiting)
    assert got.code == 0, got.err
    assert got.json["state"] == "active"
    done("lease", "release", got.json["lease"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_who_gives_up_leaves_the_line(number: signal.Signals, code: int) -> None:
    held = acquire("a", "--desktop", "line")
    words = ("lease", "acquire", "--agent", "b", "--profile", "mem", "--desktop", "line", "--wait", "forever")
    waiting = start(*words, env={"CU_FLEET_HOME": os.environ["CU_FLEET_HOME"]})
    run(until(lambda: asyncio.to_thread(in_line)))
    waiting.send_signal(number)
    ended = finished(waiting)
    assert (ended.code, in_line()) == (code, [])
    done("lease", "release", held["lease"])


def test_supervising() -> None:
    lease = acquire("a")["lease"]
    click = '{"type": "click", "x": 5, "y": 6}'
    assert done("lease", "pause", lease, "--reason", "wait a moment", "--json").json["control"] == "paused"
    paused = cli("act", lease, click)
    assert paused.code == 6
    assert "wait a moment" in paused.err
    assert "active/paused" in done("lease", "list").out
    done("lease", "resume", lease)
    done("act", lease, click)
    assert done("lease", "take", lease, "--json").json["control"] == "human"
    done("lease", "resume", lease)
    new = done("lease", "reassign", lease, "--to", "c", "--as-is", "--json").json
    assert (new["agent"], new["state"]) == ("c", "active")
    done("lease", "revoke", new["lease"], "--reason", "enough", "--bar", "forever")
    assert cli("screenshot", new["lease"], "-o", "-").code == 6
    barred = cli("lease", "acquire", "--agent", "c", "--profile", "mem", "--json")
    assert barred.code == 3
    assert "enough" in barred.json["message"]
    done("agent", "unbar", "c")
    done("lease", "release", acquire("c")["lease"])


def test_files_in_and_out(tmp_path: Path) -> None:
    lease = acquire("a")["lease"]
    here = tmp_path / "data"
    (here / "deep").mkdir(parents=True)
    (here / "one").write_bytes(b"1" * 3_000_000)
    (here / "deep" / "two ü").write_text("2")
    (here / "deep" / "two ü").chmod(0o755)
    assert done("cp", str(here), f"{lease}:", "--json").json["files"] == 2
    assert done("cp", f"{lease}:data", str(tmp_path / "back"), "--json").json["files"] == 2
    back = tmp_path / "back"
    assert (back / "one").read_bytes() == b"1" * 3_000_000
    assert (back / "deep" / "two ü").read_text() == "2"
    assert (back / "deep" / "two ü").stat().st_mode & 0o111
    assert not (back / "one").stat().st_mode & 0o111
    assert done("cp", f"{lease}:data/deep/two ü", "-").raw == b"2"
    assert cli("cp", f"{lease}:nothing", str(tmp_path)).code == 5
    done("lease", "release", lease)


def test_desktops_and_snapshots() -> None:
    view = acquire("a", "--desktop", "lasting")
    desktop, lease = view["desktop"], view["lease"]
    assert desktop in done("desktop", "list").out
    for name in (desktop, lease, "lasting"):
        assert done("desktop", "show", name, "--json").json["desktop"] == desktop
    echo = cli("desktop", "exec", "lasting", "--json", "--", "echo", "hello")
    assert (echo.code, echo.json["stdout"]) == (0, "hello\n")
    assert done("desktop", "freeze", desktop, "--json").json["frozen"] is True
    assert done("desktop", "thaw", desktop, "--json").json["frozen"] is False
    assert "started" in done("desktop", "logs", desktop).out
    assert done("lease", "show", "lasting", "--json").json["lease"] == lease
    saved = done("snapshot", "save", desktop, "--note", "mine", "--json").json
    assert saved["id"] in done("snapshot", "list").out
    assert done("snapshot", "restore", saved["id"], "--json").json["desktop"]["desktop"] == desktop
    assert done("lease", "show", lease, "--json").json["state"] == "active", done("audit", "show").out
    done("snapshot", "delete", saved["id"])
    assert done("snapshot", "list").out.startswith("There are no snapshots")
    assert cli("desktop", "remove", desktop).code == 3
    done("lease", "release", lease)


def test_people() -> None:
    token = done("agent", "add", "limited", "--profile", "other").out.strip()
    denied = cli("lease", "acquire", "--profile", "mem", "--json", env={"CU_FLEET_TOKEN": token})
    assert denied.code == 3
    assert "limited" in denied.json["message"]
    assert "limited" in done("agent", "list").out
    fresh = done("agent", "rotate", "limited").out.strip()
    assert fresh != token
    assert cli("lease", "list", env={"CU_FLEET_TOKEN": token}).code == 3
    assert cli("lease", "list", env={"CU_FLEET_TOKEN": fresh}).code == 0
    assert cli("desktop", "list", env={"CU_FLEET_TOKEN": fresh}).code == 3
    done("agent", "remove", "limited")
    looker = done("operator", "add", "dash", "--role", "observer").out.strip()
    assert cli("desktop", "list", env={"CU_FLEET_TOKEN": looker}).code == 0
    assert cli("agent", "add", "x", env={"CU_FLEET_TOKEN": looker}).code == 3
    assert "dash" in done("operator", "list").out
    done("operator", "rotate", "dash")
    done("operator", "remove", "dash")


def test_kept_frames_are_named_by_the_record_and_can_be_had(live: Controller, tmp_path: Path) -> None:
    lease = done("lease", "acquire", "-a", "kept", "-p", "kept", "--view", "160", "--json").json["lease"]
    assert "160x100 (of 320x200)" in done("lease", "show", lease).out
    first = done("screenshot", lease, "-o", str(tmp_path / "a.png"), "--json").json
    assert (first["width"], first["scale"], first["unchanged"]) == (160, 0.5, False)
    same = done("screenshot", lease, "-o", str(tmp_path / "b.png"), "--if-changed-since", first["frame"], "--json").json
    assert (same["unchanged"], same["file"]) == (True, None)
    done("act", lease, '{"type": "key", "keys": "a"}', "--settle-ms", "0", "--screenshot", str(tmp_path / "c.png"))
    listed = done("frames", "list", "--lease", lease, "--json").json["frames"]
    assert {"before", "shown"} <= {frame["why"] for frame in listed}
    assert first["sha256"][:16] in done("frames", "list").out
    (shown,) = [
        line for line in done("audit", "show", "--lease", lease, "-n", "3").out.splitlines() if "act.done" in line
    ]
    frame = shown.rpartition("frame: ")[2].split()[0]
    told = done("frames", "get", frame, "-o", str(tmp_path / "d.png"), "--json").json
    assert (told["sha256"][:16], told["width"], told["height"]) == (frame, 320, 200)
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert cli("frames", "get", frame, "-o", "-").raw == (tmp_path / "d.png").read_bytes()
    assert cli("frames", "get", "0" * 64, "-o", str(tmp_path / "e.png")).code == 5
    assert cli("frames", "get", "short", "-o", str(tmp_path / "e.png")).code == 2
    assert "0 frames are removed" in done("frames", "prune", "--older", "1h").out
    assert done("frames", "prune", "--lease", lease, "--json").json["removed"] == len(listed)
    assert "No frames are kept" in done("frames", "list", "--lease", lease).out
    done("lease", "release", lease)


def test_the_record(tmp_path: Path) -> None:
    lease = acquire("recorded")["lease"]
    done("act", lease, '{"type": "click", "x": 5, "y": 6}', "--intent", "to see it recorded")
    done("lease", "release", lease)
    entries = done("audit", "show", "--lease", lease, "--json").json["entries"]
    assert {entry["lease"] for entry in entries} == {lease}
    assert "to see it recorded" in done("audit", "show", "--lease", lease).out
    count = done("audit", "verify", "--json").json["entries"]
    assert count >= len(entries)
    lines = done("audit", "export").out.splitlines()
    assert len(lines) >= count
    assert [json.loads(line)["seq"] for line in lines] == list(range(1, len(lines) + 1))
    newest = done("audit", "show", "-n", "2", "--json").json["entries"]
    assert [entry["seq"] for entry in newest] == [len(lines) - 1, len(lines)]


def test_status_and_health(live: Controller) -> None:
    status = done("status", "--json").json
    assert (status["running"], status["pid"]) == (True, live.process.pid)
    assert status["url"] in done("status").out
    assert {"mem", "local"} <= {view["name"] for view in done("profile", "list", "--json").json["profiles"]}


def test_what_the_shell_offers_here() -> None:
    from cu_fleet.cli import complete

    lease = acquire("completed", "--desktop", "offered")["lease"]
    assert lease in [word for word, _ in complete.leases("ls_")]
    assert [word for word, _ in complete.desktop_names("off")] == ["offered"]
    assert [word for word, _ in complete.agents("compl")] == ["completed"]
    assert "mem" in [word for word, _ in complete.profiles("")]
    assert [word for word, _ in complete.operators("")]
    done("lease", "release", lease)


def test_a_second_controller_on_the_same_home_is_refused(live: Controller) -> None:
    ended = finished(start("up", "--port", "0", "--json", env={"CU_FLEET_HOME": str(live.home)}))
    assert ended.code == 3
    assert ended.json["error"] == "already_running"


def test_down_ends_everything_and_nobody_who_waits_undoes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(tmp_path / "another")
    controller.start()
    try:
        ready = controller.ready()
        assert ready["home"] == str(controller.home)
        monkeypatch.setenv("CU_FLEET_HOME", str(controller.home))
        monkeypatch.setattr("cu_fleet.cli.acquire.AWAY", 0.0)
        acquire("a", "--desktop", "finance")
        body: dict[str, object] = {"agent": "b", "profile": "mem", "desktop": "finance", "wait": None}
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(lambda: connect.run(lambda wire: ask_and_wait(wire, body, None)))
            run(until(lambda: asyncio.to_thread(in_line)))
            ended = done("down", "--json").json
            assert isinstance(waiting.exception(timeout=20), FleetError)
        assert (ended["stopped"], ended["leases"]) == (True, 2)
        assert controller.process.wait(timeout=10) == 0
        assert cli("status").code == 1
    finally:
        controller.end()


# a person's answer


SAVE = '{"type": "key", "keys": "ctrl+s"}'


def asked(lease: str, reason: str, *actions: dict[str, object]) -> str:
    with sync.Fleet.connect(home=os.environ["CU_FLEET_HOME"], start=False) as fleet:
        check = {"id": "c1", "message": "it looks like a bank"}
        return fleet.open(lease).ask_approval([json.loads(SAVE), *actions], reason, checks=[check]).approval


@pytest.mark.slow
def test_what_agents_ask_is_seen_and_answered(tmp_path: Path) -> None:
    lease = acquire("payer")["lease"]
    assert done("approval", "list").out == "Nothing waits for an answer.\n"
    typed: dict[str, object] = {"type": "type", "text": "4711\x1b"[:4]}
    name = asked(lease, "pay \x1b[2Jthe bill", typed)
    row = done("approval", "list", "--lease", lease).out.splitlines()[1]
    assert row.split()[:5] == [name, "action", "payer", lease, "waiting"]
    assert "bill; it looks like a bank" in row
    assert "\x1b" not in row, "no text of an agent's drives the operator's terminal"
    listed = done("lease", "list").out
    assert "active/asking" in listed
    assert f"cu-fleet approval show {name}" in listed
    assert name in done("lease", "show", lease).out
    assert "1 wait for an answer: cu-fleet approval list" in done("status").out
    shown = done("approval", "show", name, "-o", str(tmp_path / "then.png"))
    assert (tmp_path / "then.png").read_bytes().startswith(b"\x89PNG")
    assert """1. key {"keys": "ctrl+s"}""" in shown.out
    assert """2. type {"text": "4711"}""" in shown.out
    assert "check 1" in shown.out
    assert f"approve {name}" in shown.err
    early = cli("act", lease, SAVE, json.dumps(typed), "--approval", name, "--json")
    assert (early.code, early.json["error"]) == (3, "approval_waiting")
    yes = done("approval", "approve", name, "--reason", "fine").out
    assert yes == f"approval {name} is approved: agent payer may do it once, within 10m 00s\n"
    other = cli("act", lease, SAVE, "--approval", name, "--json")
    assert (other.code, other.json["error"]) == (3, "other_actions")
    assert done("act", lease, SAVE, json.dumps(typed), "--approval", name).out == "key: done\ntype: done\n"
    assert cli("act", lease, SAVE, json.dumps(typed), "--approval", name).code == 3
    assert "4711" not in done("approval", "show", name, "--json").out
    assert done("approval", "list", "--all", "--json").json["approvals"][0]["state"] == "used"
    assert cli("approval", "show", "ap_0000000000").code == 5
    done("lease", "release", lease)


@pytest.mark.slow
def test_a_no_has_its_reason_and_is_followed() -> None:
    lease = acquire("payer")["lease"]
    words = ("approval", "list", "--watch", "--lease", lease)
    watching = start(*words, env={"CU_FLEET_HOME": os.environ["CU_FLEET_HOME"]})
    assert watching.stdout is not None
    assert watching.stdout.readline() == b"Nothing waits for an answer.\n"
    name = asked(lease, "pay")
    assert watching.stdout.readline().decode().split()[1:] == [name, "asked", "by", "agent", "payer", "pay"]
    assert done("approval", "deny", name, "--reason", "wrong account").out == f"approval {name} is denied\n"
    assert watching.stdout.readline().decode().rstrip().endswith("wrong account")
    watching.send_signal(signal.SIGINT)
    assert finished(watching).code == 130
    denied = cli("act", lease, SAVE, "--approval", name)
    assert denied.code == 3
    assert "wrong account" in denied.err
    assert cli("approval", "approve", name).code == 3
    assert cli("approval", "list", "--watch", "--json").code == 2
    done("lease", "release", lease)
