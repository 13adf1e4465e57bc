"""Starting a controller on demand: once, in its own words if it fails, and never as anybody's child."""

import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

from cu_fleet.client import Desktop, Fleet
from cu_fleet.client import start as client_start
from cu_fleet.client.start import start_controller
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.lease import Lease
from cu_fleet.model.view import LeaseView, lease_view
from tests.support import run, until


def _command(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    monkeypatch.setattr(client_start, "COMMAND", (sys.executable, "-c", script))


def _view() -> LeaseView:
    lease = Lease(id="ls_0123456789", agent="a", profile="local", backend="local", asked_at=0.0, asked_by="agent a")
    return lease_view(lease, None, 0.0)


def _runs(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


async def _never() -> bool:
    return False


def test_one_that_fails_is_told_in_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        home = tmp_path / "new" / "home"
        home.mkdir(parents=True, mode=0o700)
        (home / "controller.log").write_text("old words\n")
        _command(monkeypatch, "import sys; print('bwrap is missing', file=sys.stderr); sys.exit(1)")
        with pytest.raises(UnavailableError, match=r"exit code 1.*bwrap is missing") as caught:
            await start_controller(home, _never)
        assert "old words" not in str(caught.value)
        assert str(home / "controller.log") in caught.value.remedy

    run(body())


def test_the_home_it_makes_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        home = tmp_path / "home"
        _command(monkeypatch, "")
        before = os.umask(0)
        try:
            with pytest.raises(UnavailableError, match="it said nothing"):
                await start_controller(home, _never)
        finally:
            os.umask(before)
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "controller.log").stat().st_mode) == 0o600

    run(body())


def test_it_is_detached_and_knows_only_its_own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        monkeypatch.setenv("CU_FLEET_URL", "http://elsewhere")
        monkeypatch.setenv("CU_FLEET_TOKEN", "cfo_secret")
        monkeypatch.setenv("CU_FLEET_HOME", "/elsewhere")
        _command(
            monkeypatch,
            "import os, json; home = os.environ['CU_FLEET_HOME']; "
            "env = sorted(k for k in os.environ if k.startswith('CU_FLEET')); "
            "json.dump([os.getsid(0) == os.getpid(), os.getcwd(), env], open(home + '/seen', 'w'))",
        )

        async def seen() -> bool:
            return (tmp_path / "seen").exists() and bool((tmp_path / "seen").read_text())

        await start_controller(tmp_path, seen)
        assert (tmp_path / "seen").read_text() == '[true, "/", ["CU_FLEET_HOME"]]'

    run(body())


def test_one_that_loses_the_race_tries_again_until_somebody_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.setattr(client_start, "_AGAIN", 0.01)
        script = "import os, sys; open(os.environ['CU_FLEET_HOME'] + '/tries', 'a').write('x'); sys.exit(3)"
        _command(monkeypatch, script)

        async def third() -> bool:
            return (tmp_path / "tries").exists() and len((tmp_path / "tries").read_text()) >= 3

        await start_controller(tmp_path, third)

    run(body())


def test_one_that_is_refused_though_nobody_has_the_home_is_told_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        monkeypatch.setattr(client_start, "_AGAIN", 0.01)
        _command(monkeypatch, "import sys; print('a newer database', file=sys.stderr); sys.exit(3)")
        with pytest.raises(UnavailableError, match=r"was refused: .*a newer database"):
            await start_controller(tmp_path, _never)

    run(body())


def test_one_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        _command(monkeypatch, "import os, time; print(os.getpid(), flush=True); time.sleep(600)")
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.5 s"):
            await start_controller(tmp_path, _never, timeout=0.5)
        log = (tmp_path / "controller.log").read_text()
        if log:
            os.kill(int(log), 9)

    run(body())


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    async def body() -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UnavailableError, match="cannot start a controller"):
            await start_controller(tmp_path / "file" / "home", _never)

    run(body())


@pytest.mark.real
def test_many_who_need_one_get_the_same(tmp_path: Path) -> None:
    async def body() -> None:
        home = tmp_path / "home"
        fleets = [Fleet.connect(home=home) for _ in range(4)]
        try:
            await asyncio.gather(*(fleet.__aenter__() for fleet in fleets))
            statuses = [await fleet.status() for fleet in fleets]
            [pid] = {status["pid"] for status in statuses}
            assert os.getsid(pid) == pid
            await fleets[0].shutdown(within=60)
            assert not _runs(pid)
            assert not (home / "controller.sock").exists()
            assert (await fleets[1].status())["pid"] != pid  # the next who needs one starts one
            await fleets[1].shutdown()
        finally:
            for fleet in fleets:
                await fleet.close()

    run(body(), timeout=120)


@pytest.mark.real
def test_a_lease_does_not_start_again_what_was_shut_down(tmp_path: Path) -> None:
    async def body() -> None:
        async with Fleet.connect(home=tmp_path / "home") as fleet:
            await fleet.shutdown(within=60)
            desktop = Desktop(fleet._wire, _view())  # noqa: SLF001 - as a lease of it would be left behind
            with pytest.raises(UnavailableError, match="no controller runs"):
                await desktop.click(1, 1)
            with pytest.raises(UnavailableError, match="no controller runs"):
                await desktop.renew()
            assert not (tmp_path / "home" / "controller.sock").exists()

    run(body(), timeout=120)


@pytest.mark.real
def test_one_that_cannot_start_says_why(tmp_path: Path) -> None:
    async def body() -> None:
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        (home / "config.yaml").write_text("colour: red\n")
        with pytest.raises(UnavailableError, match="colour"):
            async with Fleet.connect(home=home):
                raise AssertionError("connected")
        await until(lambda: not (home / "controller.sock").exists())

    run(body())
