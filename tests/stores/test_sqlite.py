"""What is SQLite's own: its file, its disk, its log, and other processes at the same file."""

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.model.audit import verify
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import all_entries
from cu_fleet.stores.migrations import steps
from cu_fleet.stores.sqlite import LOG, SqliteStore
from cu_fleet.testing.store_base import KEY
from cu_fleet.testing.store_writer import acknowledged, start_writer, write_one
from tests.support import run, until


def modes(folder: Path) -> dict[str, str]:
    return {file.name: oct(file.stat().st_mode & 0o777) for file in folder.iterdir()}


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "fleet.db"
    path.touch(0o644)
    path.chmod(0o644)

    async def body() -> None:
        store = await SqliteStore.open(path, KEY)
        await store.transact(write_one)
        assert modes(tmp_path) == {"fleet.db": "0o600", "fleet.db-wal": "0o600", "fleet.db-shm": "0o600"}
        await store.close()

    run(body())


def test_make_durable_commits_with_full_sync_and_only_if_there_is_something(tmp_path: Path) -> None:
    seen: list[str] = []

    class Told(SqliteStore):
        def execute(self, statement: str, params: Any) -> Any:
            seen.append(" ".join(statement.split()[:4]))
            return super().execute(statement, params)

    async def body() -> None:
        store = await Told.open(tmp_path / "fleet.db", KEY)
        await store.transact(write_one)
        seen.clear()
        await store.make_durable()
        assert seen[0] == "PRAGMA synchronous = FULL"
        assert seen[1:-1] == ["BEGIN IMMEDIATE", "INSERT INTO meta (name,", "COMMIT"]
        assert seen[-1] == "PRAGMA synchronous = NORMAL"
        seen.clear()
        await store.make_durable()
        assert seen == []
        await store.close()

    run(body())


def test_two_processes_at_one_file_make_one_chain(tmp_path: Path) -> None:
    opener = partial(SqliteStore.open, tmp_path / "fleet.db", KEY)
    writers = [start_writer(opener, 150) for _ in range(2)]
    numbers = [number for writer in writers for number in acknowledged(writer)]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(numbers) == list(range(1, 301))

    async def body() -> None:
        store = await opener()
        assert await store.transact(lambda tx: verify(all_entries(tx), [], KEY)) == 300
        await store.close()

    run(body())


def test_making_the_file_while_another_process_makes_it(tmp_path: Path) -> None:
    """Seen once in some hundred openings: SQLite says "locked" to the switch to WAL without waiting."""
    tries: list[str] = []

    class Crossed(SqliteStore):
        def execute(self, statement: str, params: Any) -> Any:
            if "journal_mode" in statement and len(tries) < 2:
                tries.append(statement)
                raise self._failure(sqlite3_error(sqlite3.SQLITE_BUSY))
            return super().execute(statement, params)

    async def body() -> None:
        store = await Crossed.open(tmp_path / "fleet.db", KEY)
        assert len(tries) == 2
        assert await store.transact(lambda tx: store.execute("PRAGMA journal_mode", {})) == [("wal",)]
        await store.close()

    run(body())


class Watched(SqliteStore):
    """Tells which statements were executed, each by which thread."""

    def __init__(self, *words: Any) -> None:
        super().__init__(*words)
        self.seen: list[tuple[str, int]] = []

    def execute(self, statement: str, params: Any) -> Any:
        self.seen.append((statement, threading.get_ident()))
        return super().execute(statement, params)

    def by(self, begins: str) -> set[int]:
        return {thread for statement, thread in self.seen if statement.lstrip().startswith(begins)}


def test_what_need_not_last_is_done_at_once_unless_something_is_under_way(tmp_path: Path) -> None:
    async def body() -> None:
        store, loops = await Watched.open(tmp_path / "fleet.db", KEY), {threading.get_ident()}
        await store.transact(write_one, lasting=False)
        assert store.by("INSERT INTO audit") == loops
        with pytest.raises(ZeroDivisionError):
            await store.transact(lambda tx: (write_one(tx), 1 // 0), lasting=False)
        store.seen.clear()
        first = asyncio.create_task(store.transact(write_one), name="lasting")
        await asyncio.sleep(0)  # it is given to the thread
        numbers = [await store.transact(write_one, lasting=False), await first]
        assert numbers == [3, 2], "nobody overtakes"
        assert not store.by("INSERT INTO audit") & loops
        await store.close()

    run(body())


def test_the_loop_waits_for_no_other_process(tmp_path: Path) -> None:
    async def body() -> None:
        store = await Watched.open(tmp_path / "fleet.db", KEY)
        other = sqlite3.connect(tmp_path / "fleet.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        waits = asyncio.create_task(store.transact(write_one, lasting=False), name="waits")
        await until(lambda: store.by("PRAGMA busy_timeout = 10000"))  # its thread waits
        assert not waits.done()
        other.execute("COMMIT")
        assert await waits == 1
        other.close()
        await store.close()

    run(body())


def test_the_log_is_brought_in_by_the_thread_before_it_grows_long(tmp_path: Path) -> None:
    async def body() -> None:
        store, loops = await Watched.open(tmp_path / "fleet.db", KEY), {threading.get_ident()}
        for _ in range(3 * LOG // 2):  # three rows each
            await store.transact(write_one, lasting=False)
        folds = [thread for statement, thread in store.seen if "wal_checkpoint" in statement]
        assert len(folds) >= 3
        assert not set(folds) & loops
        assert (tmp_path / "fleet.db-wal").stat().st_size < 16 << 20
        assert await store.transact(lambda tx: verify(all_entries(tx), [], KEY)) == 3 * LOG // 2
        await store.close()

    run(body())


def test_a_commit_that_grew_slow_is_the_threads_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        store, loops = await Watched.open(tmp_path / "fleet.db", KEY), {threading.get_ident()}
        monkeypatch.setattr("cu_fleet.stores.sqlite._SLOW", -1.0)
        await store.transact(write_one, lasting=False)
        store.seen.clear()
        await store.transact(write_one, lasting=False)
        assert store.by("INSERT INTO audit")
        assert not store.by("INSERT INTO audit") & loops
        await store.close()

    run(body())


def sqlite3_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("how", ["limit", "tmpfs"])
def test_a_full_disk_is_said_and_survived(how: str, tmp_path: Path) -> None:
    mounting = ["unshare", "-m" if os.geteuid() == 0 else "-Urm"] if how == "tmpfs" else []
    if mounting and subprocess.run([*mounting, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here, even in a namespace of its own")
    command = [*mounting, sys.executable, "-m", "tests.stores.full_disk", str(tmp_path), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["code"] == {"limit": "disk_failed", "tmpfs": "disk_full"}[how]
    assert "undone" in seen["error"]
    assert "free" in seen["error"]
    assert seen["kept"] == seen["acknowledged"] > 10
    assert seen["anchored"] in (0, seen["kept"]), "an anchor is whole or not there"
    assert seen["after"] == seen["verified"] == seen["kept"] + 1


async def read_all(path: Path) -> None:
    store = await SqliteStore.open(path, KEY)
    try:
        await store.transact(lambda tx: (tx.find(Snapshot), tx.entries()))
    finally:
        await store.close()


def overwrite(path: Path) -> None:
    """Spoil the database's pages, but not its header."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))


@pytest.mark.parametrize(
    ("damage", "kind", "code"),
    [
        (lambda path: path.write_bytes(b"not a database at all" * 300), BrokenError, "corrupt_database"),
        (overwrite, BrokenError, "corrupt_database"),
        (lambda path: (path.unlink(), path.mkdir()), UnavailableError, "no_database"),
        (lambda path: (path.unlink(), path.parent.rmdir()), UnavailableError, "no_database"),
    ],
    ids=["other file", "spoilt", "folder", "no folder"],
)
def test_a_damaged_or_missing_file_is_said_in_words(
    damage: Callable[[Path], object], kind: type[FleetError], code: str, tmp_path: Path
) -> None:
    path = tmp_path / "home" / "fleet.db"
    path.parent.mkdir()

    async def body() -> None:
        store = await SqliteStore.open(path, KEY)
        await store.transact(lambda tx: [write_one(tx) for _ in range(100)])
        await store.close()
        damage(path)
        with pytest.raises(kind) as raised:
            await read_all(path)
        assert raised.value.code == code
        assert str(path) in str(raised.value)

    run(body())


def test_a_read_only_database_is_said_in_words(tmp_path: Path) -> None:
    """As root every file may be written, so SQLite itself is told not to."""

    async def body() -> None:
        store = await SqliteStore.open(tmp_path / "fleet.db", KEY)
        await store.transact(lambda tx: store.execute("PRAGMA query_only = ON", {}))
        with pytest.raises(UnavailableError) as raised:
            await store.transact(write_one)
        assert raised.value.code == "read_only"
        assert raised.value.remedy
        await store.close()

    run(body())


def test_waiting_for_another_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.stores.sqlite.BUSY", 0.1)
    path = tmp_path / "fleet.db"

    async def body() -> None:
        store = await SqliteStore.open(path, KEY)
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError) as raised:
            await store.transact(write_one)
        assert raised.value.code == "database_busy"
        other.close()
        assert await store.transact(write_one) == 1
        await store.close()

    run(body())


def test_a_transaction_that_takes_too_long_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.stores.engine.LIMIT", 0.1)
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"

    async def body() -> None:
        store = await SqliteStore.open(tmp_path / "fleet.db", KEY)
        with pytest.raises(UnavailableError) as raised:
            await store.transact(lambda tx: (write_one(tx), store.execute(endless, {})))
        assert raised.value.code == "too_slow"
        assert await store.transact(write_one) == 1
        await store.close()

    run(body())


@pytest.mark.parametrize("known", range(1, len(steps("sqlite"))))
def test_every_older_version_is_brought_up_to_date(known: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def schema(path: Path) -> list[Any]:
        connection = sqlite3.connect(path)
        rows = connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()
        connection.close()
        return rows

    async def opened(path: Path) -> list[Any]:
        await (await SqliteStore.open(path, KEY)).close()
        return schema(path)

    async def body() -> None:
        whole = await opened(tmp_path / "new.db")
        with monkeypatch.context() as patch:
            patch.setattr("cu_fleet.stores.migrations.steps", lambda dialect: steps(dialect)[:known])
            older = await opened(tmp_path / "old.db")
        assert older != whole
        assert await opened(tmp_path / "old.db") == whole

    run(body())


def test_a_step_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = steps("sqlite")[-1]._replace(script="CREATE TABLE half (x text);\nCREATE TABLE half (x text);\n")
    monkeypatch.setattr("cu_fleet.stores.migrations.steps", lambda dialect: (*steps(dialect)[:-1], broken))

    async def body() -> None:
        with pytest.raises(BrokenError, match="already exists"):
            await SqliteStore.open(tmp_path / "fleet.db", KEY)
        monkeypatch.undo()
        store = await SqliteStore.open(tmp_path / "fleet.db", KEY)
        assert await store.transact(write_one) == 1
        await store.close()

    run(body())
