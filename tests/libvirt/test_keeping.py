"""What is kept of machines, and what is taken away: images, warm states, slots. Without a machine."""

import asyncio
import fcntl
import io
import os
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cu_fleet.backends.base import Abilities, Place
from cu_fleet.backends.libvirt import carried, images, snapshots, warm
from cu_fleet.backends.libvirt.images import Golden
from cu_fleet.backends.libvirt.layout import Layout
from cu_fleet.backends.libvirt.telling import telling
from cu_fleet.backends.libvirt.tidying import Tidy, backing
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError
from tests.support import run

LONG_AGO = 30 * 86400


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(Place(tmp_path / "home", "f"), tmp_path / "store")


def aged(path: Path) -> Path:
    os.utime(path, (time.time() - LONG_AGO,) * 2, follow_symlinks=False)
    return path


def qcow2(path: Path, base: Path | None = None) -> None:
    """The head of a disk, as QEMU writes it."""
    name = os.fsencode(base) if base else b""
    head = b"QFI\xfb" + (3).to_bytes(4, "big") + (104 if base else 0).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    path.write_bytes(head.ljust(104, b"\0") + name)


def image(layout: Layout, token: str) -> Golden:
    new = layout.folder(layout.images / f".vm-desktop.{token}")
    qcow2(new / "disk.qcow2")
    (new / "about.json").write_text('{"recipe": "%s", "created": "then"}' % token)  # noqa: UP031
    return images.adopt(layout, Golden("vm-desktop", new, token))


def state(layout: Layout, name: str, over: Golden) -> Path:
    folder = layout.folder(layout.warm / name)
    qcow2(folder / "disk.qcow2", over.dir / "disk.qcow2")
    (folder / "memory").write_bytes(b"memory")
    warm.write(folder, "canary", "qemu")
    return folder


def test_an_image_that_gets_a_name_leaves_the_one_before_where_it_was(layout: Layout) -> None:
    one = image(layout, "one")
    two = image(layout, "two")
    assert one.dir != two.dir
    assert (images.look(layout, "vm-desktop").recipe, images.look(layout, "vm-desktop").dir) == ("two", two.dir)
    assert (one.dir / "disk.qcow2").exists(), "saved machines rest on it, block by block"


def test_what_nothing_needs_is_removed_and_what_something_rests_on_stays(layout: Layout) -> None:
    first = image(layout, "first")
    held, saved, unused = (state(layout, name, first) for name in ("held-1", "saved-1", "unused-1"))
    unnamed = image(layout, "second")
    struck = state(layout, "struck-1", unnamed)
    (struck / "about.json").unlink()
    outlived = state(layout, "outlived-1", unnamed)
    os.utime(outlived, (time.time() - 7200,) * 2)
    fresh = state(layout, "fresh-1", image(layout, "third"))
    desk = layout.desk("dk_1")
    layout.make(desk, None)
    snapshots.note(desk, "qemu", held / "disk.qcow2", None, {})
    layout.folder(layout.snapshots / "sn_1")
    (layout.snapshots / "sn_1" / "base").write_text(str(saved / "disk.qcow2"))
    left, making = (layout.folder(layout.warm / f".{key}.new") for key in ("left", "making"))
    named = images.look(layout, "vm-desktop").dir
    for path in (held, saved, unused, struck, left, making, first.dir, unnamed.dir, named):
        aged(path)
    with (layout.warm / ".making.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sorted(Tidy(layout).now()) == sorted(
            str(path.relative_to(layout.store)) for path in (unused, struck, outlived, left, unnamed.dir)
        )
    assert all(path.exists() for path in (held, saved, fresh, making, first.dir, named))
    assert Tidy(layout).now() == ["warm/.making.new"], "its maker is gone by now"


def test_what_a_disk_rests_on_is_read_from_its_head(tmp_path: Path) -> None:
    base = tmp_path / ("long " * 30 + "ü")
    base.mkdir()
    qcow2(base / "base.qcow2")
    qcow2(tmp_path / "over.qcow2", base / "base.qcow2")
    assert backing(tmp_path / "over.qcow2") == base / "base.qcow2"
    for other in (base / "base.qcow2", tmp_path / "nothing", tmp_path):
        assert backing(other) == Path("/")


class Tar:
    """The program inside a machine, here: over a folder of ours."""

    def __init__(self, argv: list[str], home: Path) -> None:
        pipe, env = subprocess.PIPE, {"HOME": str(home), "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, bufsize=0)

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self.process.stdin.write, data)

    async def close_stdin(self) -> None:
        self.process.stdin.close()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        for number, stream in ((1, self.process.stdout), (2, self.process.stderr)):
            while data := await asyncio.to_thread(stream.read, 65536):
                yield number, data

    async def wait(self) -> int:
        return await asyncio.to_thread(self.process.wait)

    async def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            stream.close()


def inside(home: Path) -> carried.Run:
    (home / "Shared").mkdir(parents=True, exist_ok=True)

    async def start(argv: list[str]) -> Tar:
        return Tar(argv, home)

    return start


async def _full(argv: list[str]) -> Tar:
    """A machine whose disk is full."""
    del argv
    return Tar(["sh", "-c", "cat >/dev/null; echo full >&2; exit 2"], Path("/nowhere"))


def test_a_slot_is_carried_over_as_it_was(layout: Layout, tmp_path: Path) -> None:
    desk, before, after = layout.desk("dk_1"), tmp_path / "before", tmp_path / "after"
    layout.folder(desk.dir)
    one, two = inside(before), inside(after)
    (before / "Shared/a b").mkdir(mode=0o750)
    (before / "Shared/a b/ü").write_bytes(bytes(range(256)) * 2000)
    (before / "Shared/a b/ü").chmod(0o640)
    (before / "Shared/link").symlink_to("/etc/passwd")

    async def body() -> None:
        await carried.pack(one, desk, 1 << 30)
        assert carried.place(desk).exists()
        await carried.unpack(two, desk)

    run(body())
    assert (after / "Shared/a b/ü").read_bytes() == bytes(range(256)) * 2000
    assert (after / "Shared/a b/ü").stat().st_mode & 0o777 == 0o640
    assert (after / "Shared/link").readlink() == Path("/etc/passwd")
    assert list(layout.desktops.glob(".*")) == [], "and is forgotten"


def test_a_slot_that_could_not_be_packed_whole_is_not_taken_for_one(layout: Layout, tmp_path: Path) -> None:
    desk = layout.desk("dk_1")
    layout.folder(desk.dir)
    start = inside(tmp_path)
    (tmp_path / "Shared/big").write_bytes(b"x" * (3 << 20))
    with pytest.raises(UnavailableError, match="holds more than 1 MiB"):
        run(carried.pack(start, desk, 1 << 20))
    (tmp_path / "Shared/big").unlink()
    (tmp_path / "Shared").rmdir()
    with pytest.raises(UnavailableError, match=r"tar ended with 2.*Shared"):
        run(carried.pack(start, desk, 1 << 20))
    assert list(layout.desktops.glob(".*")) == []


def test_an_archive_that_does_not_fit_is_kept_until_it_does(layout: Layout, tmp_path: Path) -> None:
    desk = layout.desk("dk_1")
    layout.folder(desk.dir)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.add(__file__, "file")
    carried.place(desk).write_bytes(data.getvalue())
    with pytest.raises(UnavailableError, match=r"could not be carried over.*full"):
        run(carried.unpack(_full, desk))
    assert carried.place(desk).exists()
    run(carried.unpack(inside(tmp_path), desk))
    assert (tmp_path / "Shared/file").exists()
    carried.place(desk).write_bytes(b"left")
    carried.forget(desk)
    carried.forget(desk)
    assert list(layout.desktops.glob(".*")) == []


class Inside:
    """The two abilities that carrying needs, of a machine that is `broken` or not."""

    def __init__(self, home: Path, broken: str = "") -> None:
        self.start, self.home, self.broken = inside(home), home, broken

    async def exec(self, handle: Handle, argv: list[str]) -> Tar:
        return await (_full if self.broken == "full" else self.start)(argv)

    async def listing(self, handle: Handle) -> list[str]:
        if self.broken == "dead":
            raise UnavailableError("nobody answers", code="no_answer")
        return [path.name for path in (self.home / "Shared").iterdir()]

    async def put(self, handle: Handle, path: str, data: AsyncIterator[bytes]) -> None:
        (self.home / "Shared" / path).write_bytes(b"".join([chunk async for chunk in data]))


def carrying(layout: Layout, one: Inside) -> carried.Carried:
    return carried.Carried(layout.desk("dk_1"), Abilities(exec=one, files=one), 1 << 20)


@pytest.mark.parametrize(("before", "after", "why"), [("dead", "", "nobody answers"), ("", "full", "tar ended with 2")])
def test_a_slot_that_is_lost_over_a_restore_leaves_word_of_it(
    layout: Layout, tmp_path: Path, before: str, after: str, why: str
) -> None:
    layout.folder(layout.desk("dk_1").dir)
    old, new = Inside(tmp_path / "old", before), Inside(tmp_path / "new", after)
    (tmp_path / "old/Shared/file").write_text("x")
    slot = carrying(layout, old)
    run(slot.out({}))
    assert slot.there
    slot.files = slot.exec = new
    run(slot.back({}))
    said = (tmp_path / "new/Shared" / carried.NOTE).read_text()
    assert said.startswith("What was in here before this desktop was restored could not be kept: ")
    assert why in said
    assert list(layout.desktops.glob(".*")) == []


def test_a_restore_that_was_cut_off_is_finished_with_the_slot_as_it_was_before_the_first(
    layout: Layout, tmp_path: Path
) -> None:
    layout.folder(layout.desk("dk_1").dir)
    old, half, new = (Inside(tmp_path / name) for name in ("old", "half", "new"))
    (tmp_path / "old/Shared/file").write_text("x")
    run(carrying(layout, old).out({}))
    again = carrying(layout, half)
    run(again.out({}))  # of a machine that has woken, and into which nothing was carried yet
    again.files = again.exec = new
    run(again.back({}))
    assert (tmp_path / "new/Shared/file").read_text() == "x"
    assert not carrying(layout, new).there


def test_long_work_is_told_of_and_what_it_raises_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.backends.libvirt.telling._SECONDS", 0.01)
    go, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            await go.wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        raise UnavailableError("it failed", code="x")

    async def body() -> None:
        told = telling(work(), lambda seconds: f"{seconds >= 0}")
        assert [await anext(told), await anext(told)] == ["True", "True"]
        go.set()
        with pytest.raises(UnavailableError, match="it failed"):
            async for _ in told:
                pass
        go.clear()
        told = telling(work(), lambda _: "on")
        await anext(told)
        await told.aclose()
        assert cancelled.is_set()

    run(body())
