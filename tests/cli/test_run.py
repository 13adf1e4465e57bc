"""`cu-fleet run`: what it brings in and refuses to, and real commands in real desktops, to every end."""

import io
import json
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.cli import pack
from cu_fleet.model.errors import InvalidError, NotFoundError, UnavailableError
from tests.cli.support import Ended, cli, end_all, finished, start
from tests.support import command_lines, run, until


def stream(found: list[tuple[Path, str]]) -> bytes:
    async def body() -> bytes:
        packed = pack.Packed(found)
        data = b"".join([chunk async for chunk in packed])
        packed.check()
        return data

    return run(body())


def test_what_is_brought_in_keeps_its_place_its_modes_and_its_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here / "tests/gui", elsewhere):
        folder.mkdir(parents=True)
        (folder / "go").write_text("#!/bin/sh\n")
        (folder / "go").chmod(0o750)
    (here / "link").symlink_to("/nowhere")
    os.mkfifo(here / "pipe")
    monkeypatch.chdir(here)
    all_of_it = pack.to_bring([Path()])
    some = pack.to_bring([Path("tests/gui"), elsewhere, Path("link"), Path("../elsewhere/go")])
    assert [name for _, name in some] == ["tests/gui", "elsewhere", "link", "go"]
    with tarfile.open(fileobj=io.BytesIO(stream(all_of_it))) as tar:
        members = {member.name: member for member in tar}
    assert set(members) == {".", "./link", "./tests", "./tests/gui", "./tests/gui/go"}
    assert (members["./tests/gui/go"].mode, members["./tests/gui/go"].uid) == (0o750, 0)
    assert members["./link"].linkname == "/nowhere"


def test_the_fleets_own_home_is_never_brought_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "project/.fleet/desktops").mkdir(parents=True)
    monkeypatch.setenv("CU_FLEET_HOME", str(tmp_path / "project/.fleet"))
    for path in ("project", "project/.fleet", "project/.fleet/desktops"):
        with pytest.raises(InvalidError, match="where the fleet keeps its secrets and its desktops"):
            pack.to_bring([tmp_path / path])


def test_what_is_too_much_not_there_or_unreadable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(InvalidError, match="not brought into a desktop as a whole; say what to bring in with --put"):
        pack.to_bring([Path()])
    with pytest.raises(NotFoundError):
        pack.to_bring([Path("nothing")])
    (tmp_path / "some").mkdir()
    (tmp_path / "some/big").write_bytes(b"12345")
    monkeypatch.setattr(pack, "MOST_BYTES", 4)
    with pytest.raises(InvalidError, match="holds more than"):
        pack.to_bring([Path("some")])
    monkeypatch.setattr(pack, "MOST_BYTES", 5)
    found = pack.to_bring([Path("some")])
    (tmp_path / "some/big").unlink()
    (tmp_path / "some").rmdir()
    with pytest.raises(UnavailableError, match="could not be brought in"):
        stream(found)


@pytest.mark.parametrize(
    "words",
    [
        ("--beside", "--bare"),
        ("--beside", "--env", "A=1"),
        ("--put", "x", "--bare"),
        ("--bare", "--env", "=1"),
        ("--bare", "-n", "0"),
        ("--bare", "--timeout", "soon"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_leased(words: tuple[str, ...]) -> None:
    ended = cli("run", *words, "--json", "--", "true")
    assert (ended.code, ended.json["error"]) == (2, "usage")


# real desktops

OUT = 'mkdir -p ~/Shared/out && echo "$CU_FLEET_WORKER of $CU_FLEET_WORKERS" >~/Shared/out/result'
HEARS = """import signal, sys, time
def heard(number, _):
    print("heard", number, flush=True)
    sys.exit(7)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, heard)
print("up", flush=True)
for _ in range(600):
    time.sleep(0.1)  # a longer one would miss what came just before
"""


class House:
    def __init__(self, env: dict[str, str], folder: Path) -> None:
        self.env, self.folder = env, folder

    def run(self, *words: str, stdin: bytes | None = None) -> Ended:
        process = start("run", *words, env=self.env, stdin=-1)
        assert process.stdin
        process.stdin.write(stdin or b"")
        return finished(process, timeout=60)

    def leases(self) -> list[dict[str, object]]:
        return list(finished(start("lease", "list", "--json", env=self.env)).json["leases"])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("run")
    env = {"CU_FLEET_HOME": str(folder / "home")}
    (folder / "work/sub").mkdir(parents=True)
    (folder / "work/sub/go").write_text('#!/bin/sh\npwd; echo "$DISPLAY $GREETING"; cat; echo bad >&2; exit 3\n')
    (folder / "work/sub/go").chmod(0o755)
    (folder / "work/hears.py").write_text(HEARS)
    try:
        yield House(env, folder / "work")
    finally:
        finished(start("down", env=env), timeout=120)
        end_all()


@pytest.mark.real
def test_a_command_finds_its_files_its_screen_and_its_input_and_answers_with_its_exit_code(
    house: House, tmp_path: Path
) -> None:
    put = ("--put", str(house.folder / "sub"), "--env", "GREETING=hello")
    ended = house.run(*put, "--", "sub/go", stdin=b"fed\n")
    assert (ended.code, ended.out) == (3, "/home/agent/work\n:0 hello\nfed\n")
    assert ended.err.splitlines()[-1] == "bad"
    left = house.run(
        "--bare", "--keep-artifacts", str(tmp_path / "art"), "--", "sh", "-c", f"{OUT}; sleep 600 & exit 4"
    )
    assert left.code == 4, "and what it left running held nothing up"
    assert (tmp_path / "art/result").read_text() == "0 of 1\n"
    assert house.run("--bare", "--", "xset", "q").code == 0, "a program that needs the screen"
    assert house.run("--bare", "--timeout", "0.5s", "--", "sleep", "60").code == 4
    assert house.leases() == []


@pytest.mark.real
def test_of_several_each_line_says_whose_it_is_and_the_first_failure_counts(house: House, tmp_path: Path) -> None:
    place = tmp_path / "art"
    script = f"{OUT}; echo one; printf two; exit $((2 * CU_FLEET_WORKER))"
    ended = house.run("--bare", "-n", "3", "--keep-artifacts", str(place), "--json", "--", "sh", "-c", script)
    told = ended.json
    assert ended.code == told["exit"] == 2
    assert [(one["worker"], one["exit"], one["state"], one["artifacts"]) for one in told["workers"]] == [
        (number, 2 * number, "released", 1) for number in range(3)
    ]
    assert len({one["desktop"] for one in told["workers"]}) == 3
    assert {path.parent.name: path.read_text() for path in place.glob("*/result")} == {
        str(number): f"{number} of 3\n" for number in range(3)
    }
    lines = ended.err.splitlines()
    assert all({f"[{number}] one", f"[{number}] two"} <= set(lines) for number in range(3))
    assert house.leases() == []


@pytest.mark.real
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_commands_inside(house: House, number: signal.Signals) -> None:
    process = start(
        "run", "-n", "2", "--put", str(house.folder / "hears.py"), "--", "python3", "hears.py", env=house.env
    )
    assert process.stdout
    assert {process.stdout.readline() for _ in range(2)} == {b"[0] up\n", b"[1] up\n"}
    process.send_signal(number)
    ended = finished(process)
    assert (ended.code, set(ended.out.splitlines())) == (7, {f"[0] heard {number}", f"[1] heard {number}"})
    assert house.leases() == []


@pytest.mark.real
def test_killed_it_takes_the_commands_along_and_its_leases_are_soon_over(house: House) -> None:
    script = "echo up; exec sleep 7654"
    inside = start("run", "--bare", "--agent", "killed", "--", "sh", "-c", script, env=house.env)
    beside = start("run", "--beside", "--agent", "killed-too", "--", "sh", "-c", script, env=house.env)
    for process in (inside, beside):
        assert process.stdout
        assert process.stdout.readline() == b"up\n"
        process.kill()
        finished(process)

    run(until(lambda: "sleep 7654 " not in command_lines().values()))
    over = {str(lease["agent"]): lease["remaining"] for lease in house.leases()}
    assert set(over) == {"killed", "killed-too"}
    assert all(float(str(remaining)) <= 60 for remaining in over.values())
    for lease in house.leases():
        finished(start("lease", "release", str(lease["lease"]), env=house.env))


@pytest.mark.real
def test_beside_the_program_has_the_leases_and_they_are_given_back(house: House) -> None:
    program = "import os; print(os.environ['CU_FLEET_WORKERS'], os.environ['CU_FLEET_LEASES']); raise SystemExit(5)"
    ended = house.run("--beside", "-n", "2", "--", "python3", "-c", program)
    count, _, leases = ended.out.partition(" ")
    told = json.loads(leases)
    assert (ended.code, count, [one["worker"] for one in told]) == (5, "2", [0, 1])
    shown = finished(start("lease", "show", told[1]["lease"], env={**house.env, "CU_FLEET_TOKEN": told[1]["token"]}))
    assert "released" in shown.out + shown.err, "its token was the lease's, which is over"
    assert house.run("--beside", "--", "no-such-program").code == 5
    assert house.run("--beside", "-p", "no-such-profile", "--", "true").code == 5
    assert house.leases() == []
