"""The command line as a person uses it: nothing runs, the first command starts all, `down` leaves nothing."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.support import Ended, finished, start
from tests.support import run, until

pytestmark = pytest.mark.real


@pytest.fixture
def env(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    home = tmp_path_factory.mktemp("real") / "home"
    env = {"CU_FLEET_HOME": str(home)}
    try:
        yield env
    finally:
        finished(start("down", env=env), timeout=120)
        shutil.rmtree(home, ignore_errors=True)


def done(env: dict[str, str], *words: str) -> Ended:
    ended = finished(start(*words, env=env), timeout=120)
    assert ended.code == 0, ended.err
    return ended


def mentions(home: str) -> set[int]:
    """Processes of this machine that were started for the home, or have something of it mounted."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if any(home.encode() in (entry / name).read_bytes() for name in ("cmdline", "mountinfo")):
                found.add(int(entry.name))
    return found


def test_from_nothing_to_nothing(env: dict[str, str], tmp_path: Path) -> None:
    assert finished(start("status", env=env)).code == 1
    view = done(env, "lease", "acquire", "--agent", "a", "--profile", "local", "--json").json
    lease = view["lease"]
    assert (view["state"], view["width"], view["height"]) == ("active", 1280, 800)
    assert done(env, "status", "--json").json["running"] is True

    done(env, "screenshot", lease, "-o", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    done(env, "act", lease, '{"type": "move", "x": 10, "y": 10}')
    who = finished(start("desktop", "exec", lease, "--", "sh", "-c", "id -u; echo err >&2; exit 3", env=env))
    assert (who.code, who.err) == (3, "err\n")
    assert who.out.strip() != "0"

    (tmp_path / "in").write_text("hello")
    done(env, "cp", str(tmp_path / "in"), f"{lease}:sub/in")
    assert done(env, "desktop", "exec", lease, "--", "cat", "Shared/sub/in").out == "hello"
    done(env, "desktop", "exec", lease, "--", "ln", "-s", "/etc", "Shared/sub/evil")
    out = done(env, "cp", f"{lease}:sub", str(tmp_path / "out"), "--json").json
    assert (out["files"], out["skipped"]) == (1, ["sub/evil"])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["in"]

    done(env, "lease", "revoke", lease, "--reason", "enough")
    assert finished(start("act", lease, '{"type": "move", "x": 1, "y": 1}', env=env)).code == 6
    done(env, "audit", "verify")

    assert done(env, "down", "--json").json["stopped"] is True
    assert mentions(env["CU_FLEET_HOME"]) == set()
    assert done(env, "down").out == "nothing is running\n"


def test_down_also_ends_what_a_killed_controller_left(env: dict[str, str]) -> None:
    done(env, "lease", "acquire", "--agent", "a", "--profile", "local")
    status = done(env, "status", "--json").json
    os.kill(status["pid"], signal.SIGKILL)
    run(until(lambda: status["pid"] not in mentions(env["CU_FLEET_HOME"])))
    assert mentions(env["CU_FLEET_HOME"])
    assert done(env, "down", "--json").json["stopped"] is True
    assert mentions(env["CU_FLEET_HOME"]) == set()
