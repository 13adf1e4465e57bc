"""Whatever a desktop plants in its slot, files go in and come out there and nowhere else."""

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cu_fleet.backends.slot import Slot
from cu_fleet.model.errors import ConflictError, FleetError, InvalidError, NotFoundError
from tests.support import run

UID = 300_777 if os.geteuid() == 0 else None


@pytest.fixture
def slot(tmp_path: Path) -> Slot:
    (tmp_path / "desktop" / "slot").mkdir(parents=True)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("secret")
    return Slot(tmp_path / "desktop" / "slot", UID)


async def some(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def read(slot: Slot, path: str) -> bytes:
    return b"".join([chunk async for chunk in slot.get(path)])


def test_what_goes_in_comes_out(slot: Slot) -> None:
    async def body() -> None:
        big = os.urandom(700_000)
        assert await slot.put("a/b/file ü", some(big[:10], b"", big[10:]), mode=0o4755) == 700_000
        assert await read(slot, "a/b/file ü") == big
        assert await slot.put("a/b/file ü", some(b"new")) == 3
        assert await read(slot, "a/b/file ü") == b"new"
        assert [(i.path, i.kind, i.size, i.mode) for i in await slot.listing("a/b")] == [
            ("a/b/file ü", "file", 3, 0o644)
        ]
        assert [(i.path, i.kind) for i in await slot.listing()] == [("a", "dir")]
        assert [i.path for i in await slot.listing("a/b/file ü")] == ["a/b/file ü"]

    run(body())


def test_what_is_put_in_belongs_to_the_desktop_and_has_no_special_mode(slot: Slot) -> None:
    run(slot.put("a/tool", some(b"x"), mode=0o6755))
    for path in (slot.root / "a", slot.root / "a" / "tool"):
        assert path.stat().st_uid == (os.geteuid() if UID is None else UID)
    assert stat.S_IMODE((slot.root / "a" / "tool").stat().st_mode) == 0o755


def test_removing(slot: Slot) -> None:
    async def body() -> None:
        await slot.put("a/b/c", some(b"x"))
        await slot.put("d", some(b"x"))
        await slot.remove("nothing/here")
        await slot.remove("a")
        assert [i.path for i in await slot.listing()] == ["d"]
        await slot.remove("d")
        await slot.put("e/f", some(b"x"))
        (slot.root / "link").symlink_to(slot.root.parent.parent / "precious")
        await slot.remove("")
        assert await slot.listing() == []
        assert [path.name for path in slot.root.parent.iterdir()] == ["slot"]
        assert (slot.root.parent.parent / "precious" / "file").exists()

    run(body())


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../precious/file", "a/../../precious/file", "a//b", "./a", "a/.", "a\0b", "x" * 256]
)
def test_paths_that_could_leave_are_refused_in_words(slot: Slot, path: str) -> None:
    async def body() -> None:
        for call in (slot.put(path, some(b"x")), read(slot, path), slot.listing(path), slot.remove(path)):
            with pytest.raises(InvalidError, match=r"absolute|parts|cannot be"):
                await call

    run(body())
    assert list(slot.root.iterdir()) == []


def test_no_link_is_followed_wherever_it_stands(slot: Slot) -> None:
    precious = slot.root.parent.parent / "precious"
    (slot.root / "dir").symlink_to(precious)
    (slot.root / "file").symlink_to(precious / "file")
    (slot.root / "up").symlink_to("..")

    async def body() -> None:
        for path in ("dir/file", "file", "up/slot/x"):
            with pytest.raises(FleetError, match="link"):
                await read(slot, path)
        for path in ("dir/new", "file", "up/new"):
            with pytest.raises(FleetError, match="link"):
                await slot.put(path, some(b"overwritten"))
        with pytest.raises(InvalidError, match="link"):
            await slot.listing("dir/sub")
        assert [(i.path, i.kind) for i in await slot.listing("dir")] == [("dir", "link")]
        with pytest.raises(InvalidError, match="link"):
            await slot.remove("dir/file")
        await slot.remove("dir")

    run(body())
    assert {path.name: path.read_text() for path in precious.iterdir()} == {"file": "secret"}
    assert sorted(path.name for path in slot.root.parent.iterdir()) == ["slot"]


def test_pipes_and_folders_are_refused_and_hang_nobody(slot: Slot) -> None:
    os.mkfifo(slot.root / "pipe")
    (slot.root / "folder").mkdir()

    async def body() -> None:
        with pytest.raises(InvalidError, match="pipe"):
            await read(slot, "pipe")
        with pytest.raises(InvalidError, match="folder"):
            await read(slot, "folder")
        with pytest.raises(ConflictError, match="pipe"):
            await slot.put("pipe", some(b"x"))
        with pytest.raises(ConflictError, match="folder"):
            await slot.put("folder", some(b"x"))
        with pytest.raises(NotFoundError, match="nothing"):
            await read(slot, "nothing")
        await slot.remove("pipe")

    run(body(), timeout=10)


def test_a_file_is_whole_or_not_there(slot: Slot) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        assert [path.suffix for path in slot.root.iterdir()] == [".part"]
        raise ConnectionResetError

    async def body() -> None:
        with pytest.raises(ConnectionResetError):
            await slot.put("file", broken())
        assert list(slot.root.iterdir()) == []
        started = asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            while True:
                started.set()
                yield b"x" * 100_000
                await asyncio.sleep(0)

        task = asyncio.create_task(slot.put("file", endless()))
        await started.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert list(slot.root.iterdir()) == []

    run(body())


def test_a_file_that_grows_is_read_to_where_it_ended(slot: Slot) -> None:
    async def body() -> None:
        await slot.put("log", some(b"x" * 300_000))
        total = 0
        async for chunk in slot.get("log"):
            total += len(chunk)
            with (slot.root / "log").open("ab") as f:
                f.write(b"more" * 100_000)
        assert total == 300_000

    run(body())


def test_odd_names_are_shown_and_do_no_harm(slot: Slot) -> None:
    Path(os.fsdecode(os.fsencode(slot.root) + b"/\xff\n")).touch()
    [info] = run(slot.listing())
    assert info.path == "\\xff\n"
    info.path.encode()
    run(slot.remove(""))
    assert list(slot.root.iterdir()) == []


def test_a_listing_is_bounded_and_says_so(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.backends.slot.MAX_LISTED", 100)
    for i in range(101):
        (slot.root / str(i)).touch()
    with pytest.raises(InvalidError, match="more than"):
        run(slot.listing())
    run(slot.remove(""))
    assert list(slot.root.iterdir()) == []


@pytest.mark.parametrize("moment", ["before it is opened", "after it was opened"])
def test_a_folder_swapped_for_a_link_at_the_last_moment_leads_nowhere(
    slot: Slot, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    precious = slot.root.parent.parent / "precious"
    real = os.open

    def swap() -> None:
        if not (slot.root / "a").is_symlink():
            (slot.root / "a").rename(slot.root / "b")
            (slot.root / "a").symlink_to(precious)

    def opening(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if path == "a" and moment == "before it is opened":
            swap()
        fd = real(path, flags, mode, dir_fd=dir_fd)
        if path == "a" and moment == "after it was opened":
            swap()
        return fd

    def reset() -> None:
        with contextlib.suppress(FileNotFoundError):
            (slot.root / "a").unlink()
            (slot.root / "b").rename(slot.root / "a")

    (slot.root / "a").mkdir()
    monkeypatch.setattr(os, "open", opening)

    async def body() -> None:
        for call in (
            lambda: slot.put("a/new", some(b"x")),
            lambda: read(slot, "a/file"),
            lambda: slot.listing("a"),
            lambda: slot.remove("a/file"),
        ):
            with contextlib.suppress(FleetError):
                answer = await call()
                assert answer != b"secret"
                assert not answer or "file" not in str(answer)
            reset()

    run(body())
    assert {path.name: path.read_text() for path in precious.iterdir()} == {"file": "secret"}
    assert [path.name for path in (slot.root / "a").iterdir()] == (["new"] if moment == "after it was opened" else [])
