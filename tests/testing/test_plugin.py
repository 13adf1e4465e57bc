"""The pytest plugin, in suites of users that know nothing of this project: what it lends, tells, and never leaves."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from cu_fleet.model.errors import ConflictError
from cu_fleet.testing.evidence import strip
from cu_fleet.testing.leased import House, Shot
from tests.client.test_sync import Server
from tests.support import run, until

pytest_plugins = "pytester"
_QUICK = ("-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:hypothesispytest")  # these take long to load


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("home")
    for name in [name for name in os.environ if name.startswith(("CU_FLEET_", "PYTEST_XDIST"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CU_FLEET_HOME", str(home))
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    with Server(home) as server:
        yield server


def live(server: Server, *states: str) -> list[str]:
    return [agent for agent, state in server.states().items() if state in (states or ("active", "waiting"))]


def size(path: str) -> tuple[int, int]:
    return Image.open(BytesIO(Path(path).read_bytes())).size


def result(pytester: pytest.Pytester, *words: str) -> Any:
    return pytester.runpytest_subprocess(*_QUICK, *words)


def test_each_test_has_its_own_desktop_and_a_workers_tests_share_one(pytester: pytest.Pytester, server: Server) -> None:
    pytester.makepyfile("""
        import pytest
        seen = []
        def test_own(desktop):
            seen.append(desktop.lease.lease)
            desktop.click(3, 4)
            assert desktop.exec(["echo", "hi"]).stdout == b"hi\\n"
        def test_another(desktop):
            assert desktop.lease.lease not in seen
        @pytest.mark.desktop(isolation="worker")
        class TestShared:
            kept = []
            def test_one(self, desktop): self.kept.append(desktop.lease.lease)
            def test_two(self, desktop): assert self.kept == [desktop.lease.lease]
            @pytest.mark.desktop(isolation="test")
            def test_nearest_mark_wins(self, desktop): assert desktop.lease.lease not in self.kept
        def test_none(): pass
    """)
    result(pytester).assert_outcomes(passed=6)
    assert server.states() == {"pytest": "released"}


@pytest.mark.slow
def test_what_failed_is_told_with_pictures_record_and_log(pytester: pytest.Pytester, server: Server) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.parametrize("word", ["a/b", "a:b"])
        @pytest.mark.desktop(isolation="worker")
        def test_wrong(desktop, word):
            desktop.click(30, 40)
            desktop.type("s3cret")
            desktop.click(3000, 40)
        @pytest.fixture
        def early(desktop):
            raise RuntimeError("early")
        def test_early(early): pass
        def test_right(desktop): pass
    """)
    ended = result(pytester, "--junitxml=junit.xml", "-o", "junit_logging=system-out", "--desktop-report-dir=found")
    ended.assert_outcomes(failed=2, passed=1, errors=1)
    folders = list((pytester.path / "found").iterdir())
    assert len(folders) == 3
    cases = ElementTree.parse(pytester.path / "junit.xml").iter("testcase")  # noqa: S314 - our own
    told = {case.get("name"): {p.get("name"): p.get("value") for p in case.iter("property")} for case in cases}
    assert told["test_right"] == {}
    assert told["test_early"]["desktop.lease"].startswith("ls_")
    second = told["test_wrong[a:b]"]
    record = [json.loads(line) for line in Path(second["desktop.record"]).read_text().splitlines()]
    assert [entry["action"]["type"] for entry in record if entry["what"] == "act"] == ["click", "type"]
    assert "s3cret" not in Path(second["desktop.record"]).read_text()
    assert size(second["desktop.film"])[0] > 600, "two frames side by side"
    assert size(second["desktop.last_frame"]) == (200, 120)
    assert Path(second["desktop.log"]).exists()
    assert f"[[ATTACHMENT|{second['desktop.last_frame']}]]" in (pytester.path / "junit.xml").read_text()
    ended.stdout.fnmatch_lines([f"last frame: {pytester.path}/found/*/last.png"])
    assert live(server) == []


@pytest.mark.slow
def test_with_xdist_each_worker_has_its_own_name_and_desktop(pytester: pytest.Pytester, server: Server) -> None:
    pytester.makeini("[pytest]\ndesktop_isolation = worker\ndesktop_profile = local")
    pytester.makepyfile("""
        import pytest
        @pytest.mark.parametrize("number", range(9))
        def test_it(desktop, number, worker_id):
            assert desktop.lease.agent == f"pytest-{worker_id}"
            desktop.type(str(number))
            assert number != 4, desktop.lease.desktop
    """)
    ended = result(pytester, "-n", "3", "--junitxml=junit.xml")
    ended.assert_outcomes(failed=1, passed=8)
    assert "desktop.last_frame" in (pytester.path / "junit.xml").read_text()
    assert {"pytest-gw0", "pytest-gw1", "pytest-gw2"} == set(server.states())
    assert live(server) == []


@pytest.mark.slow
def test_a_worker_that_crashed_leaves_no_lease(pytester: pytest.Pytester, server: Server) -> None:
    pytester.makepyfile("""
        import os, signal, pytest
        @pytest.mark.parametrize("number", range(6))
        def test_it(desktop, number):
            if number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
    """)
    ended = result(pytester, "-n", "3")
    ended.stdout.fnmatch_lines(["*crashed*"])
    ended.assert_outcomes(failed=1, passed=5)
    assert live(server) == []
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("cu-fleet-pytest-*/*"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [("-x",), ("-x", "-n", "2")])
def test_the_first_failure_may_end_it(pytester: pytest.Pytester, server: Server, words: tuple[str, ...]) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.fixture(autouse=True)
        def both(desktop): yield
        def test_wrong(desktop): assert 0
        @pytest.mark.desktop(isolation="worker")
        def test_more(desktop): pass
    """)
    ended = result(pytester, *words)
    assert ended.ret in (1, 2)
    assert live(server) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("-n", "2")])
def test_interrupted_it_gives_back_what_it_had(
    pytester: pytest.Pytester, server: Server, words: tuple[str, ...]
) -> None:
    pytester.makepyfile("""
        import time, pytest
        @pytest.mark.desktop(isolation="worker")
        @pytest.mark.parametrize("number", range(2))
        def test_long(desktop, number):
            time.sleep(60)
    """)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", *_QUICK, *words],
        cwd=pytester.path,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        run(until(lambda: len(live(server, "active")) == max(1, len(words)), timeout=60))
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == 2
    assert set(server.states().values()) <= {"released", "cancelled"}


@pytest.mark.slow
def test_what_cannot_be_lent_is_said_without_a_traceback(pytester: pytest.Pytester, server: Server) -> None:
    pytester.makepyfile("""
        import pytest
        @pytest.mark.desktop(profile="nonsense")
        def test_profile(desktop): pass
        @pytest.mark.desktop("local")
        def test_words(desktop): pass
        @pytest.mark.desktop(isolation="none")
        def test_isolation(desktop): pass
    """)
    ended = result(pytester)
    ended.assert_outcomes(errors=3)
    ended.stdout.fnmatch_lines(["no desktop for this test: *nonsense*", "*mark it as desktop(profile=*"])
    assert live(server) == []


def test_a_suite_that_does_not_use_it_pays_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys
        def test_nothing_heavy():
            loaded = {name.partition(".")[0] for name in sys.modules}
            assert not loaded & {"httpx", "pydantic", "PIL", "docker", "testcontainers"}
            assert "cu_fleet.testing.plugin" in sys.modules
    """)
    result(pytester, "--strict-markers", "-W", "error").assert_outcomes(passed=1)


def test_desktops_given_by_a_run_beside_go_to_their_workers(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [server.acquired(f"run-{number}") for number in range(2)]
    given = [
        {"worker": n, "lease": view.lease, "desktop": view.desktop, "token": view.token} for n, view in enumerate(made)
    ]
    monkeypatch.setenv("CU_FLEET_LEASES", json.dumps(given))
    first, second, third = (House("5s", worker, None) for worker in ("gw0", "gw1", "gw2"))
    try:
        with second.lend(None, None) as theirs, first.lend("local", "worker") as ours:
            assert (ours.id, theirs.id) == (given[0]["lease"], given[1]["lease"])
            theirs.click(1, 1)
            with pytest.raises(ConflictError, match="-n 2"):
                third.lend(None, None)
        first.close()  # as a crash would: its place is free for the worker that comes in its stead
        with third.lend(None, None) as instead:
            assert instead.id == given[0]["lease"]
        with third.lend(None, "test") as own:
            assert own.id not in (given[0]["lease"], given[1]["lease"])
        assert set(live(server)) == {"run-0", "run-1"}
    finally:
        second.close()
        third.close()


def test_a_film_is_one_picture_of_all_its_frames() -> None:
    data = BytesIO()
    Image.new("RGB", (640, 400), "red").save(data, "JPEG")
    sheet = Image.open(BytesIO(strip([Shot(f"click {n} ü→", data.getvalue()) for n in range(6)])))
    assert sheet.size == (4 * 324 + 4, 2 * 220 + 4)
    assert sheet.getpixel((1300 - 10, 100))[0] > 200  # type: ignore[index]
    assert Image.open(BytesIO(strip([]))).width > 100
