"""Desktops held still, kept within their limits, and measured."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.local import LocalBackend, cgroups, processes
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError
from tests.local.support import WHO, Fleet, in_fleet, left_of
from tests.support import until

pytestmark = pytest.mark.real
_COUNT = "n=0; while :; do n=$((n+1)); echo $n > ~/Shared/count; sleep 0.01; done"


async def counting(fleet: Fleet, handle: Handle) -> Path:
    await fleet.sh(handle, 'setsid -f sh -c "$1" </dev/null >/dev/null 2>&1', _COUNT)
    count = fleet.backend.desk(handle).slot / "count"
    await until(lambda: count.exists() and count.read_text())
    return count


def still(first: int) -> bool:
    """Whether nothing inside runs, as the kernel sees it: looked at often enough to catch what does."""
    before = [(s.pid, s.cpu) for s in processes.tree(first)]
    for _ in range(200):
        if any(s.state == "R" for s in processes.tree(first)):
            return False
    return before == [(s.pid, s.cpu) for s in processes.tree(first)]


@pytest.mark.parametrize(("who", "how"), [("root", "cgroup"), ("root", "signal"), ("user", "signal")])
def test_a_frozen_desktop_stands_still_and_goes_on(who: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "signal":
        monkeypatch.setattr(cgroups.Cgroups, "freezer", lambda self, record: None)

    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        count = await counting(fleet, handle)
        await fleet.sh(
            handle, "setsid -f sleep 5555 </dev/null >/dev/null 2>&1; until pkill -STOP -f '^sleep 5555'; do :; done"
        )
        freeze = fleet.backend.abilities.freeze
        assert freeze is not None
        await freeze.freeze(handle)
        await freeze.freeze(handle)
        frozen_at = count.read_text()
        assert still(int(handle["pid"] or 0))
        assert count.read_text() == frozen_at
        assert await fleet.backend.endpoint(handle) is not None
        other = LocalBackend(Place(fleet.home, fleet.id))  # as after the controller was started anew
        assert other.abilities.freeze is not None
        await other.abilities.freeze.thaw(handle)
        await other.abilities.freeze.thaw(handle)
        await until(lambda: count.read_text() not in (frozen_at, ""))
        assert (await fleet.sh(handle, "ps -o stat= -C sleep | grep -c T"))[1] == "1\n", "who was stopped stays so"
        await freeze.freeze(handle)
        await fleet.backend.stop(handle)
        assert left_of(fleet.id, fleet.home) == []

    in_fleet(who, body)


def test_a_forking_crowd_is_held_still_by_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups.Cgroups, "freezer", lambda self, record: None)

    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        crowd = "setsid -f sh -c 'while :; do (:); done' </dev/null >/dev/null 2>&1;" * 3
        await fleet.sh(handle, crowd)
        freeze = fleet.backend.abilities.freeze
        assert freeze is not None
        await freeze.freeze(handle)
        assert still(int(handle["pid"] or 0))
        await freeze.thaw(handle)
        assert (await fleet.sh(handle, "echo on"))[1] == "on\n"

    in_fleet("user", body)


def test_saving_leaves_a_frozen_desktop_frozen() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        freeze, snapshots = fleet.backend.abilities.freeze, fleet.backend.abilities.snapshots
        assert freeze is not None
        assert snapshots is not None
        await freeze.freeze(handle)
        await snapshots.save(handle, "sn_1")
        assert fleet.backend.house.is_frozen(fleet.backend.desk(handle))
        await freeze.thaw(handle)
        await snapshots.save(handle, "sn_2")
        assert not fleet.backend.house.is_frozen(fleet.backend.desk(handle))
        await fleet.backend.stop(handle)
        assert sorted(await snapshots.saved()) == ["sn_1", "sn_2"]

    in_fleet("user", body)


def enforced(fleet: Fleet, *kinds: str) -> None:
    if lacking := {k: v for k, v in fleet.backend.house.cgroups.lacking().items() if k in kinds}:
        pytest.skip(f"this machine does not enforce {lacking}")


def test_a_memory_hog_is_ended_and_its_desktop_lives() -> None:
    async def body(fleet: Fleet) -> None:
        enforced(fleet, "memory")
        handle = await fleet.start(limits={"memory": "128M"})
        hog = "x = []\nwhile len(x) < 512: x.append(bytearray(b'x' * (1 << 20)))\nprint('all of it')"
        code, said = await fleet.python(handle, hog)
        assert code == 137
        assert "all of it" not in said
        assert (await fleet.sh(handle, "pgrep -c '^(Xvnc|openbox)$'"))[1] == "2\n"

    in_fleet("root", body)


def test_a_fork_bomb_is_bounded() -> None:
    async def body(fleet: Fleet) -> None:
        enforced(fleet, "pids")
        handle = await fleet.start(limits={"processes": 40})
        bomb = """
import os, signal
pids = []
try:
    while len(pids) < 200:
        pid = os.fork()
        if pid == 0: signal.pause()
        pids.append(pid)
except OSError as e:
    print(e.errno, len(pids))
for pid in pids: os.kill(pid, 9)
"""
        _, said = await fleet.python(handle, bomb)
        number, made = map(int, said.split())
        assert number == 11  # EAGAIN
        assert made < 40
        assert (await fleet.sh(handle, "echo alive"))[1] == "alive\n"

    in_fleet("root", body)


def test_processor_time_is_bounded() -> None:
    async def body(fleet: Fleet) -> None:
        enforced(fleet, "cpu")
        handle = await fleet.start(limits={"cpus": 0.3})
        await fleet.sh(handle, "setsid -f sh -c 'while :; do :; done' </dev/null >/dev/null 2>&1")
        folders = json.loads(fleet.backend.desk(handle).cgroups.read_text())
        stats = [path for folder in folders if (path := Path(folder, "cpu.stat")).exists()]

        def throttled() -> bool:
            lines = [line.split() for path in stats for line in path.read_text().splitlines()]
            return any(name == "nr_throttled" and int(value) > 3 for name, value in lines)

        await until(throttled)

    in_fleet("root", body)


def test_where_limits_cannot_be_enforced_it_is_said_and_insisting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups.Cgroups, "_folder", lambda *args: None)

    async def body(fleet: Fleet) -> None:
        await fleet.start()
        with pytest.raises(UnavailableError, match="insists on its limits"):
            await fleet.start(options={"require_limits": True})
        checks = {check.name: check for check in await fleet.backend.check()}
        assert not checks["limits"].ok
        assert not checks["limits"].needed
        assert "memory: " in checks["limits"].detail

    in_fleet("user", body)


def test_a_group_that_cannot_be_joined_fails_only_who_insists(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = cgroups.Groups((Path("/no/such/group"),), {})
    monkeypatch.setattr(cgroups.Cgroups, "make", lambda *args: groups)

    async def body(fleet: Fleet) -> None:
        assert (await fleet.sh(await fleet.start(), "echo on"))[1] == "on\n"
        with pytest.raises(UnavailableError, match="/no/such/group"):
            await fleet.start(options={"require_limits": True})
        assert set(fleet.backend.house.cgroups.lacking()) == {"memory", "pids", "cpu"}

    in_fleet("user", body)


CALL_BUS = (
    "import os, socket; bus = socket.socket(socket.AF_UNIX);"
    "bus.connect(os.environ['DBUS_SESSION_BUS_ADDRESS'].partition('=')[2]);"
    "bus.sendall(b'\\0AUTH\\r\\n'); print(bus.recv(99).split()[0].decode())"
)


@WHO
def test_usage_is_measured_and_an_idle_desktop_is_small(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.start()  # what two desktops share is nobody's private memory
        handle = await fleet.start()
        meter = fleet.backend.abilities.meter
        assert meter is not None
        usage = await meter.usage(handle)
        assert usage.memory_bytes is not None
        assert 5 << 20 < usage.memory_bytes < 40 << 20
        assert usage.processes == 4, "bubblewrap, our init, Xvnc and the window manager"
        told = await fleet.sh(handle, '/usr/bin/python3 -c "$1"; pgrep -c dbus-daemon', CALL_BUS)
        assert told == (0, "REJECTED\n1\n"), "the session bus begins with its first caller, and answers"
        await fleet.sh(handle, "timeout 1 sh -c 'while :; do :; done'")
        busier = await meter.usage(handle)
        assert usage.cpu_seconds is not None
        assert busier.cpu_seconds is not None
        assert busier.cpu_seconds > usage.cpu_seconds
        await fleet.backend.stop(handle)
        with pytest.raises(UnavailableError, match="does not run"):
            await meter.usage(handle)

    in_fleet(who, body)


@WHO
def test_doctor_finds_this_machine_fit(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        checks = await fleet.backend.check(fleet.spec().profile)
        assert [c for c in checks if c.needed and not c.ok] == []
        assert {c.name for c in checks} == {
            "programs", "python3-xlib", "accessibility", "home", "namespaces", "limits", "disk", "profile p",
            "network",
        }  # fmt: skip

    in_fleet(who, body)


def test_many_at_once_have_users_and_screens_of_their_own() -> None:
    async def body(fleet: Fleet) -> None:
        handles = await asyncio.gather(*(fleet.start() for _ in range(6)))
        answers = await asyncio.gather(*(fleet.sh(h, "hostname") for h in handles))
        assert sorted(said.strip() for _, said in answers) == [f"label-{n}" for n in range(1, 7)]
        if os.geteuid() == 0:
            assert len({h["uid"] for h in handles}) == 6

    in_fleet("root" if os.geteuid() == 0 else "user", body)
