"""Anchors: never ahead of what is durable, never lost, never without bound."""

import asyncio
from pathlib import Path

import pytest

from cu_fleet.model.audit import Draft
from cu_fleet.model.errors import BrokenError, UnavailableError
from cu_fleet.stores import anchors
from cu_fleet.stores.anchors import anchor, read_anchors, verify_store
from cu_fleet.stores.base import Store
from cu_fleet.stores.sqlite import SqliteStore
from cu_fleet.testing.store_base import KEY
from tests.support import run


async def record(store: Store, count: int = 1) -> None:
    await store.transact(lambda tx: [tx.append(Draft(at=1.0, what="x", who="controller")) for _ in range(count)])


def test_the_head_is_anchored_once_after_it_is_durable(tmp_path: Path) -> None:
    path = tmp_path / "audit.anchors"
    seen: list[tuple[str, int]] = []

    class Told(SqliteStore):
        async def make_durable(self) -> None:
            seen.append(("durable", len(read_anchors(path))))
            await super().make_durable()

    async def body() -> None:
        store = await Told.memory(KEY)
        assert await anchor(store, path, 1.0) is None
        assert not path.exists()
        await record(store, 3)
        first = await anchor(store, path, 2.0)
        assert first
        assert first.seq == 3
        assert await anchor(store, path, 3.0) is None
        await record(store)
        second = await anchor(store, path, 4.0)
        assert read_anchors(path) == [first, second]
        assert seen == [("durable", 0), ("durable", 1)]
        assert oct(path.stat().st_mode & 0o777) == "0o600"
        assert await verify_store(store, path, KEY) == 4
        await store.close()

    run(body())


@pytest.mark.parametrize("torn", [b'{"seq":5,"mac":"ab', b"\0" * 40, b"{}"])
def test_a_torn_last_line_is_passed_over_and_cleared_away(torn: bytes, tmp_path: Path) -> None:
    path = tmp_path / "audit.anchors"

    async def body() -> None:
        store = await SqliteStore.memory(KEY)
        await record(store)
        await anchor(store, path, 1.0)
        with path.open("ab") as file:
            file.write(torn)
        assert [x.seq for x in read_anchors(path)] == [1]
        assert await verify_store(store, path, KEY) == 1
        await record(store)
        await anchor(store, path, 2.0)
        assert [x.seq for x in read_anchors(path)] == [1, 2]
        assert path.read_bytes().count(b"\n") == 2
        await store.close()

    run(body())


def test_a_line_that_is_no_anchor_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "audit.anchors"
    path.write_text('{"seq": 1}\n{"seq":2,"mac":"00","at":1}\n')
    with pytest.raises(BrokenError, match="line 1") as raised:
        read_anchors(path)
    assert raised.value.code == "anchors_changed"


def test_the_file_stays_small_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchors, "FULL", 4096)
    path = tmp_path / "audit.anchors"

    async def body() -> None:
        store = await SqliteStore.memory(KEY)
        for number in range(1, 201):
            await record(store)
            await anchor(store, path, float(number))
            kept = [x.seq for x in read_anchors(path)]
            assert kept[-1] == number
            assert kept[0] == 1
            assert kept == sorted(kept)
            assert path.stat().st_size <= 4096
        assert await verify_store(store, path, KEY) == 200
        await store.close()

    run(body())
    assert oct(path.stat().st_mode & 0o777) == "0o600"
    assert [x.name for x in tmp_path.iterdir()] == ["audit.anchors"]


def test_two_at_once_leave_the_newest_last(tmp_path: Path) -> None:
    path = tmp_path / "audit.anchors"

    async def body() -> None:
        store = await SqliteStore.memory(KEY)

        async def some() -> None:
            for number in range(10):
                await record(store)
                await anchor(store, path, float(number))

        await asyncio.gather(some(), some(), some())
        kept = [x.seq for x in read_anchors(path)]
        assert kept == sorted(set(kept))
        assert kept[-1] == 30
        await store.close()

    run(body())


def test_a_place_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    async def body() -> None:
        store = await SqliteStore.memory(KEY)
        await record(store)
        with pytest.raises(UnavailableError) as raised:
            await anchor(store, tmp_path / "nowhere" / "audit.anchors", 1.0)
        assert raised.value.code == "not_anchored"
        await store.close()

    run(body())
