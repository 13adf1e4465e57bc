"""`cu-fleet bench`: that it measures what it says, judges by its aims, and leaves nothing behind. Never how fast."""

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.bench.figures import Figure, Series, milliseconds
from cu_fleet.bench.incoming import bare
from cu_fleet.bench.machine import private_memory
from cu_fleet.bench.programme import ON_DEMAND, ROWS, rows_of
from tests.cli.support import Ended, cli, finished, start

_PEERS_AIM = {"scrot": 8.0, "vncdotool": 8.0}


def test_the_95th_percentile_is_what_19_of_20_kept_to() -> None:
    assert milliseconds([n / 1000 for n in range(20, 0, -1)]).p95 == pytest.approx(19)
    assert Series("/s", tuple(range(1, 21)), more_is_better=True).p95 == 2
    assert Series("ms", (7.0,)).p95 == 7


def test_an_aim_is_a_bound_or_a_ratio_to_what_was_measured_beside_it() -> None:
    slow, fast = Series("ms", (30.0,)), Series("ms", (10.0,))
    assert Figure("x", slow, fast, most=3).met is True
    assert Figure("x", slow, fast, most=2.9).met is False
    assert Figure("x", slow, most=30).met is True
    assert Figure("x", slow, most=29).met is False
    assert Figure("x", slow).met is None


def test_a_figure_as_a_document_and_as_a_line() -> None:
    figure = Figure("x", Series("ms", (30.0, 40.0), "ours"), Series("ms", (10.0,), "theirs"), most=2.5)
    told = figure.json()
    assert (told["median"], told["p95"], told["rounds"], told["ratio"], told["met"]) == (35, 40, 2, 3.5, False)
    assert told["aim"] == {"at_most": 2.5, "unit": "times"}
    assert figure.cells() == ["x", "35.0 ms", "40.0 ms", "10.0 ms", "3.50×", "≤ 2.5×", "missed", "ours; against theirs"]


def test_an_aim_may_be_so_much_more_than_what_is_beside_it() -> None:
    plain = Series("ms", (10.0,))
    assert Figure("x", Series("ms", (12.9,)), plain, most_more=3).met is True
    missed = Figure("x", Series("ms", (13.1,)), plain, most_more=3)
    assert (missed.met, missed.aim) == (False, "≤ 3 ms more")
    assert missed.json()["aim"] == {"at_most_more": 3, "unit": "ms"}


def test_who_else_does_it_is_told_beside_us_or_said_to_be_missing() -> None:
    others = {"scrot": Series("ms", (90.0,)), "xdotool": "xdotool is not installed here"}
    figure = Figure("x", Series("ms", (10.0,)), Series("ms", (5.0,)), most=3, others=others, times_faster={"scrot": 8})
    assert figure.met is True
    assert figure.json()["others"]["scrot"]["times_ours"] == 9
    assert figure.json()["others"]["xdotool"] == {"missing": "xdotool is not installed here"}
    assert "missing" in figure.cells_beside()
    slow = Figure("x", Series("ms", (20.0,)), others=others, times_faster={"scrot": 8})
    assert (slow.met, slow.verdict) == (False, "missed")


def test_an_aim_beside_one_that_is_missing_is_not_judged() -> None:
    figure = Figure("x", Series("ms", (1.0,)), most=3, others={"scrot": "missing"}, times_faster={"scrot": 8})
    assert (figure.met, figure.verdict) == (None, "not judged")


def test_a_soak_is_run_only_if_asked_for() -> None:
    assert not set(rows_of([])) & set(ON_DEMAND)
    assert set(rows_of(["soak", "docker", "libvirt", "codex"])) == set(ON_DEMAND)
    assert rows_of(["click"]) == ["click-http", "click-client", "click-mcp"]


def test_a_bare_machine_is_libvirts_own_but_for_what_is_between_the_two() -> None:
    key = """-object '{"qom-type":"secret","id":"masterKey0"}'"""
    monitor = "-chardev socket,id=charmonitor,path=/var/lib/x/monitor.sock,server=on,wait=off -mon chardev=charmonitor"
    said = f'LC_ALL=C HOME=/x /usr/bin/qemu -S {key} -m 768 -object \'{{"id":"ram"}}\' {monitor}'
    mine = "socket,id=charmonitor,path=/m,server=on,wait=off"
    words = ["/usr/bin/qemu", "-S", "-m", "768", "-object", '{"id":"ram"}', "-chardev", mine, "-mon"]
    assert bare(said, Path("/m")) == [*words, "chardev=charmonitor"]


def test_our_own_memory_can_be_read() -> None:
    assert private_memory(os.getpid()) > 1 << 20


def test_a_row_that_is_not_there_is_refused_with_those_that_are() -> None:
    ended = cli("bench", "--only", "teleport", "--json")
    assert ended.code == 2
    assert all(row in ended.json["message"] for row in ROWS)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go; nothing may be left there, nor any process that knows of it."""
    with tempfile.TemporaryDirectory(prefix="bt-") as name:  # short: sockets lie below it
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)
        assert list(Path(name).iterdir()) == []
        assert processes_of(name) == []


def processes_of(folder: str) -> list[str]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            try:
                words = (path / "environ").read_bytes() + (path / "cmdline").read_bytes()
            except OSError:
                continue
            found += [path.name] if f"{folder}/cu-fleet-bench".encode() in words else []
    return found


def measured(folder: Path, *words: str) -> Ended:
    process = start("bench", *words, env={"TMPDIR": str(folder), "CU_FLEET_DATABASE": "postgresql://not-ours/"})
    return finished(process, timeout=240)


@pytest.mark.real
def test_a_glance_measures_every_row_and_leaves_nothing(temporary: Path) -> None:
    ended = measured(temporary, "--quick", "--rounds", "1", "--json")
    assert ended.code == 0, ended.err
    told = ended.json
    assert tuple(row["row"] for row in told["rows"]) == tuple(row for row in ROWS if row not in ON_DEMAND)
    assert all(row["median"] >= 0 and row["p95"] >= 0 and row["rounds"] >= 1 for row in told["rows"])
    assert {"cores", "memory_bytes", "kernel", "versions"} <= set(told["machine"])
    rows = {row["row"]: row for row in told["rows"]}
    aimed = {"cold-start", "rollback", "warm-grant", "memory"}
    assert aimed <= {name for name, row in rows.items() if row["met"] is not None}
    assert rows["png-1280x800-http"]["aim"] == {"at_most": 3, "unit": "times", "times_faster": _PEERS_AIM}
    assert set(rows["click-http"]["others"]) == {"vncdotool", "xdotool"}
    assert {"Xvnc", "openbox", "bwrap"} <= set(rows["memory"]["facts"]["by_program_mb"])
    assert rows["memory"]["facts"]["helper_mb"] > 0
    assert rows["many-busy"]["facts"]["screenshots_a_second"] > 0
    assert rows["many-busy"]["facts"]["percent_of_one_core"]["controller"] > 0
    assert rows["cold-start"]["facts"]["bare_with_opengl_ms"] > 0


@pytest.mark.real
def test_a_table_for_people_with_only_the_rows_asked_for(temporary: Path) -> None:
    ended = measured(temporary, "--quick", "--rounds", "1", "--only", "rollback")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["ROW", "rollback"]
    assert "cold-start" in lines[-1]


@pytest.mark.real
def test_told_to_end_it_takes_all_down_first(temporary: Path) -> None:
    process = start("bench", "--quick", "--only", "memory", env={"TMPDIR": str(temporary)})
    assert process.stderr
    assert b"desktops at once" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    ended = finished(process, timeout=120)
    assert ended.code == 143, ended.err
    assert ended.out == ""
