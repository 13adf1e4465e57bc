"""`cu-fleet codex` with a script in Codex's place: its own desktop, its signals, its exit code, and every end."""

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.cli import promises
from cu_fleet.cli.holding import give_back
from cu_fleet.client.http import Wire
from tests.cli.support import Ended, cli, finished, start
from tests.cli.test_live import Controller
from tests.controller.worktree import Repository
from tests.support import run, until

# It says what it was given, and with --wait waits for a signal and tells which came.
pytestmark = pytest.mark.slow

CODEX = f"""#!{sys.executable}
import json, os, signal, sys, time
from pathlib import Path
def heard(number, _):
    print("heard", number, flush=True)
    if "--deaf" not in sys.argv:
        sys.exit(7)
if "--wait" in sys.argv:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, heard)
place = Path(sys.argv[-1])
told = {{"pid": os.getpid(), "words": sys.argv[1:], "env": dict(os.environ)}}
place.with_suffix(".new").write_text(json.dumps(told))
place.with_suffix(".new").rename(place)
print("out of codex", flush=True)
signal.alarm(60)  # should a test fail
while "--wait" in sys.argv:
    time.sleep(0.1)  # to pause would miss what came just before
sys.exit(3)
"""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    with Controller(tmp_path_factory.mktemp("codex") / "home").running() as controller:
        yield controller


@pytest.fixture(autouse=True)
def at_home(live: Controller, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CU_FLEET_HOME", str(live.home))


_numbers = itertools.count()


class Run:
    """`cu-fleet codex` as a process of its own, in a terminal session of its own, as a service manager starts it."""

    def __init__(self, place: Path, *words: str, agent: str, own: tuple[str, ...] = (), **env: str) -> None:
        programs = place / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "codex").write_text(CODEX)
        (programs / "codex").chmod(0o755)
        self.file = place / f"{agent}-{next(_numbers)}.json"
        ours = ["codex", "--agent", agent, "--profile", "mem", *own, "--", *words, str(self.file)]
        path = f"{programs}:{os.environ['PATH']}"
        env = {"CU_FLEET_HOME": os.environ["CU_FLEET_HOME"], "PATH": path, **env}
        self.process = start(*ours, env=env, start_new_session=True)

    def began(self) -> dict[str, Any]:
        run(until(lambda: self.file.exists() or self.process.poll() is not None))
        return dict(json.loads(self.file.read_text()))

    def ended(self) -> Ended:
        return finished(self.process)


def leases(agent: str) -> list[dict[str, Any]]:
    return [x for x in cli("lease", "list", "--all", "--json").json["leases"] if x["agent"].startswith(agent)]


def states(agent: str) -> dict[str, str]:
    return {x["agent"]: x["state"] for x in leases(agent)}


def test_codex_is_told_of_its_desktop_and_its_exit_code_is_ours(tmp_path: Path) -> None:
    one = Run(tmp_path, "exec", "-c", "x=1", "say hello", agent="plain")
    ended = one.ended()
    assert (ended.code, ended.out) == (3, "out of codex\n")
    (lease,) = leases("plain")
    first, second, tools, itself, credentials = ended.err.splitlines()
    assert lease["lease"] in first
    assert "agent plain has desktop dk_" in first
    assert second == "profile mem: network none, gates none"
    assert tools.startswith("tools: screenshot, zoom, click")
    assert itself.endswith("its sandbox: as its own configuration says")
    assert "of your environment: " in credentials
    told = one.began()
    url = cli("status", "--json").json["url"]
    overrides = dict(word.split("=", 1) for word in told["words"][1:10:2])
    assert told["words"][0:10:2] == ["-c"] * 5
    assert overrides["mcp_servers.cu_fleet.url"] == f'"{url}/mcp"'
    assert json.loads(overrides["mcp_servers.cu_fleet.bearer_token_env_var"]) in told["env"]
    assert told["words"][10:-1] == ["exec", "-c", "x=1", "say hello"]
    assert lease["state"] == "released"


def test_its_environment_opens_its_own_lease_and_nothing_else(tmp_path: Path, live: Controller) -> None:
    operator = (live.home / "operator.token").read_text().strip()
    secret = "postgresql://me:secret@localhost/x"  # noqa: S105 - of nobody
    given = {"CU_FLEET_TOKEN": operator, "CU_FLEET_DATABASE": secret, "HTTP_PROXY": "http://192.0.2.1:3128"}
    one = Run(tmp_path, agent="right", NO_PROXY="example.org", **given)
    assert one.ended().code == 3
    told = one.began()
    assert operator not in json.dumps(told)
    assert "secret" not in json.dumps(told)
    ours = {name: value for name, value in told["env"].items() if name.startswith("CU_FLEET_")}
    assert set(ours) == {"CU_FLEET_LEASE_TOKEN", "CU_FLEET_TOKEN", "CU_FLEET_URL"}
    assert ours["CU_FLEET_LEASE_TOKEN"] == ours["CU_FLEET_TOKEN"]
    assert ours["CU_FLEET_TOKEN"].startswith("cfl_")
    assert ours["CU_FLEET_TOKEN"] not in json.dumps(told["words"])
    assert told["env"]["NO_PROXY"].split(",")[:2] == ["example.org", "127.0.0.1"]
    (lease,) = leases("right")
    right = {**ours, "CU_FLEET_HOME": None}
    assert cli("lease", "show", lease["lease"], env=right).code in (0, 6)
    assert cli("desktop", "list", env=right).code in (3, 6)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_codexs_and_the_desktop_is_given_back(tmp_path: Path, number: signal.Signals) -> None:
    agent = f"on-{number.name.lower()}"
    one = Run(tmp_path, "--wait", agent=agent)
    one.began()
    assert states(agent) == {agent: "active"}
    one.process.send_signal(number)
    ended = one.ended()
    assert (ended.code, ended.out) == (7, f"out of codex\nheard {number.value}\n")
    assert states(agent) == {agent: "released"}


@pytest.mark.real
@pytest.mark.slow
def test_one_that_is_deaf_to_sigterm_is_killed_in_the_end(tmp_path: Path) -> None:
    one = Run(tmp_path, "--wait", "--deaf", agent="deaf")
    pid = one.began()["pid"]
    one.process.send_signal(signal.SIGINT)  # this one only interrupts
    one.process.send_signal(signal.SIGTERM)
    ended = one.ended()
    assert (ended.code, "heard 15" in ended.out) == (128 + signal.SIGKILL, True)
    assert not Path(f"/proc/{pid}").exists()
    assert states("deaf") == {"deaf": "released"}


def test_codex_killed(tmp_path: Path) -> None:
    one = Run(tmp_path, "--wait", agent="killed")
    os.kill(one.began()["pid"], signal.SIGKILL)
    assert one.ended().code == 128 + signal.SIGKILL
    assert states("killed") == {"killed": "released"}


def test_two_runs_have_two_names_and_two_desktops(tmp_path: Path) -> None:
    both = [Run(tmp_path, "--wait", agent="two") for _ in range(2)]
    tokens = {one.began()["env"]["CU_FLEET_LEASE_TOKEN"] for one in both}
    assert len(tokens) == 2
    assert states("two") == {"two": "active", "two-2": "active"}
    assert len({x["desktop"] for x in leases("two")}) == 2
    for one in both:
        one.process.terminate()
        assert one.ended().code == 7
    assert states("two") == {"two": "released", "two-2": "released"}


def test_a_revoked_run_is_told_at_its_end(tmp_path: Path) -> None:
    one = Run(tmp_path, "--wait", agent="revoked", own=("--json",))
    one.began()
    (lease,) = leases("revoked")
    assert cli("lease", "revoke", lease["lease"], "--reason", "wrong account").code == 0
    one.process.terminate()
    ended = one.ended()
    assert f"lease {lease['lease']} was revoked by " in ended.err
    assert "before Codex ended: wrong account" in ended.err
    assert "out of codex" in ended.err
    assert (ended.json["exit"], ended.json["state"], ended.json["lease"]) == (7, "revoked", lease["lease"])
    assert (ended.json["network"], "token" in ended.json) == ("none", False)


def test_without_codex_it_says_how_to_install_it_and_leases_nothing(tmp_path: Path) -> None:
    ended = cli("codex", "--agent", "none", "--profile", "mem", "--json", env={"PATH": str(tmp_path)})
    assert (ended.code, ended.json["error"]) == (1, "no_codex")
    assert "npm install -g @openai/codex" in ended.err
    assert leases("none") == []


def test_one_that_cannot_be_started_gives_the_desktop_back(tmp_path: Path) -> None:
    (tmp_path / "codex").write_text("#!/nowhere/at/all\n")
    (tmp_path / "codex").chmod(0o755)
    ended = cli("codex", "--agent", "broken", "--profile", "mem", "--json", env={"PATH": str(tmp_path)})
    assert (ended.code, ended.json["error"]) == (1, "no_codex")
    assert states("broken") == {"broken": "released"}


def test_with_a_leases_token_or_of_no_profile_it_starts_nothing(tmp_path: Path) -> None:
    one = Run(tmp_path, agent="token", CU_FLEET_TOKEN="cfl_ls_0_0_0")  # noqa: S106 - it opens nothing
    ended = one.ended()
    assert ended.code == 3
    assert "it opens that one desktop" in ended.err
    two = Run(tmp_path, agent="token", own=("--profile", "nothing"))
    assert two.ended().code == 5
    assert not one.file.exists()
    assert not two.file.exists()


@pytest.mark.parametrize(
    ("words", "held", "moves", "asked"),
    [
        ("", None, False, ""),
        ("exec|mend it all", None, False, "mend it all"),
        ("exec|-s|workspace-write|x", "workspace-write", False, ""),
        ("--sandbox=read-only|exec|-C|/x|a b", "read-only", True, "a b"),
        ('-c|sandbox_mode="danger-full-access"|--cd=/x', "none: it can do all that you can", True, ""),
        ("--yolo|-C/x", "none: it can do all that you can", True, ""),
    ],
)
def test_what_codexs_words_say_is_understood(words: str, held: str | None, moves: bool, asked: str) -> None:
    given = words.split("|") if words else []
    assert (promises.sandbox(given), promises.moves(given), promises.prompt(given)) == (held, moves, asked)


@pytest.fixture
def project(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "project")


def test_with_a_worktree_it_runs_there_and_says_what_is_promised_and_what_became_of_it(
    tmp_path: Path, project: Repository
) -> None:
    own = ("--worktree", "next", "--repo", str(project.top), "--json")
    one = Run(tmp_path, "--wait", "exec", "mend the app", agent="tree", own=own, GITHUB_TOKEN="ghp_x")  # noqa: S106
    told = one.began()
    (listed,) = cli("worktree", "list", "--json").json["worktrees"]
    place = Path(listed["path"])
    assert (told["env"]["PWD"], Path(f"/proc/{told['pid']}/cwd").readlink()) == (str(place), place)
    assert (place / "README").read_text() == "hello\n"
    (place / "new").write_text("new\n")
    one.process.terminate()
    ended = one.ended()
    view = ended.json["worktree"]
    assert (ended.code, view["state"], view["files"], view["intent"]) == (7, "kept", 1, "")
    for words in (
        f"worktree {view['worktree']}: {place}, on its desktop ~/Shared/project",
        f"branch {view['branch']} from next",
        "no review is configured to check it, and it is merged into next when a person approves",
        "of your environment: GITHUB_TOKEN",
        f"cu-fleet worktree show {view['worktree']}, then merge or discard it (approval {view['approval']})",
    ):
        assert words in ended.err
    assert "+new" in cli("worktree", "show", view["worktree"]).out
    assert "+new" in cli("worktree", "diff", view["worktree"]).out
    merged = cli("approval", "approve", view["approval"])
    assert merged.code == 0, merged.err
    assert project.git("log", "-1", "--format=%an %s") == "tree Work of agent tree"
    assert (project.top / "new").read_text() == "new\n"
    again = cli("worktree", "discard", view["worktree"])
    assert again.code == 3, "it is merged: there is nothing to discard"


def test_a_run_that_is_killed_with_its_worktree_loses_nothing(tmp_path: Path, project: Repository) -> None:
    own = ("--worktree", "main", "--repo", str(project.top))
    one = Run(tmp_path, "--wait", agent="slain", own=own)
    pid = one.began()["pid"]
    listed = next(x for x in cli("worktree", "list", "--json").json["worktrees"] if x["agent"] == "slain")
    (Path(listed["path"]) / "new").write_text("new\n")
    one.process.kill()
    os.kill(pid, signal.SIGKILL)
    assert "main is protected" in one.ended().err
    (lease,) = leases("slain")
    assert lease["state"] == "active", "it would run out in minutes; here a person is quicker"
    assert cli("lease", "release", lease["lease"]).code == 0
    view = run(until(lambda: _at_rest(listed["worktree"])))
    assert (view["state"], view["files"]) == ("kept", 1)
    refused = cli("worktree", "merge", view["worktree"])
    assert (refused.code, f"git push -u origin {view['branch']}" in refused.err) == (3, True)
    assert cli("worktree", "prune", "--older", "0s").code == 0
    assert project.git("branch", "--list", view["branch"]), "a person has asked for the commit: it stays"


async def _at_rest(worktree: str) -> dict[str, Any] | None:
    view = dict((await asyncio.to_thread(cli, "worktree", "show", worktree, "--json")).json)
    return view if view["state"] in ("kept", "gone") else None


def test_a_worktree_that_contradicts_the_rest_is_refused_before_anything_is_leased(
    tmp_path: Path, project: Repository
) -> None:
    here = ("--repo", str(project.top))
    for own, words, code, said in [
        (("--worktree", "next", *here), ("-C", "/x"), 2, "work in another folder"),
        (("--into", "next"), (), 2, "go with --worktree"),
        (("--worktree", "nope", *here), (), 5, "no branch, tag or commit 'nope'"),
        (("--worktree", "next", "--into", "main", *here), (), 3, "main is a protected branch"),
        (("--worktree", "next", "--repo", str(tmp_path)), (), 5, "in no git repository"),
    ]:
        ended = Run(tmp_path, *words, agent="wrong", own=own).ended()
        assert (ended.code, said in ended.err) == (code, True), ended.err
    token = cli("agent", "add", "worker", "--json").json["token"]
    ended = Run(tmp_path, agent="worker", own=("--worktree", "next", *here), CU_FLEET_TOKEN=token).ended()
    assert (ended.code, "is an agent's" in ended.err) == (3, True), ended.err
    assert leases("wrong") == []
    assert project.left() == ""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Controller]:
    """One with a single desktop, which a test may also kill."""
    controller = Controller(tmp_path / "small")
    (controller.home / "config.yaml").write_text("max_desktops: 1\n")
    monkeypatch.setenv("CU_FLEET_HOME", str(controller.home))
    with controller.running():
        yield controller


@pytest.mark.real
def test_it_waits_in_the_open_and_ended_while_it_waits_it_leaves_the_line(tmp_path: Path, small: Controller) -> None:
    first = Run(tmp_path, "--wait", agent="a")
    first.began()
    line = {number: Run(tmp_path, agent=f"b{number.value}", own=("--wait", "forever")) for number in _ENDING}
    run(until(lambda: _in_line("b", len(_ENDING))))
    last = Run(tmp_path, agent="c", own=("--wait", "forever"))
    run(until(lambda: _in_line("c", 1)))
    for number, one in line.items():
        one.process.send_signal(number)
        ended = one.ended()
        assert ended.code == 128 + number
        assert "agent a holds it" in ended.err
        assert not one.file.exists()
    assert set(states("b").values()) == {"cancelled"}
    first.process.terminate()
    assert first.ended().code == 7
    ended = last.ended()
    assert ended.code == 3
    assert "number 4 in line; agent a holds it" in ended.err or "number 1 in line; agent a holds it" in ended.err
    assert Run(tmp_path, agent="d", own=("--wait", "0.1s")).ended().code == 3, "the desktop is free again"


async def _in_line(agent: str, number: int) -> bool:
    return list((await asyncio.to_thread(states, agent)).values()) == ["waiting"] * number


_ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@pytest.mark.real
def test_a_controller_that_was_away_is_told_of_the_end_when_it_returns(tmp_path: Path, small: Controller) -> None:
    one = Run(tmp_path, "--wait", agent="a")
    pid = one.began()["pid"]
    small.process.kill()
    small.process.communicate()
    one.process.terminate()
    run(until(lambda: not Path(f"/proc/{pid}").exists()))
    small.start()
    small.ready()
    ended = one.ended()
    assert ended.code == 7
    assert "was lost by " in ended.err, "desktops in a controller's memory go with it; but it was asked"
    assert states("a") == {"a": "lost"}


def test_a_controller_that_is_gone_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cu_fleet.cli.holding.GRACE", 0.1)

    async def body() -> str:
        wire = Wire(url=None, token=None, home=tmp_path, start=False)
        return await give_back(wire, "ls_0123456789", 300, "it ended")

    assert run(body()) == "unknown"
    assert "lease ls_0123456789 could not be given back" in (told := capsys.readouterr().err)
    assert "cu-fleet lease release ls_0123456789" in told
