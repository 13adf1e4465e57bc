"""What can be decided without starting a desktop: filters, groups, users, mount points, and what doctor says."""

import asyncio
import errno
import os
import stat
import struct
import threading
from pathlib import Path

import pytest

from cu_fleet.backends import door
from cu_fleet.backends.base import Check, Place
from cu_fleet.backends.local import cgroups, checks, demands, seccomp, walls
from cu_fleet.backends.local.cgroups import Cgroups
from cu_fleet.backends.local.etc import Etc, copy
from cu_fleet.backends.local.layout import Layout
from cu_fleet.guest import init
from cu_fleet.model.errors import BrokenError, UnavailableError
from cu_fleet.model.profile import Limits, Profile

ALLOW = 0x7FFF0000


def judge(machine: str, arch: int, number: int, *args: int) -> int:
    """What the kernel would make of a call: the filter, interpreted."""
    code = seccomp.program(machine)
    assert code is not None
    lines = list(struct.iter_unpack("<HBBI", code))
    data = struct.pack("<iIQ6Q", number, arch, 0, *args, *[0] * (6 - len(args)))
    at, value = 0, 0
    while True:
        op, yes, no, k = lines[at]
        at += 1
        if op == 0x20:
            (value,) = struct.unpack_from("<I", data, k)
        elif op == 0x06:
            return int(k)
        else:
            at += yes if (value == k if op == 0x15 else value >= k) else no


@pytest.mark.parametrize(
    ("machine", "arch", "read", "keyctl", "connect", "ioctl", "open_socket"),
    [("x86_64", 0xC000003E, 0, 250, 42, 16, 41), ("aarch64", 0xC00000B7, 63, 219, 203, 29, 198)],
)
def test_the_filter(
    machine: str, arch: int, read: int, keyctl: int, connect: int, ioctl: int, open_socket: int
) -> None:
    for number in (read, connect):
        assert judge(machine, arch, number) == ALLOW
    assert judge(machine, arch, keyctl) == 0x50000 | 38
    assert judge(machine, arch, ioctl, 0, 0x5413) == ALLOW
    assert judge(machine, arch, ioctl, 0, 0x5412) == 0x50000 | 1
    assert judge(machine, arch, ioctl, 0, 0x1_0000_5412) == 0x50000 | 1, "the kernel looks at the low half only"
    for family, answer in ((1, ALLOW), (2, ALLOW), (10, ALLOW), (16, ALLOW), (40, 0x50000 | 97), (17, 0x50000 | 97)):
        assert judge(machine, arch, open_socket, family) == answer
    assert judge(machine, 0x40000003, read) == 0x50000 | 38, "32-bit calls have other numbers"


def test_x32_calls_are_refused_and_unknown_machines_have_no_filter() -> None:
    assert judge("x86_64", 0xC000003E, 0x40000000) == 0x50000 | 38
    assert seccomp.program("riscv64") is None


def test_requests_survive_packing() -> None:
    lists = [["run", ""], [], ["a b", "", "x\ny", "ü", "\udcff"]]
    assert init.unpack(init.pack(lists)) == lists


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    """A version 2 hierarchy as files; the kernel's own making of files is imitated by `mkdir` below."""
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids")
    (tmp_path / "cgroup.subtree_control").write_text("memory pids cpu")
    return tmp_path


def unified(v2: Path, monkeypatch: pytest.MonkeyPatch, *, root: bool, own: str = "/user.slice/s.scope") -> Cgroups:
    mkdir = Path.mkdir

    def made(self: Path, *args: object, **more: object) -> None:
        mkdir(self, *args, **more)  # type: ignore[arg-type]
        if self.is_relative_to(v2):
            for name in ("cgroup.controllers", "cgroup.subtree_control"):
                (self / name).write_text("memory pids cpu")
            for name in ("cgroup.procs", "memory.max", "memory.swap.max", "pids.max", "cpu.max", "cgroup.freeze"):
                (self / name).touch()

    monkeypatch.setattr(Path, "mkdir", made)
    monkeypatch.setattr(os, "geteuid", lambda: 0 if root else 1000)
    return Cgroups("f", f"cgroup2 {v2} cgroup2 rw 0 0\n", f"0::{own}\n")


def test_limits_on_version_2_as_root(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = unified(v2, monkeypatch, root=True).make("dk_a", Limits(memory=1 << 30, processes=99, cpus=0.5), v2 / "r")
    folder = v2 / "cu-fleet-f/dk_a"
    assert groups.joins == (folder,)
    assert groups.lacking == {}
    found = {name: (folder / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max", "cpu.max")}
    assert found == {"memory.max": str(1 << 30), "memory.swap.max": "0", "pids.max": "99", "cpu.max": "50000 100000"}


def test_limits_on_version_2_where_they_were_delegated(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = unified(v2, monkeypatch, root=False)
    scope = v2 / "user.slice/s.scope"
    scope.mkdir(parents=True)
    assert made.make("dk_a", Limits(), v2 / "r").joins == (scope / "cu-fleet-f/dk_a",)
    assert made.freezer(v2 / "r") == scope / "cu-fleet-f/dk_a"
    again = unified(v2, monkeypatch, root=False, own=f"/user.slice/s.scope/{cgroups._LEAF}")  # noqa: SLF001
    assert again.make("dk_b", Limits(), v2 / "r").joins == (scope / "cu-fleet-f/dk_b",)


@pytest.mark.parametrize("root", [True, False])
def test_who_is_in_the_way_of_limits_on_version_2_moves_into_a_leaf(
    root: bool, v2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container for root, and in a scope for others."""
    made = unified(v2, monkeypatch, root=root)
    top = v2 if root else v2 / "user.slice/s.scope"
    top.mkdir(parents=True, exist_ok=True)
    (top / "cgroup.procs").write_text("17")
    (top / "cgroup.subtree_control").write_text("")
    enable = cgroups._enable  # noqa: SLF001

    def busy(folder: Path, kinds: list[str]) -> None:
        if folder == top and not (top / cgroups._LEAF).exists():  # noqa: SLF001
            raise OSError(errno.EBUSY, "Device or resource busy", str(folder))
        enable(folder, kinds)

    monkeypatch.setattr(cgroups, "_enable", busy)
    groups = made.make("dk_a", Limits(), v2 / "r")
    assert (groups.joins, groups.lacking) == ((top / "cu-fleet-f/dk_a",), {})
    assert (top / cgroups._LEAF / "cgroup.procs").read_text() == "17"  # noqa: SLF001


def test_limits_that_were_not_delegated_are_said_to_be_lacking(v2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = unified(v2, monkeypatch, root=False)  # the scope does not exist, as if it could not be written
    groups = made.make("dk_a", Limits(), v2 / "r")
    assert groups.joins == ()
    assert set(groups.lacking) == {"memory", "pids", "cpu"}
    assert "s.scope" in groups.lacking["memory"]


def test_no_cgroups_at_all(tmp_path: Path) -> None:
    groups = Cgroups("f", "proc /proc proc rw 0 0\n", "").make("dk_a", Limits(), tmp_path / "r")
    assert groups.joins == ()
    assert groups.lacking["pids"] == "this machine has no cgroup controller pids"


def test_the_last_to_leave_does_not_cost_the_next_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = "".join(f"cgroup {tmp_path}/{kind} cgroup rw,{kind} 0 0\n" for kind in (*cgroups.KINDS, "freezer"))
    groups = Cgroups("f", mounts, "")
    settings = cgroups._settings  # noqa: SLF001
    vanished: list[Path] = []

    def vanishing(kind: str, limits: Limits, folder: Path) -> object:
        if not vanished:
            vanished.append(folder)
            folder.rmdir()  # as if the other's removal had come between making the fleet's folder and our own
        return settings(kind, limits, folder)

    monkeypatch.setattr(cgroups, "_settings", vanishing)
    made = groups.make("dk_a", Limits(), tmp_path / "r")
    assert made.lacking == {}
    assert all(folder.is_dir() for folder in made.joins)
    assert len(made.joins) == 4


def test_a_half_written_record_of_groups_means_none(tmp_path: Path) -> None:
    (tmp_path / "r").write_text('["/sys/fs/cg')
    assert Cgroups("f", "", "").remove(tmp_path / "r")


def test_host_users_are_taken_once_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    layout = Layout(Place(tmp_path, "f1"))
    one, two = layout.take_uid("dk_1"), layout.take_uid("dk_2")
    assert one is not None
    assert two is not None
    assert one != two
    assert layout.take_uid("dk_1") == one == Layout(Place(tmp_path, "f1")).uid("dk_1")
    assert 0x7000_0000 <= one < 0x8000_0000
    assert list(layout.known()) == ["dk_1", "dk_2"]
    layout.free_uid("dk_1")
    assert layout.take_uid("dk_3") == one
    assert Layout(Place(tmp_path / "other", "f2")).take_uid("dk_1") != one, "each fleet has a range of its own"


def test_host_users_are_found_while_others_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    layout = Layout(Place(tmp_path, "f1"))
    mine = layout.take_uid("dk_mine")
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            layout.take_uid("dk_other")
            layout.free_uid("dk_other")

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        assert {layout.uid("dk_mine") for _ in range(500)} == {mine}
    finally:
        over.set()
        other.join()


def test_the_lock_is_seen_without_being_taken(tmp_path: Path) -> None:
    desk = Layout(Place(tmp_path, "f")).desk("dk_1")
    assert not desk.is_locked()
    desk.dir.mkdir(parents=True)
    fd = desk.lock()
    assert desk.is_locked()
    assert not desk.is_locked(but=fd)
    other = desk.lock()
    assert desk.is_locked(but=fd), "who comes next waits beside who still runs"
    os.close(other)
    assert not desk.is_locked(but=fd)
    heir = os.dup(fd)
    os.close(fd)
    assert desk.is_locked(), "whoever inherited it still holds it"
    os.close(heir)
    assert not desk.is_locked()


def test_what_is_mounted_on_is_a_folder_whatever_was_left_there(tmp_path: Path) -> None:
    desk = Layout(Place(tmp_path, "f")).desk("dk_1")
    outside = tmp_path / "outside"
    outside.write_text("untouched")
    for folder, name in (("home", "Shared"), ("tmp", ".X11-unix")):
        (desk.state / folder).mkdir(parents=True)
        (desk.state / folder / name).symlink_to(outside)
    walls.clear_way(desk)
    assert not os.path.lexists(desk.state / "home/Shared")
    assert not os.path.lexists(desk.state / "tmp/.X11-unix")
    assert outside.read_text() == "untouched"


def test_only_what_anybody_may_read_of_etc_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "ssl"
    (source / "private").mkdir(parents=True)
    (source / "private/key").write_text("secret")
    (source / "private").chmod(0o710)
    (source / "certs").mkdir()
    (source / "certs/ca").write_text("cert")
    (source / "token").write_text("secret")
    (source / "token").chmod(0o600)
    (source / "link").symlink_to("/nowhere")
    os.mkfifo(source / "fifo")
    copy(source, tmp_path / "copy")
    found = sorted(str(p.relative_to(tmp_path / "copy")) for p in (tmp_path / "copy").rglob("*"))
    assert found == ["certs", "certs/ca", "link"]
    assert (tmp_path / "copy/link").readlink() == Path("/nowhere")


def test_etc_is_copied_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = tmp_path / "etc"
    (host / "fonts").mkdir(parents=True)
    (host / "shadow").write_text("secret")
    monkeypatch.setattr("cu_fleet.backends.local.etc._ETC", host)
    etc = Etc(tmp_path / "copies", "/own")
    first = etc.current()
    assert etc.current() == first
    assert not (first / "shadow").exists()
    assert (first / "passwd").readlink() == Path("/own/passwd")
    (host / "fonts/new.conf").write_text("x")
    os.utime(host / "fonts", (1, 1))
    second = etc.current()
    assert (second / "fonts/new.conf").read_text() == "x"
    assert second != first
    assert sorted(p.name for p in (tmp_path / "copies").iterdir()) == [second.name]


def test_a_door_that_is_a_link_is_not_gone_through(tmp_path: Path) -> None:
    desk = Layout(Place(tmp_path, "f")).desk("dk_1")
    desk.run.mkdir(parents=True)
    (desk.run / "rfb.sock").symlink_to("/run/dbus/system_bus_socket")
    with pytest.raises(BrokenError, match="not a socket of its own"):
        door.connect(desk, "rfb.sock", os.geteuid())
    with pytest.raises(UnavailableError, match="does not answer"):
        door.connect(desk, "exec.sock", os.geteuid())


@pytest.mark.parametrize(
    ("switch", "value", "command"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "apparmor_parser --replace /etc/apparmor.d/bwrap"),
        ("kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=28633"),
    ],
)
def test_doctor_knows_who_forbids_namespaces(
    switch: str, value: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(argv: list[str], seconds: float = 0) -> tuple[int, str]:
        return 1, "bwrap: setting up uid map: Permission denied"

    monkeypatch.setattr(checks, "_try", fails)
    monkeypatch.setattr(checks, "_sysctl", lambda name: value if name == switch else "")
    monkeypatch.setattr(demands, "which", lambda program: f"/usr/bin/{program}")
    check: Check = asyncio.run(checks._namespaces())  # noqa: SLF001
    assert not check.ok
    assert command in [" ".join(words) for words in check.fix]


def test_doctor_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demands, "which", lambda program: None if program == "openbox" else "/usr/bin/x")
    check = checks._programs(None)  # noqa: SLF001
    assert not check.ok
    assert "openbox (package openbox)" in check.detail
    assert check.fix[-1] == ("apt-get", "install", "-y", "--no-install-recommends", "openbox")


def test_doctor_names_what_desktops_offer_and_could_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demands, "which", lambda program: None if program == "mousepad" else "/usr/bin/x")
    launch = {"editor": {"command": ["mousepad"]}, "terminal": {"command": ["xterm"]}}
    profile = Profile.model_validate({"name": "p", "backend": "local", "launch": launch})
    [check] = checks._offered(profile)  # noqa: SLF001
    assert (check.name, check.ok, check.needed) == ("programs of p", False, False)
    assert "cannot start mousepad, " in check.detail
    assert checks._offered(profile.model_copy(update={"launch": {}})) == []  # noqa: SLF001


def test_own_files_are_written_privately_made_but_readable(tmp_path: Path) -> None:
    desk = Layout(Place(tmp_path, "f")).desk("dk_1")
    desk.dir.mkdir(parents=True)
    walls.prepare(desk, Profile(name="p", backend="local", timezone="Asia/Tokyo"), "dk_Ö.x", "boot")
    own = desk.dir / "init"
    assert (own / "hostname").read_text() == "dk---x\n"
    assert (own / "localtime").readlink() == Path("/usr/share/zoneinfo/Asia/Tokyo")
    assert {stat.S_IMODE(p.lstat().st_mode) & 0o044 for p in own.iterdir() if not p.is_symlink()} == {0o044}
    assert "agent:x:1000:1000" in (own / "passwd").read_text()
