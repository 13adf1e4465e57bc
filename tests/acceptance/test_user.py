"""An ordinary user, without any privilege: from nothing to nothing, as root has it too."""

import os
import stat
from pathlib import Path

import pytest

from cu_fleet.testing.backend_state import ZOO
from tests.acceptance.home import Home, home
from tests.support import run, until

pytestmark = pytest.mark.real
KEY = '{"type": "key", "keys": "a"}'


def owners(one: Home) -> set[int]:
    return {path.lstat().st_uid for path in [one.fleet_home, *one.fleet_home.rglob("*")]}


def test_a_whole_day_of_an_ordinary_user(tmp_path: Path) -> None:
    with home(somebody=True) as one:
        me = one.uid if one.uid is not None else os.getuid()
        assert me != 0
        checks = {check["name"]: check for check in one.cli("doctor", exit_code=None)["checks"]}
        assert all(checks[name]["ok"] for name in ("programs", "namespaces", "home", "profile local")), checks

        view = one.cli("lease", "acquire", "--agent", "a", "--profile", "local")  # starts a controller
        lease, desktop = view["lease"], view["desktop"]
        pid = one.cli("status")["pid"]
        assert Path(f"/proc/{pid}").stat().st_uid == me
        assert one.cli("desktop", "exec", desktop, "--", "sh", "-c", "id -un; id -u")["stdout"] == "agent\n1000\n"

        one.cli("act", lease, KEY, '{"type": "click", "x": 600, "y": 400}', "--intent", "to try")
        picture = one.path / "seen.png"
        shot = one.cli("screenshot", lease, "-o", str(picture))
        assert (shot["width"], shot["height"]) == (1280, 800)
        assert picture.stat().st_uid == me
        one.cli("desktop", "exec", desktop, "--", "/usr/bin/python3", "-I", "-c", ZOO)
        one.cli("desktop", "exec", desktop, "--", "sh", "-c", "mkdir -p Shared/out; echo mine > Shared/out/report")
        saved = one.cli("snapshot", "save", desktop)
        one.cli("desktop", "exec", desktop, "--", "rm", "-rf", "/home/agent/zoo")
        one.cli("snapshot", "restore", saved["id"])
        assert one.cli("desktop", "exec", desktop, "--", "cat", "zoo/text")["stdout"] == "hello"
        one.cli("lease", "pause", lease, "--reason", "look")
        assert one.cli("act", lease, KEY, exit_code=6)["error"] == "lease_paused"
        one.cli("lease", "resume", lease)

        _killed_and_started_again(one, pid)
        assert one.cli("lease", "show", lease)["state"] == "active"
        one.cli("act", lease, KEY)
        one.cli("lease", "revoke", lease, "--reason", "enough")
        assert "enough" in one.cli("act", lease, KEY, exit_code=6)["message"]
        run(until((one.fleet_home / "artifacts" / lease / "out" / "report").exists))
        again = one.cli("lease", "acquire", "--agent", "b", "--profile", "local")
        run(until(lambda: one.cli("desktop", "show", desktop)["stage"] in ("ready", "held")))
        assert one.cli("desktop", "exec", desktop, "--", "ls", "-A", "/tmp")["stdout"].count("zoo") == 0
        assert again["generation"] >= 1
        assert one.cli("audit", "verify")["ok"] is True

        assert owners(one) == {me}
        assert stat.S_IMODE(one.fleet_home.stat().st_mode) == 0o700
        for secret in ("operator.token", "secret.key", "fleet.db", "controller.sock", "controller.log"):
            assert not (one.fleet_home / secret).stat().st_mode & 0o077, secret
        one.cli("down")
        assert one.left() == []
        assert one.run("status").returncode == 1


def _killed_and_started_again(one: Home, pid: int) -> None:
    os.kill(pid, 9)
    run(until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not _words(pid)))
    assert one.cli("status", exit_code=1)["running"] is False
    one.cli("lease", "list")  # starts another
    assert one.cli("status")["pid"] != pid


def _words(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()
