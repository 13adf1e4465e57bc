"""What a desktop had comes back exactly, is proved, and no crash, full disk or hostile tree makes it otherwise."""

import contextlib
import errno
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from cu_fleet.backends import tree
from cu_fleet.backends.local.state import State
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, InvalidError, NotFoundError, UnavailableError

NOBODY = 65534
UID = 300_777 if os.geteuid() == 0 else None


class Room:
    """A place with one desktop."""

    def __init__(self, base: Path) -> None:
        self.state = State(base / "desktops", base / "snapshots")
        self.desktop = base / "desktops" / "dk_aaaaaaaaaa"
        self.other = base / "desktops" / "dk_bbbbbbbbbb"
        self.snapshots = base / "snapshots"
        self.home = self.desktop / "state" / "home"
        self.tmp = self.desktop / "state" / "tmp"


@pytest.fixture
def room() -> Iterator[Room]:
    base = Path(tempfile.mkdtemp(prefix="cu-fleet-state-"))
    room = Room(base)
    room.state.fresh(room.desktop, None, UID)
    yield room
    fd = os.open(base.parent, os.O_RDONLY)
    tree.wipe(fd, base.name)
    os.close(fd)


@contextlib.contextmanager
def ordinary_user(owned: Path | None = None) -> Iterator[None]:
    """For a while be somebody whom modes bind, and who owns that folder."""
    if os.geteuid() != 0:
        yield
        return
    for path in [owned, *owned.rglob("*")] if owned else []:
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def seen(top: Path) -> dict[str, Any]:
    """An independent look: everything `stat` and the contents tell, without ids of files."""
    found: dict[str, Any] = {}
    inodes: dict[int, list[str]] = {}
    for folder, names, files in os.walk(top):
        for path in [Path(folder, name) for name in names + files]:
            s = path.lstat()
            regular, link = stat.S_ISREG(s.st_mode), stat.S_ISLNK(s.st_mode)
            name = str(path.relative_to(top))
            found[name] = (
                s.st_mode,
                s.st_size if regular else 0,
                s.st_mtime_ns,
                s.st_nlink if regular else 0,
                str(path.readlink()) if link else None,
                path.read_bytes() if regular and s.st_size < 1 << 20 else None,
                {a: os.getxattr(path, a) for a in os.listxattr(path)} if not link else {},
                (s.st_uid, s.st_gid),
            )
            if s.st_nlink > 1 and not stat.S_ISDIR(s.st_mode):
                inodes.setdefault(s.st_ino, []).append(name)
    found["<links>"] = sorted(sorted(names) for names in inodes.values())
    return found


def make_zoo(home: Path, tmp: Path) -> None:
    (home / "text").write_text("hello")
    (home / "empty").touch()
    (home / "deep" / "er" / "still").mkdir(parents=True)
    (home / "no files").mkdir()
    (home / "deep" / "hard").write_text("one file")
    os.link(home / "deep" / "hard", home / "deep" / "er" / "twin")
    os.link(home / "deep" / "hard", tmp / "triplet")
    (home / "link").symlink_to("text")
    (home / "dangling").symlink_to("/etc/shadow-not-there")
    (home / "to-dir").symlink_to("/etc")
    os.link(home / "link", home / "link-twin", follow_symlinks=False)
    os.mkfifo(home / "fifo", 0o622)
    (home / "tool").write_text("#!/bin/sh\n")
    (home / "tool").chmod(0o4755)
    (home / "closed").write_text("secret")
    (home / "closed").chmod(0)
    Path(os.fsdecode(os.fsencode(home) + b"/\xff\xfe not utf-8\n")).write_text("odd")
    (home / "new\nline 'and' \"quotes\"").mkdir()
    (home / ("n" * 255)).write_text("long")
    with (home / "sparse").open("wb") as f:
        f.truncate(3 << 30)
        f.seek(1 << 30)
        f.write(b"island")
    (home / "zeros").write_bytes(bytes(300_000))
    (home / "big").write_bytes(os.urandom(900_000))
    os.setxattr(home / "text", "user.note", b"\x00\xffvalue")
    os.setxattr(home / "no files", "user.dir", b"x")
    (tmp / "work").mkdir(mode=0o750)
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp / "sock"))
    for i, path in enumerate([home / "text", home / "no files", home / "fifo", home / "link", tmp / "work"]):
        os.utime(path, ns=(10**18 + i, 1_234_567_890_123_456_789 + i), follow_symlinks=False)
    if UID is not None and os.geteuid() == 0:
        for path in [*home.rglob("*"), *tmp.rglob("*")]:
            mode = path.lstat().st_mode
            os.chown(path, UID, UID, follow_symlinks=False)
            if not stat.S_ISLNK(mode):
                path.chmod(stat.S_IMODE(mode))


def spoil(home: Path, tmp: Path) -> None:
    """Change, delete and add."""
    (home / "text").write_text("HELLO")
    os.utime(home / "text", ns=(10**18, 1_234_567_890_123_456_789))
    shutil.rmtree(home / "deep")
    (home / "link").unlink()
    (home / "link").symlink_to("/etc/passwd")
    (home / "tool").chmod(0o600)
    (home / "fifo").unlink()
    (home / "no files" / "one").touch()
    os.removexattr(home / "no files", "user.dir")
    (home / "new").write_text("new")
    (tmp / "work").rmdir()
    (tmp / "work").symlink_to("/")
    home.chmod(0o755)


def test_a_fresh_state_is_clean_and_private(room: Room) -> None:
    assert stat.S_IMODE(room.home.stat().st_mode) == 0o700
    assert stat.S_IMODE(room.tmp.stat().st_mode) == 0o1777
    assert room.state.is_clean(room.desktop, None, UID)
    (room.home / "x").touch()
    assert not room.state.is_clean(room.desktop, None, UID)


def test_screen_locks_do_not_make_a_state_unclean(room: Room) -> None:
    (room.tmp / ".X0-lock").touch()
    (room.tmp / ".X11-unix").mkdir()
    (room.tmp / ".X11-unix" / "X0").touch()
    os.utime(room.tmp, ns=(0, 1_577_836_800 * 10**9))
    assert room.state.is_clean(room.desktop, None, UID)


def test_a_template_lies_over_the_built_in_home(room: Room, tmp_path: Path) -> None:
    template = tmp_path / "template"
    (template / ".config" / "app").mkdir(parents=True)
    (template / ".config" / "app" / "rc").write_text("set")
    (template / ".bashrc").write_text("mine")
    (template / "Downloads").mkdir()
    os.link(template / ".bashrc", template / "again")
    room.state.fresh(room.desktop, template, UID)
    assert (room.home / ".config" / "app" / "rc").read_text() == "set"
    assert (room.home / ".bashrc").read_text() == "mine"
    assert (room.home / ".bashrc").stat().st_ino == (room.home / "again").stat().st_ino
    assert (room.home / ".config" / "user-dirs.dirs").exists()
    assert room.state.is_clean(room.desktop, template, UID)
    assert not room.state.is_clean(room.desktop, None, UID)
    if UID is not None:
        assert {path.lstat().st_uid for path in (room.desktop / "state").rglob("*")} == {UID}


def test_a_missing_template_is_said(room: Room, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="nowhere"):
        room.state.fresh(room.desktop, tmp_path / "nowhere", UID)
    assert room.home.exists(), "the old state stays"


def test_a_snapshot_comes_back_exactly(room: Room) -> None:
    make_zoo(room.home, room.tmp)
    before = seen(room.desktop / "state")
    assert room.state.save(room.desktop, "sn_1") > 900_000
    assert seen(room.desktop / "state") == before, "saving changes nothing"
    spoil(room.home, room.tmp)
    assert seen(room.desktop / "state") != before
    room.state.put_back(room.desktop, "sn_1", None, UID)
    assert seen(room.desktop / "state") == before
    sparse = (room.home / "sparse").stat()
    assert sparse.st_size == 3 << 30
    assert sparse.st_blocks * 512 < 1 << 20, "holes stay holes"
    with (room.home / "sparse").open("rb") as f:
        f.seek(1 << 30)
        assert f.read(6) == b"island"
    room.state.put_back(room.desktop, "sn_1", None, UID)
    assert seen(room.desktop / "state") == before, "again gives the same"
    assert sorted(path.name for path in room.desktop.iterdir()) == ["state"]


def test_rollback_leaves_nothing_of_before(room: Room) -> None:
    clean = seen(room.desktop / "state")
    make_zoo(room.home, room.tmp)
    room.state.put_back(room.desktop, None, None, UID)
    assert seen(room.desktop / "state") == clean


def test_an_ordinary_user_gets_all_of_it_too(room: Room) -> None:
    base = room.desktop.parent.parent
    with ordinary_user(base):
        room.state.fresh(room.desktop, None, None)
        make_zoo(room.home, room.tmp)
        (room.home / "locked").mkdir()
        (room.home / "locked" / "in").write_text("in")
        os.setxattr(room.home / "locked" / "in", "user.a", b"1")
        (room.home / "locked" / "in").chmod(0)
        (room.home / "locked").chmod(0)
    before = seen(room.desktop / "state")
    with ordinary_user():
        room.state.save(room.desktop, "sn_1")
    assert seen(room.desktop / "state") == before
    with ordinary_user():
        room.state.put_back(room.desktop, None, None, None)
        room.state.put_back(room.desktop, "sn_1", None, None)
        room.state.put_back(room.desktop, "sn_1", None, None)
    assert seen(room.desktop / "state") == before


@pytest.mark.skipif(UID is None, reason="owners are changed only by root")
def test_another_desktop_gets_it_as_its_own(room: Room) -> None:
    make_zoo(room.home, room.tmp)
    before = seen(room.desktop / "state")
    room.state.save(room.desktop, "sn_1")
    room.state.put_back(room.other, "sn_1", None, 300_888)
    after = seen(room.other / "state")
    assert {value[-1] for path, value in after.items() if path != "<links>"} == {(300_888, 300_888)}
    without = [{p: v[:-1] for p, v in x.items() if p != "<links>"} for x in (before, after)]
    assert without[0] == without[1]


def test_out_there_a_snapshot_is_nothing_but_bytes(room: Room) -> None:
    make_zoo(room.home, room.tmp)
    room.state.save(room.desktop, "sn_1")
    assert stat.S_IMODE(room.snapshots.stat().st_mode) == 0o700
    for path in room.snapshots.rglob("*"):
        assert path.is_symlink() or not path.lstat().st_mode & 0o7077, path


def test_what_belongs_to_the_running_screen_is_not_saved(room: Room) -> None:
    (room.tmp / ".X0-lock").write_text("1")
    (room.tmp / ".X11-unix").mkdir()
    (room.tmp / ".X11-unix" / "X0").touch()
    (room.home / "Shared" / "in-slot").touch()
    (room.tmp / "kept").touch()
    room.state.save(room.desktop, "sn_1")
    room.state.put_back(room.desktop, "sn_1", None, UID)
    assert sorted(path.name for path in room.tmp.iterdir()) == ["kept"]
    assert list((room.home / "Shared").iterdir()) == []


def test_snapshots_are_listed_deleted_and_never_mistaken(room: Room) -> None:
    assert room.state.saved() == []
    room.state.save(room.desktop, "sn_1")
    (room.snapshots / "sn_2.partial").mkdir()
    assert room.state.saved() == ["sn_1", "sn_2"]
    with pytest.raises(NotFoundError, match="no snapshot sn_2"):
        room.state.put_back(room.desktop, "sn_2", None, UID)
    with pytest.raises(ConflictError, match="already"):
        room.state.save(room.desktop, "sn_1")
    for snapshot in ("sn_1", "sn_2", "sn_3"):
        room.state.delete(snapshot)
    assert room.state.saved() == []
    assert room.home.exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "/etc", "x\0y", ".partial"])
def test_a_snapshot_name_never_leaves_its_folder(room: Room, name: str) -> None:
    for do in (
        lambda: room.state.save(room.desktop, name),
        lambda: room.state.delete(name),
        lambda: room.state.put_back(room.desktop, name or "..", None, UID),
    ):
        with pytest.raises(InvalidError):
            do()


def damage_content(folder: Path) -> None:
    file = folder / "tree" / "home" / "big"
    data = bytearray(file.read_bytes())
    data[500_000] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        damage_content,
        lambda folder: (folder / "tree" / "home" / "text").unlink(),
        lambda folder: (folder / "tree" / "home" / "text").write_text("longer than it was"),
        lambda folder: (folder / "manifest").write_text((folder / "manifest").read_text()[:200]),
        lambda folder: (folder / "manifest").write_text('{"version": 2, "entries": {}}'),
        lambda folder: (folder / "manifest").write_text('{"version": 1, "entries": {"home": 5}}'),
    ],
)
def test_a_damaged_snapshot_is_refused_and_the_state_stays(room: Room, damage: Callable[[Path], None]) -> None:
    make_zoo(room.home, room.tmp)
    room.state.save(room.desktop, "sn_1")
    before = seen(room.desktop / "state")
    damage(room.snapshots / "sn_1")
    with pytest.raises(BrokenError):
        room.state.put_back(room.desktop, "sn_1", None, UID)
    assert seen(room.desktop / "state") == before


def test_a_copy_that_lies_is_found_out(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    (room.home / "text").write_text("hello")
    room.state.save(room.desktop, "sn_1")
    monkeypatch.setattr(tree, "copy_content", lambda source, to, size: os.truncate(to, size))
    with pytest.raises(BrokenError, match="differs in digest"):
        room.state.put_back(room.desktop, "sn_1", None, UID)


def test_a_desktop_that_goes_on_writing_is_not_half_saved(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    (room.home / "text").write_text("hello")
    real = tree.copy_content

    def meanwhile(source: int, to: int, size: int) -> None:
        real(source, to, size)
        with (room.home / "text").open("a") as f:
            f.write("more")

    monkeypatch.setattr(tree, "copy_content", meanwhile)
    with pytest.raises(ConflictError, match="changed"):
        room.state.save(room.desktop, "sn_1")
    assert room.state.saved() == []


def full(after: int) -> Callable[[int, int, int], None]:
    real, calls = tree.copy_content, [0]

    def copy(source: int, to: int, size: int) -> None:
        calls[0] += 1
        if calls[0] > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, to, size)

    return copy


def test_a_full_disk_leaves_everything_as_it_was(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    make_zoo(room.home, room.tmp)
    room.state.save(room.desktop, "sn_1")
    before = seen(room.desktop / "state")
    monkeypatch.setattr(tree, "copy_content", full(after=3))
    with pytest.raises(UnavailableError, match="disk is full"):
        room.state.save(room.desktop, "sn_2")
    with pytest.raises(UnavailableError, match="disk is full"):
        room.state.put_back(room.desktop, "sn_1", None, UID)
    assert room.state.saved() == ["sn_1"]
    assert seen(room.desktop / "state") == before
    assert sorted(path.name for path in room.desktop.iterdir()) == ["state"]


def test_a_desktop_that_filled_the_disk_can_still_be_cleaned(
    room: Room, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("template")
    (room.home / "hog").write_text("everything")
    real = tree.copy_content

    def copy(source: int, to: int, size: int) -> None:
        if (room.home / "hog").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, to, size)

    monkeypatch.setattr(tree, "copy_content", copy)
    room.state.put_back(room.desktop, None, tmp_path, UID)
    assert room.state.is_clean(room.desktop, tmp_path, UID)


def killed_at(line: int, work: Callable[[], object]) -> bool:
    """Run `work` in a process that dies before its n-th line in our code. False if it got to its end."""
    pid = os.fork()
    if pid == 0:
        left = line

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal left
            if not frame.f_code.co_filename.endswith(("state.py", "tree.py")):
                return None
            left -= event == "line"
            if left <= 0:
                os._exit(99)
            return trace

        sys.settrace(trace)
        code = 1
        with contextlib.suppress(BaseException):
            work()
            code = 0
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 99), "failed otherwise than by the kill"
    return code == 99


def killed_everywhere(step: int, work: Callable[[], object], check: Callable[[], None]) -> int:
    line = 1
    while killed_at(line, work):
        check()
        line += step
    check()
    return line // step


def test_killed_at_any_line_a_rollback_is_finished_by_repeating_it(room: Room) -> None:
    def put_back() -> None:
        room.state.put_back(room.desktop, None, None, UID)

    def check() -> None:
        put_back()
        assert room.state.is_clean(room.desktop, None, UID)
        assert [path.name for path in room.desktop.iterdir()] == ["state"]
        (room.home / "folder").mkdir()
        (room.home / "folder" / "new").touch()

    assert killed_everywhere(41, put_back, check) > 20


def test_killed_at_any_line_a_restore_is_finished_by_repeating_it(room: Room) -> None:
    (room.home / "sub").mkdir()
    (room.home / "sub" / "file").write_text("saved")
    room.state.save(room.desktop, "sn_1")
    before = seen(room.desktop / "state")

    def put_back() -> None:
        room.state.put_back(room.desktop, "sn_1", None, UID)

    def check() -> None:
        put_back()
        assert seen(room.desktop / "state") == (before if UID is None else owned(before))
        (room.home / "sub" / "file").write_text("changed")

    assert killed_everywhere(67, put_back, check) > 20


def owned(found: dict[str, Any]) -> dict[str, Any]:
    return {path: v if path == "<links>" else (*v[:-1], (UID, UID)) for path, v in found.items()}


def test_killed_at_any_line_a_snapshot_is_whole_or_not_there(room: Room) -> None:
    (room.home / "file").write_text("saved")

    def save() -> None:
        room.state.save(room.desktop, "sn_1")

    def check() -> None:
        with contextlib.suppress(NotFoundError):
            room.state.put_back(room.other, "sn_1", None, UID)
            assert (room.other / "state" / "home" / "file").read_text() == "saved"
        room.state.delete("sn_1")
        assert room.state.saved() == []

    assert killed_everywhere(61, save, check) > 20


def test_the_deepest_hostile_tree_is_removed(room: Room) -> None:
    fd = os.open(room.home, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=inner))
        os.close(fd)
        fd = inner
    os.close(fd)
    with pytest.raises(InvalidError, match="nested"):
        room.state.save(room.desktop, "sn_1")
    assert room.state.saved() == []
    room.state.put_back(room.desktop, None, None, UID)
    assert room.state.is_clean(room.desktop, None, UID)


def test_links_planted_by_a_desktop_lead_nowhere(room: Room, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("untouched")
    before = seen(tmp_path)
    shutil.rmtree(room.home / ".config")
    (room.home / ".config").symlink_to(tmp_path / "precious")
    (room.home / "again").symlink_to(tmp_path)
    room.state.save(room.desktop, "sn_1")
    room.state.put_back(room.desktop, "sn_1", None, UID)
    assert (room.home / ".config").is_symlink()
    room.state.put_back(room.desktop, None, None, UID)
    assert room.state.is_clean(room.desktop, None, UID)
    assert seen(tmp_path) == before


def test_a_state_elsewhere_is_not_touched(room: Room, tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no desktop"):
        room.state.put_back(tmp_path / "dk_aaaaaaaaaa", None, None, UID)


@pytest.mark.real
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_really_full_disk(room: Room, tmp_path: Path) -> None:
    import subprocess

    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], check=True)
    try:
        small = Room(tmp_path)
        small.state.fresh(small.desktop, None, UID)
        (small.home / "most").write_bytes(os.urandom(2_500_000))
        before = seen(small.desktop / "state")
        with pytest.raises(UnavailableError, match="disk is full"):
            small.state.save(small.desktop, "sn_1")
        assert small.state.saved() == []
        assert seen(small.desktop / "state") == before
        with contextlib.suppress(OSError), (small.home / "rest").open("wb") as f:
            while True:
                f.write(os.urandom(65536))
        small.state.put_back(small.desktop, None, None, UID)
        assert small.state.is_clean(small.desktop, None, UID)
    finally:
        subprocess.run(["umount", tmp_path], check=True)
