"""A desktop starts as its profile says, or is refused in words; and ends without leaving anything."""

# In a test, nobody else waits for the loop.
# ruff: noqa: ASYNC221, ASYNC240

import contextlib
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cu_fleet.backends import door
from cu_fleet.backends.local.launch import Launch
from cu_fleet.model.errors import BrokenError, FleetError, InvalidError, UnavailableError
from tests.local.support import WHO, Fleet, in_fleet, last, left_of
from tests.support import until

pytestmark = pytest.mark.real


@WHO
def test_it_is_what_the_profile_says(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start(
            screen={"width": 1000, "height": 700, "dpi": 120},
            timezone="Asia/Tokyo",
            keyboard="de(nodeadkeys)",
            env={"GREETING": "hello there"},
            autostart=[["sh", "-c", "echo $GREETING > ~/greeted"]],
        )
        endpoint = await fleet.backend.endpoint(handle)
        assert endpoint is not None
        with await endpoint.connect() as sock:
            assert await door.screen_size(sock) == (1000, 700)
        code, said = await fleet.sh(
            handle, "id -un; id -u; pwd; date +%Z; hostname; setxkbmap -query; xrdb -query; echo $GREETING"
        )
        assert code == 0
        assert said.split("\n")[:5] == ["agent", "1000", "/home/agent", "JST", "label-1"]
        assert "layout:     us,de" in said
        assert "variant:    ,nodeadkeys" in said, "behind a US keyboard, for commands"
        assert "Xft.dpi:\t120" in said
        assert "hello there" in said

        async def greeted() -> bool:
            return "hello there" in (await fleet.sh(handle, "cat ~/greeted"))[1]

        await until(greeted)

    in_fleet(who, body)


@WHO
def test_window_manager_and_session_bus_serve(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        assert (await fleet.sh(handle, "xprop -root _NET_SUPPORTING_WM_CHECK"))[1].startswith("_NET_SUPPORTING_WM_CHE")
        bus = "org.freedesktop.DBus"
        code, said = await fleet.sh(handle, f"dbus-send --session --print-reply --dest={bus} / {bus}.GetId")
        assert code == 0, said
        pixel = "display.Display().screen().root.get_image(5, 5, 1, 1, 2, 0xffffffff).data"
        script = f"from Xlib import display; print({pixel})"
        code, said = await fleet.python(handle, script)
        assert code == 0, said
        assert "\\x00\\x00\\x00" not in said, "the root window is black"

    in_fleet(who, body)


@WHO
def test_nothing_of_the_controllers_environment_gets_in(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER_NAME", "stray-value")
    monkeypatch.setenv("CU_FLEET_TOKEN", "stray-value")

    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        _, said = await fleet.sh(handle, "env; cat /proc/*/environ")
        assert "stray-value" not in said
        one = (await fleet.sh(handle, "cat /etc/machine-id"))[1]
        assert one != Path("/etc/machine-id").read_text()
        await last(fleet.backend.start(fleet.spec(str(handle["desktop"]))))
        assert (await fleet.sh(handle, "cat /etc/machine-id"))[1] != one

    in_fleet(who, body)


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ({"locale": "xx_XX.UTF-8"}, "locale xx_XX.UTF-8 is not installed here"),
        ({"timezone": "Europe/Atlantis"}, "no time zone Europe/Atlantis"),
        ({"keyboard": "zz"}, "no keyboard layout zz"),
        ({"keyboard": "de(klingon)"}, "no variant klingon"),
        ({"options": {"fast": True}}, "options.fast"),
        ({"home": "no-such-template"}, "no folder 'no-such-template'"),
        ({"env": {"A=B": "c"}}, "'A=B' is no variable"),
    ],
)
def test_what_cannot_be_had_is_refused(profile: dict[str, object], words: str) -> None:
    async def body(fleet: Fleet) -> None:
        with pytest.raises(FleetError) as refusal:
            await fleet.start(**profile)
        assert words in str(refusal.value)

    in_fleet("user", body)


def test_a_missing_program_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from cu_fleet.backends.local import demands

    monkeypatch.setitem(demands.PACKAGES, "no-such-program", "its-package")

    async def body(fleet: Fleet) -> None:
        with pytest.raises(UnavailableError) as refusal:
            await fleet.start()
        assert "no-such-program" in str(refusal.value)
        assert "apt-get install -y --no-install-recommends its-package" in str(refusal.value)

    in_fleet("user", body)


def test_a_home_that_desktops_would_see_is_refused() -> None:
    async def body(fleet: Fleet) -> None:
        fleet.backend.house.home = Path("/usr/share/somewhere")
        with pytest.raises(InvalidError, match="lies in /usr"):
            await fleet.start()

    in_fleet("user", body)


@WHO
def test_a_screen_that_does_not_come_up_is_told_with_the_log(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cu_fleet.backends.local import walls

    command = walls.command
    monkeypatch.setattr(walls, "command", lambda *args: [*command(*args), "-no-such-option"])

    async def body(fleet: Fleet) -> None:
        with pytest.raises(UnavailableError, match="no-such-option"):
            await fleet.start("dk_bad")
        monkeypatch.undo()
        await fleet.start("dk_bad")

    in_fleet(who, body)


def test_a_window_manager_that_does_not_come_up_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from cu_fleet.backends import inside
    from cu_fleet.backends.local import backend

    idle = inside.INIT.replace('"openbox", "--sm-disable"', '"sh", "-c", "echo waits >&2; exec sleep 60"')
    monkeypatch.setattr(inside, "INIT", idle)
    monkeypatch.setattr(backend, "_SECONDS_TO_START", 2.0)

    async def body(fleet: Fleet) -> None:
        with pytest.raises(UnavailableError, match=r"not up within 2 s(.|\n)*waits"):
            await fleet.start()

    in_fleet("user", body)


def test_a_screen_of_another_size_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from cu_fleet.backends.local import walls

    command = walls.command
    monkeypatch.setattr(walls, "command", lambda *args: [w.replace("1280x800", "1024x768") for w in command(*args)])

    async def body(fleet: Fleet) -> None:
        with pytest.raises(BrokenError, match="is 1024x768, not 1280x800"):
            await fleet.start()

    in_fleet("user", body)


@WHO
def test_bubblewraps_refusal_is_told(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from cu_fleet.backends.local import walls

    arguments = walls.arguments
    monkeypatch.setattr(walls, "arguments", lambda *args: [*arguments(*args), "--ro-bind", "/no/such/source", "/x"])

    async def body(fleet: Fleet) -> None:
        with pytest.raises(UnavailableError, match="/no/such/source"):
            await fleet.start()

    in_fleet(who, body)


@WHO
def test_stop_is_idempotent_and_takes_any_handle(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handles = [dict(h) async for h in fleet.backend.start(fleet.spec("dk_a"))]
        assert len(handles) >= 2
        assert handles[0] == {"desktop": "dk_a"}
        for handle in (*handles, *handles, {"desktop": "dk_never"}):
            await fleet.backend.stop(handle)
        assert await fleet.backend.endpoint(handles[-1]) is None
        assert left_of(fleet.id, fleet.home) == []

    in_fleet(who, body)


@WHO
@pytest.mark.parametrize("steps", [1, 2])
def test_given_up_at_each_handle_then_stopped(who: str, steps: int) -> None:
    async def body(fleet: Fleet) -> None:
        starting = fleet.backend.start(fleet.spec("dk_a"))
        for _ in range(steps):
            handle = await anext(starting)
        await starting.aclose()  # type: ignore[attr-defined]
        await fleet.backend.stop(handle)
        assert left_of(fleet.id, fleet.home) == []

    in_fleet(who, body)


_CONTROLLER = """
import asyncio, os, sys
from pathlib import Path
from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.local import LocalBackend, house, launch
from cu_fleet.model.profile import Profile

where, again, home, fleet = sys.argv[1:]

async def main():
    backend = LocalBackend(Place(Path(home), fleet))
    profile = Profile(name="p", backend="local")
    die = lambda: os.kill(os.getpid(), 9)
    if again == "again":
        async for _ in backend.start(Spec("dk_a", profile, "before", "label")):
            pass
    for one, name in ((launch.Launch, "begin"), (house.House, "end"), (house.walls, "prepare")):
        if where == name:
            step = getattr(one, name)
            setattr(one, name, lambda *args: (step(*args), die()))
    if where == "go":
        go = launch.Launch.go
        async def dies(*args):
            await go(*args)
            die()
        launch.Launch.go = dies
    if where == "spawn":
        spawn = launch._posix_spawn
        launch._posix_spawn = lambda *args: (spawn(*args), die())
    n = 0
    async for handle in backend.start(Spec("dk_a", profile, "boot", "label")):
        n += 1
        if where == f"handle{n}":
            die()
    die()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("where", "again"),
    [
        *((where, "first") for where in ("handle1", "spawn", "begin", "go", "handle2", "ready")),
        *((where, "again") for where in ("begin", "end", "prepare")),
    ],
)
def test_a_killed_controller_leaves_nothing_that_stop_cannot_end(where: str, again: str) -> None:
    async def body(fleet: Fleet) -> None:
        argv = [sys.executable, "-c", _CONTROLLER, where, again, str(fleet.home), fleet.id]
        killed = subprocess.run(argv, check=False, timeout=30, env={"PYTHONPATH": str(Path.cwd())})
        assert killed.returncode == -signal.SIGKILL
        if where == "ready":
            handle = {"desktop": "dk_a"}
            assert await fleet.backend.endpoint(handle) is not None, "desktops outlive their controller"
            assert (await fleet.sh(handle, "echo still here"))[1] == "still here\n"
        if where != "handle1" or again == "again":
            assert [f.desktop for f in await fleet.backend.found()] == ["dk_a"]
        await fleet.backend.stop({"desktop": "dk_a"})
        assert left_of(fleet.id, fleet.home) == []

    in_fleet("root" if os.geteuid() == 0 else "user", body)


def test_started_again_over_what_a_killed_controller_left() -> None:
    async def body(fleet: Fleet) -> None:
        argv = [sys.executable, "-c", _CONTROLLER, "ready", "first", str(fleet.home), fleet.id]
        subprocess.run(argv, check=False, timeout=30, env={"PYTHONPATH": str(Path.cwd())})
        spec = fleet.spec("dk_a")
        handle = await last(fleet.backend.start(spec))
        desk, uid = fleet.backend.desk(handle), fleet.backend.house.uid(fleet.backend.desk(handle))
        assert await door.ping(desk, uid) == (spec.boot, "1280x800")

    in_fleet("root" if os.geteuid() == 0 else "user", body)


@WHO
def test_a_dead_screen_ends_the_desktop(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        with contextlib.suppress(UnavailableError):  # it is lost with the desktop
            await fleet.sh(handle, "pkill -9 '^X(tiger)?vnc$'")

        async def gone() -> bool:
            return await fleet.backend.endpoint(handle) is None

        await until(gone)
        assert "the X server ended" in fleet.log(handle)

    in_fleet(who, body)


@WHO
def test_a_dead_window_manager_is_replaced(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        await fleet.sh(handle, "sleep 1.2; pkill -9 openbox")

        async def back() -> bool:
            return (await fleet.sh(handle, "pgrep openbox"))[0] == 0

        await until(back)

    in_fleet(who, body)


def test_desktops_have_host_users_of_their_own() -> None:
    async def body(fleet: Fleet) -> None:
        one, two = await fleet.start(), await fleet.start()
        assert one["uid"] != two["uid"]
        uids = {Path(f"/proc/{handle['pid']}").stat().st_uid for handle in (one, two)}
        assert uids == {one["uid"], two["uid"]}
        assert os.geteuid() not in uids

    in_fleet("root", body)


def test_rollback_gives_a_clean_home_and_keeps_the_slot() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start("dk_a")
        await fleet.sh(
            handle, "echo x > ~/mess; echo y > /tmp/mess; echo z > ~/Shared/kept; setsid sleep 99 >/dev/null 2>&1 &"
        )
        snapshots = fleet.backend.abilities.snapshots
        assert snapshots is not None
        await snapshots.save(handle, "sn_1")
        assert (await fleet.sh(handle, "cat ~/mess"))[1] == "x\n", "it goes on after it was saved"
        handle = await last(snapshots.restore(handle, fleet.spec("dk_a")))
        code, said = await fleet.sh(handle, "cat ~/Shared/kept; ls ~/mess /tmp/mess; pgrep sleep")
        assert said.startswith("z\n")
        assert code == 1
        assert said.count("No such file") == 2
        handle = await last(snapshots.restore(handle, fleet.spec("dk_a", snapshot="sn_1")))
        assert (await fleet.sh(handle, "cat ~/mess /tmp/mess"))[1] == "x\ny\n"
        assert await snapshots.saved() == ["sn_1"]
        await snapshots.delete("sn_1")

    in_fleet("root" if os.geteuid() == 0 else "user", body)


@WHO
def test_everything_inherited_is_closed(who: str) -> None:
    """A descriptor that some library of the controller left open for children must not reach a desktop."""

    async def body(fleet: Fleet) -> None:
        secret = fleet.home / "secret"
        secret.write_text("x")
        fd = os.open(secret, os.O_RDONLY)
        os.set_inheritable(fd, True)
        try:
            handle = await fleet.start()
        finally:
            os.close(fd)
        _, said = await fleet.sh(handle, "ls -l /proc/[0-9]*/fd")
        assert "secret" not in said

    in_fleet(who, body)


def _open_files() -> set[tuple[str, str]]:
    found = set()
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one by which this folder is read
            found.add((path.name, str(path.readlink())))
    return found


def test_launch_is_closed_when_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Launch) -> str:
        raise UnavailableError("made to fail")

    monkeypatch.setattr(Launch, "ready", fail)

    async def body(fleet: Fleet) -> None:
        gc.collect()  # what tests before this one left to be collected is not to be taken for ours
        before = _open_files()
        with pytest.raises(UnavailableError, match="made to fail"):
            await fleet.start()
        assert _open_files() - before == set()

    in_fleet("user", body)
