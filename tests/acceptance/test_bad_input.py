"""What is wrong is refused in words, with its exit code, and changes nothing."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.eyes import events, sink
from tests.acceptance.home import SOMEBODY, Home, command_lines, home
from tests.support import run, until

pytestmark = pytest.mark.real
KEY = '{"type": "key", "keys": "a"}'
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts something: needs root")


async def standing(house: Home) -> object:
    """All that a refused command must leave as it is."""
    async with house.client() as fleet:
        leases = [(x.lease, x.state, x.control, x.ttl) for x in await fleet.leases(everything=True)]
        desktops = [(x.desktop, x.generation, x.lease) for x in await fleet.desktops()]
        people = [x.agent for x in await fleet.agents()] + [x.operator for x in await fleet.operators()]
    return leases, desktops, people, sorted(path.name for path in house.fleet_home.iterdir())


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (["lease", "acquire", "-a", "a", "-p", "locall"], 5, 'no profile "locall"; there are: browser'),
        (["lease", "acquire", "-a", "../../etc", "-p", "local"], 2, "agent: 1 to 63 letters, digits"),
        (["lease", "acquire", "-a", "a/b", "-p", "local"], 2, "letters, digits"),
        (["lease", "acquire", "-a", "", "-p", "local"], 2, "agent"),
        (["lease", "acquire", "-a", "a" * 64, "-p", "local"], 2, "63"),
        (["lease", "acquire", "-a", "a\nb", "-p", "local"], 2, "letters, digits"),
        (["lease", "acquire", "-a", "a", "-p", "local", "--desktop", ".."], 2, "letters, digits"),
        (["lease", "acquire", "-a", "a", "-p", "local", "--desktop", "/etc/passwd"], 2, "letters, digits"),
        (["lease", "acquire", "-a", "a", "-p", "../local"], 2, "letters, digits"),
        (["lease", "acquire", "-a", "a", "-p", "local", "--resource", "a b"], 2, "resource"),
        (["lease", "acquire", "-a", "a", "-p", "local", "--ttl", "soon"], 2, "--ttl"),
        (["lease", "acquire", "-a", "a", "-p", "local", "--ttl", "0"], 2, "ttl"),
        (["lease", "acquire", "-a", "a", "-p", "local", "--ttl", "8d"], 2, "ttl"),
        (["lease", "acquire", "-a", "a"], 2, "--profile"),
        (["lease", "show", "ls_aaaaaaaaaa"], 5, "no lease ls_aaaaaaaaaa"),
        (["lease", "show", "../leases"], 5, "nothing at /v1/desktops/../leases"),
        (["act", "ls_aaaaaaaaaa", KEY], 5, "no lease"),
        (["desktop", "show", "nowhere"], 5, "no desktop nowhere"),
        (["desktop", "show", "../../healthz"], 5, "nothing at /v1/desktops/../../healthz"),
        (["agent", "add", "../x"], 2, "letters, digits"),
        (["agent", "remove", "nobody-here"], 5, "no agent"),
        (["operator", "add", "x", "--role", "king"], 2, "king"),
        (["snapshot", "restore", "sn_aaaaaaaaaa"], 5, "no snapshot"),
        (["snapshot", "delete", "../../fleet.db"], 5, "nothing at /v1/snapshots/../../fleet.db"),
        (["profile", "show", "../local"], 5, "../local"),
        (["profile", "check", "/no/such/file.yaml"], 5, "/no/such/file.yaml"),
        (["cp", "here", "there"], 2, "LEASE:path"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_it_is_refused_by_name_and_nothing_changes(house: Home, words: list[str], exit_code: int, said: str) -> None:
    before = run(standing(house))
    told = house.cli(*words, exit_code=exit_code)
    assert said in told["message"] + told["remedy"]
    assert run(standing(house)) == before


def test_what_a_lease_may_not_do_is_refused_before_anything_is_sent(house: Home) -> None:
    view = house.cli("lease", "acquire", "--agent", "a", "--profile", "small")
    other = house.cli("lease", "acquire", "--agent", "b", "--profile", "small")
    lease, url = view["lease"], view["url"]
    mine, theirs = ({"CU_FLEET_TOKEN": x["token"], "CU_FLEET_URL": url} for x in (view, other))

    async def watch() -> None:
        async with house.client() as fleet:
            await sink(fleet, lease)

    run(watch())
    wrong = {
        '{"type": "click", "x": 640, "y": 10}': "640",
        '{"type": "click", "x": -1, "y": 10}': "x",
        '{"type": "drag", "path": [[1, 1], [10, 480]]}': "480",
        '{"type": "key", "keys": "ctrl+nosuchkey"}': "nosuchkey",
        '{"type": "click", "x": "ten", "y": 10}': "x",
        '{"type": "clack"}': "clack",
        '{"type": "type", "text": "a", "speed": 3}': "speed",
        "[1": "JSON",
    }
    for action, said in wrong.items():
        told = house.cli("act", lease, KEY, action, exit_code=2)
        assert said in told["message"], (action, told)
    off = house.run("screenshot", lease, "-o", "-", "--region", "0,0,641,10")
    assert (off.returncode, off.stdout, b"641" in off.stderr) == (2, b"", True)
    assert house.cli("act", lease, KEY, exit_code=3, **theirs)["error"] == "other_lease"
    forged = mine | {"CU_FLEET_TOKEN": view["token"][:-1] + ("0" if view["token"][-1] != "0" else "1")}
    assert house.cli("act", lease, KEY, exit_code=3, **forged)["error"] == "unknown_token"
    assert house.cli("lease", "reassign", lease, "--to", "c", "--clean", exit_code=3, **mine)["message"]

    house.cli("lease", "pause", lease, "--reason", "to look")
    assert "to look" in house.cli("act", lease, KEY, exit_code=6, **mine)["message"]
    house.cli("lease", "resume", lease)

    async def nothing_came() -> None:
        async with house.client() as fleet:
            assert (await events(fleet, lease, 1))[1:] == []

    run(nothing_came())
    assert house.cli("audit", "show", "--lease", lease, "--what", "act")["entries"] == []
    house.cli("act", lease, KEY, **mine)
    house.cli("lease", "release", lease, **mine)
    for command in (["act", lease, KEY], ["screenshot", lease, "-o", "x.png"], ["lease", "renew", lease]):
        over = house.cli(*command, exit_code=6, **mine)
        assert (over["error"], "was released" in over["message"]) == ("lease_released", True)


# starting a controller


@pytest.fixture
def fresh() -> Iterator[Home]:
    with home() as one:
        yield one


def nothing_started(one: Home) -> bool:
    return not [words for words in command_lines() if str(one.path) in words] and not one.left()


WRONG_PROFILES = {
    "backend: local\nscreen:\n  widht: 800\n": ":3: screen.widht: no such key",
    "backend: local\nscreen:\n  width: wide\n": ":3: screen.width: ",
    "backend: local\nwarm: many\n": ":2: warm: ",
    "backend: local\nlimits: {memory: lots}\n": ":2: limits.memory: ",
    "description: no backend\n": ": backend: this key is needed",
    "backend: local\nlaunch:\n  a: {}\n": ":3: launch.a.command: this key is needed",
    "backend: local\nwarm: 1\nwarm: 2\n": ":3: warm: given twice",
    "backend: [local\n": "not YAML",
}


def test_a_wrong_profile_is_refused_with_file_line_and_key(fresh: Home) -> None:
    path = fresh.fleet_home / "profiles" / "mine.yaml"
    for text, said in WRONG_PROFILES.items():
        fresh.write_profile("mine", text)
        told = fresh.cli("profile", "check", str(path), exit_code=2)
        assert str(path) in told["message"]
        assert said in told["message"]
    assert fresh.cli("up", exit_code=2)["message"] == told["message"]
    assert str(path) in fresh.run("lease", "list").stderr.decode().replace("\n", "")
    assert nothing_started(fresh)


def test_a_home_that_others_can_read_is_refused(fresh: Home) -> None:
    fresh.fleet_home.mkdir(mode=0o755)
    for words in (["up"], ["lease", "list"], ["lease", "acquire", "-a", "a", "-p", "local"]):
        told = fresh.run(*words)
        assert told.returncode != 0
        assert f"chmod 700 {fresh.fleet_home}" in told.stderr.decode()
    assert list(fresh.fleet_home.glob("*.db")) == []
    fresh.fleet_home.chmod(0o700)
    assert fresh.cli("lease", "list")["leases"] == []


@AS_ROOT
def test_a_home_of_somebody_else_is_refused(fresh: Home) -> None:
    fresh.fleet_home.mkdir(mode=0o700)
    os.chown(fresh.fleet_home, SOMEBODY, SOMEBODY)
    told = fresh.cli("up", exit_code=2)
    assert (told["error"], f"belongs to uid {SOMEBODY}" in told["message"]) == ("foreign_home", True)


def test_a_database_from_a_newer_version_is_refused_and_left_alone(fresh: Home) -> None:
    fresh.cli("lease", "list")
    fresh.cli("down")
    database = fresh.fleet_home / "fleet.db"
    with sqlite3.connect(database) as connection:
        connection.execute("INSERT INTO schema_version (version, name) VALUES (9999, 'later')")
    connection.close()
    before = database.read_bytes()
    told = fresh.run("up")
    assert told.returncode != 0
    assert "newer" in told.stderr.decode()
    on_demand = fresh.run("lease", "list")
    assert on_demand.returncode != 0
    assert "newer" in on_demand.stderr.decode()
    assert database.read_bytes() == before
    with sqlite3.connect(database) as connection:
        connection.execute("DELETE FROM schema_version WHERE version = 9999")
    connection.close()
    assert fresh.cli("lease", "list")["leases"] == []


def test_a_port_in_use_is_told_and_one_started_on_demand_takes_another(fresh: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = fresh.cli("up", "--port", str(port), exit_code=1)
        assert str(port) in told["message"]
        assert "--port" in told["remedy"]
        fresh.env["CU_FLEET_PORT"] = str(port)
        fresh.cli("lease", "list")
        url = fresh.cli("status")["url"]
        assert not url.endswith(f":{port}")
        assert (fresh.fleet_home / "controller.url").read_text().strip() == url


def test_a_second_controller_in_the_same_home_is_refused(fresh: Home) -> None:
    view = fresh.cli("lease", "acquire", "-a", "a", "-p", "local")
    pid = fresh.cli("status")["pid"]
    told = fresh.cli("up", "--port", "0", exit_code=3)
    assert (told["error"], f"process {pid}" in told["message"]) == ("already_running", True)
    assert fresh.cli("lease", "show", view["lease"])["state"] == "active"


def test_an_unknown_setting_stops_the_start_by_name(fresh: Home) -> None:
    fresh.fleet_home.mkdir(mode=0o700)
    config = fresh.fleet_home / "config.yaml"
    config.write_text("max_desktop: 3\n")
    assert f"{config}: max_desktop: no such setting" in fresh.cli("up", exit_code=2)["message"]
    config.write_text("max_desktops: few\n")
    assert f"{config}: max_desktops: " in fresh.cli("up", exit_code=2)["message"]
    config.unlink()
    fresh.env["CU_FLEET_PROT"] = "1"
    assert "CU_FLEET_PROT: no such setting" in fresh.cli("up", exit_code=2)["message"]


@AS_ROOT
def test_a_missing_program_is_named_with_what_to_install(fresh: Home) -> None:
    """In a mount namespace of its own, one program is not there."""
    hide = 'mount --bind /dev/null "$(command -v openbox)"; exec "$@"'
    fresh.prefix = ["unshare", "--mount", "--propagation", "private", "sh", "-c", hide, "sh"]
    said = fresh.run("doctor")
    assert said.returncode == 1
    assert "openbox" in said.stdout.decode()
    refused = fresh.run("lease", "acquire", "-a", "a", "-p", "local", "--wait", "30s")
    assert refused.returncode == 1
    words = " ".join(refused.stderr.decode().split())
    assert "openbox, which this machine does not have" in words
    assert "apt-get install -y --no-install-recommends openbox" in words
    assert [x["state"] for x in fresh.cli("lease", "list", "--all")["leases"]] == ["cancelled"]


def test_what_a_profile_asks_for_and_is_not_here_is_told(fresh: Home) -> None:
    fresh.write_profile("tlh", "backend: local\ngates: none\nlocale: tlh_XX.UTF-8\n")
    refused = fresh.run("lease", "acquire", "-a", "a", "-p", "tlh", "--wait", "30s")
    assert refused.returncode == 1
    words = " ".join(refused.stderr.decode().split())
    assert "locale tlh_XX.UTF-8 is not installed here" in words
    assert "locale-gen" in words
    assert fresh.cli("lease", "acquire", "-a", "a", "-p", "local")["state"] == "active"


# a full disk


@pytest.fixture
def small_disk(fresh: Home) -> Iterator[Path]:
    """The home is a small file system of its own."""
    fresh.fleet_home.mkdir(mode=0o700)
    options = "size=48m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(fresh.fleet_home)], check=True)
    try:
        yield fresh.fleet_home
    finally:
        fresh.run("down")
        umount = ["umount", str(fresh.fleet_home)]
        run(until(lambda: subprocess.run(umount, check=False, capture_output=True).returncode == 0))


@AS_ROOT
def test_a_full_disk_is_told_loses_nothing_and_goes_on_when_there_is_room(fresh: Home, small_disk: Path) -> None:
    view = fresh.cli("lease", "acquire", "-a", "a", "-p", "local")
    lease = view["lease"]
    fresh.cli("act", lease, KEY)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(1 << 16)):
                pass
        except OSError:
            assert shutil.disk_usage(small_disk).free == 0

    acted, refused = 1, ""
    for _ in range(200):
        done = fresh.run("act", lease, KEY, "--json")
        if done.returncode:
            refused = done.stderr.decode()
            told = json.loads(done.stdout)
            break
        acted += 1
    assert done.returncode == 1
    assert "disk is full" in " ".join(refused.split())
    assert told["error"] == "disk_full"
    assert fresh.cli("lease", "show", lease)["state"] == "active"
    assert fresh.cli("status")["running"] is True
    full = fresh.run("cp", "-", f"{lease}:big", stdin=bytes(1 << 20))
    assert full.returncode == 1
    assert "disk is full" in " ".join(full.stderr.decode().split())
    assert fresh.run("snapshot", "save", lease).returncode == 1

    ballast.unlink()
    assert fresh.cli("act", lease, KEY)["done"] == [{"ok": True}]
    entries = fresh.cli("audit", "show", "--lease", lease, "--what", "act.done", "-n", "1000")["entries"]
    assert [x["result"] for x in entries].count("ok") >= acted + 1
    assert fresh.cli("audit", "verify")["ok"] is True
    assert fresh.cli("desktop", "exec", lease, "--", "ls", "Shared")["stdout"] == ""
    fresh.cli("lease", "release", lease)
    assert fresh.cli("lease", "acquire", "-a", "b", "-p", "local")["state"] == "active"
