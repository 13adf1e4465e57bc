"""What a desktop has: saved and put back exactly, rolled back to clean; its commands, files, windows and clipboard."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.testing.backend_state import MANIFEST, SPOIL, ZOO, differing
from tests.acceptance.eyes import terminal
from tests.acceptance.home import Home
from tests.support import run, until

pytestmark = pytest.mark.real


def acquire(house: Home, agent: str = "a", *more: str) -> dict[str, Any]:
    return dict(house.cli("lease", "acquire", "--agent", agent, "--profile", "small", *more))


def python(house: Home, desktop: str, script: str) -> Any:
    said = house.cli("desktop", "exec", desktop, "--", "/usr/bin/python3", "-I", "-c", script)["stdout"]
    return json.loads(said) if said else None


def test_a_snapshot_comes_back_exactly_and_the_lease_goes_on(house: Home) -> None:
    view = acquire(house)
    lease, desktop = view["lease"], view["desktop"]
    clean = python(house, desktop, MANIFEST)
    python(house, desktop, ZOO)
    zoo = python(house, desktop, MANIFEST)
    assert len(zoo[0]) > len(clean[0]) + 15
    saved = house.cli("snapshot", "save", desktop, "--note", "a zoo")
    assert (saved["desktop"], saved["note"]) == (desktop, "a zoo")
    assert saved["size_bytes"] > 700_000
    python(house, desktop, SPOIL)
    house.cli("desktop", "exec", desktop, "--", "sh", "-c", "setsid -f sleep 4711 >/dev/null 2>&1")
    assert differing(zoo, python(house, desktop, MANIFEST))

    after = house.cli("snapshot", "restore", saved["id"])["desktop"]
    assert after["generation"] > view["generation"]
    assert differing(zoo, python(house, desktop, MANIFEST)) == []
    assert house.cli("desktop", "exec", desktop, "--", "pgrep", "-f", "^sleep 4711", exit_code=1)["stdout"] == ""
    shown = house.cli("lease", "show", lease)
    assert (shown["state"], shown["desktop"], shown["token"]) == ("active", desktop, view["token"])
    house.cli("act", lease, '{"type": "key", "keys": "a"}', CU_FLEET_TOKEN=view["token"], CU_FLEET_URL=view["url"])

    house.cli("lease", "release", lease)
    again = acquire(house, "b")
    assert again["desktop"] == desktop
    assert differing(clean, python(house, desktop, MANIFEST)) == []
    restored = house.cli("snapshot", "restore", saved["id"], "--desktop", desktop)
    assert restored["desktop"]["desktop"] == desktop
    assert differing(zoo, python(house, desktop, MANIFEST)) == []
    told = house.cli("audit", "show", "--lease", again["lease"], "--what", "snapshot.restore")["entries"]
    assert told[0]["facts"]["data_of"] == "a"
    house.cli("snapshot", "delete", saved["id"])
    assert house.cli("snapshot", "restore", saved["id"], exit_code=5)["error"] == "no_snapshot"
    assert not list((house.fleet_home / "snapshots").glob("*"))


def test_a_snapshot_is_not_put_where_it_does_not_belong(house: Home) -> None:
    view = acquire(house)
    saved = house.cli("snapshot", "save", view["lease"])
    other = house.cli("lease", "acquire", "--agent", "b", "--profile", "local")
    refused = house.cli("snapshot", "restore", saved["id"], "--desktop", other["desktop"], exit_code=3)
    assert 'of profile "small", not "local"' in refused["message"]
    house.cli("lease", "release", view["lease"])
    refused = house.cli("snapshot", "restore", saved["id"], exit_code=3)
    assert "under a lease" in refused["message"]
    house.cli("snapshot", "delete", saved["id"])


def test_a_named_desktop_sleeps_and_wakes_with_its_files(house: Home) -> None:
    view = acquire(house, "a", "--desktop", "lasting")
    python(house, view["desktop"], ZOO)
    zoo = python(house, view["desktop"], MANIFEST)
    house.cli("lease", "release", view["lease"])
    again = acquire(house, "a", "--desktop", "lasting")
    assert (again["desktop"], again["generation"] > view["generation"]) == (view["desktop"], True)
    assert differing(zoo, python(house, view["desktop"], MANIFEST)) == []


def test_commands_inside_give_their_output_and_exit_code(house: Home) -> None:
    desktop = acquire(house)["desktop"]
    for script, code in (("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 137)):
        assert house.run("desktop", "exec", desktop, "--", "sh", "-c", script).returncode == code
    both = house.run("desktop", "exec", desktop, "--", "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"\xff\0in")
    assert (both.returncode, both.stdout, both.stderr) == (7, b"\xff\0in", b"err\n")
    where = house.cli("desktop", "exec", desktop, "--cwd", "/tmp", "--env", "A=1 2", "--", "sh", "-c", 'pwd; echo "$A"')
    assert where["stdout"] == "/tmp\n1 2\n"
    unknown = house.run("desktop", "exec", desktop, "--", "no-such-program")
    assert unknown.returncode == 127
    assert b"no-such-program" in unknown.stderr
    assert house.run("desktop", "exec", desktop, "--timeout", "0.3s", "--", "sleep", "60").returncode != 0
    assert house.cli("desktop", "exec", desktop, "--", "pgrep", "-x", "sleep", exit_code=1)["stdout"] == ""
    assert house.cli("desktop", "exec", "dk_aaaaaaaaaa", "--", "true", exit_code=5)["error"] == "no_desktop"
    held = house.cli("desktop", "exec", desktop, "--", "cat", "/proc/meminfo", "/etc/hostname")
    assert held["exit"] == 0


def test_files_go_in_and_out_and_what_lies_in_out_is_kept(house: Home, tmp_path: Path) -> None:
    view = acquire(house)
    lease, desktop = view["lease"], view["desktop"]
    here = tmp_path / "here"
    (here / "deep" / "empty").mkdir(parents=True)
    (here / "deep" / "größe €").write_bytes(os.urandom(3_000_000))
    (here / "tool").write_text("#!/bin/sh\necho ran\n")
    (here / "tool").chmod(0o755)
    house.cli("cp", str(here), f"{lease}:in")
    assert house.cli("desktop", "exec", desktop, "--", "./Shared/in/tool")["stdout"] == "ran\n"
    house.cli("desktop", "exec", desktop, "--", "sh", "-c", "mkdir -p Shared/out/a; cp -r Shared/in/* Shared/out/a")
    house.cli("desktop", "exec", desktop, "--", "sh", "-c", "ln -s /etc/passwd Shared/out/link; mkfifo Shared/out/pipe")
    house.cli("cp", f"{lease}:in", str(tmp_path / "back"))
    for name in ("deep/größe €", "tool"):
        assert (tmp_path / "back" / name).read_bytes() == (here / name).read_bytes()
    for path in ("../secret", "/etc/passwd", "out/link", "a/../../x"):
        refused = house.run("cp", f"{lease}:{path}", str(tmp_path / "stolen"))
        assert refused.returncode in (2, 3, 5), (path, refused)
    assert not (tmp_path / "stolen").exists()

    house.cli("lease", "release", lease)
    kept = house.fleet_home / "artifacts" / lease / "out"
    again = acquire(house, "b")  # by now it is clean
    assert again["desktop"] == desktop
    assert house.cli("desktop", "exec", desktop, "--", "ls", "-A", "Shared")["stdout"] == ""
    found = {str(path.relative_to(kept)) for path in kept.rglob("*") if not path.is_dir()}
    assert found == {"a/deep/größe €", "a/tool"}
    assert (kept / "a/deep/größe €").read_bytes() == (here / "deep/größe €").read_bytes()
    assert (house.fleet_home / "artifacts").stat().st_mode & 0o077 == 0


def test_frozen_it_stands_still_and_is_thawed(house: Home) -> None:
    view = acquire(house)
    house.cli("desktop", "freeze", view["desktop"])
    refused = house.cli("act", view["lease"], '{"type": "key", "keys": "a"}', exit_code=3)
    assert refused["error"] == "frozen"
    house.cli("desktop", "thaw", view["desktop"])
    house.cli("act", view["lease"], '{"type": "key", "keys": "a"}')


def test_windows_clipboard_and_programs_by_the_profile(house: Home) -> None:
    async def body() -> None:
        async with house.client() as fleet, fleet.lease(agent="a", profile="small") as desktop:
            await terminal(desktop)
            await desktop.paste("echo ünïcödé 漢字 > Shared/said")
            await desktop.key("enter")
            await until(lambda: _named(desktop, "said"))
            assert (await desktop.get_file("said")).decode() == "ünïcödé 漢字\n"
            await desktop.type("echo Ω≈ç 漢字 > Shared/typed\n")
            await until(lambda: _named(desktop, "typed"))
            assert (await desktop.get_file("typed")).decode() == "Ω≈ç 漢字\n"
            with pytest.raises(Exception, match="only terminal"):
                await desktop.launch("sh")
            await desktop.clipboard_set("Ω")
            assert await desktop.clipboard_get() == "Ω"

    run(body(), timeout=60)


def test_text_in_any_script_arrives_whole_and_in_order(house: Home) -> None:
    """What no keyboard has goes over the clipboard: keys and texts after it must not overtake it."""

    async def body() -> None:
        async with house.client() as fleet, fleet.lease(agent="a", profile="small") as desktop:
            await terminal(desktop)
            await desktop.type("cat > Shared/lines\n")
            await until(lambda: _named(desktop, "lines"))  # until then the shell's own line reads keys
            batch: list[dict[str, str]] = []
            for n in range(30):
                batch += [{"type": "type", "text": f"{n} 漢字"}, {"type": "type", "text": " and keys "}]
                batch += [{"type": "paste", "text": f"é{n}"}, {"type": "key", "keys": "enter"}]
            await desktop.act(batch)
            await desktop.type("Ж\n👍\n\nlast")
            await desktop.act([{"type": "key", "keys": "enter"}, {"type": "key", "keys": "ctrl+d"}])
            await desktop.type("echo > Shared/done\n")
            await until(lambda: _named(desktop, "done"))
            lines = "".join(f"{n} 漢字 and keys é{n}\n" for n in range(30))
            assert (await desktop.get_file("lines")).decode() == f"{lines}Ж\n👍\n\nlast\n"

    run(body(), timeout=60)


async def _named(desktop: Any, name: str) -> bool:
    return name in [one.path for one in await desktop.files()]
