"""SQLite, in a file of the home or in memory.

WAL with synchronous=NORMAL: the death of the process loses nothing; the loss of power may lose the last transactions,
never the consistency. `make_durable` closes that gap when it matters: one small commit with synchronous=FULL syncs the
log, and with it all that was committed before.

Other processes may use the same file (`BEGIN IMMEDIATE` and a busy timeout put them in line); that there is one
controller for it is settled by the lock on the home.

A commit that need not last writes to the log, which the system keeps in memory: no disk is waited for, and so the loop
does it itself. What does wait is the thread's: another process's transaction, a commit that grew slow, and every so
often to bring the log into the database, with the first write to the new log, which syncs its head.
"""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError
from cu_fleet.stores.engine import SqlStore
from cu_fleet.stores.tables import Params
from cu_fleet.stores.transaction import SET_META, RefusedError, Rows

BUSY = 10.0  # seconds to wait for another process's transaction
LOG = 250  # rows written, after which the log is brought into the database: a few megabytes
_SLOW = 0.05  # seconds that the loop may be held up by a commit
_WARY = 5.0  # and for which it holds back after one that was slower

_UNIQUE = re.compile(r"UNIQUE constraint failed: (\w+\.\w+(?:, \w+\.\w+)*)")


class SqliteStore(SqlStore):
    dialect = "sqlite"

    def __init__(self, path: Path | None, audit_key: bytes) -> None:
        super().__init__(audit_key)
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._synced = 0  # what `total_changes` said when all was last made durable
        self._folded = 0  # and when the log was last brought in
        self._patient = True  # whether it waits for other processes
        self._began_now: float | None = None  # when the loop began the transaction under way
        self._held_back = 0.0  # until when nothing is done at once

    @classmethod
    async def open(cls, path: Path, audit_key: bytes) -> Self:
        """The store in this file, which is made if it is not there."""
        store = cls(path, audit_key)
        await store.start()
        return store

    @classmethod
    async def memory(cls, audit_key: bytes) -> Self:
        """A store that lives as long as it is open: for tests, with the same referee as a real one."""
        store = cls(None, audit_key)
        await store.start()
        return store

    async def make_durable(self) -> None:
        if self._path is not None:
            await self.on_thread(self._sync)

    def _sync(self) -> None:
        if self._db.total_changes == self._synced:
            return
        self._pragma("synchronous = FULL")
        try:
            self.run(lambda tx: tx.set_meta("durable", str(self._db.total_changes)))
            self._synced = self._db.total_changes
        finally:
            self._pragma("synchronous = NORMAL")

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            raise UnavailableError("the store is closed", code="store_closed")
        return self._connection

    def connect(self) -> None:
        with self._in_words():
            if self._path is not None:
                _make_private(self._path)
            self._connection = sqlite3.connect(
                self._path or ":memory:", timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            self._pragma("foreign_keys = ON")
            self._switch_to_wal()
            self._pragma("synchronous = NORMAL")
            self._pragma(f"journal_size_limit = {64 << 20}")
            self._pragma("wal_autocheckpoint = 0")

    def _switch_to_wal(self) -> None:
        """The one statement for which SQLite does not wait when another process is just doing the same."""
        deadline = time.monotonic() + BUSY
        while True:
            try:
                return self._pragma("journal_mode = WAL")
            except UnavailableError as e:
                if e.code != "database_busy" or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            with self._in_words():
                connection.close()

    def begin(self, *, lasting: bool) -> None:
        self._began_now = None
        if not self._patient:
            self._be_patient(True)
        if self._db.total_changes - self._folded >= LOG:
            self._fold()
        self.execute("BEGIN IMMEDIATE", {})

    def begin_now(self) -> bool:
        began = time.monotonic()
        if began < self._held_back or self._db.total_changes - self._folded >= LOG:
            return False
        if self._patient:
            self._be_patient(False)
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False  # the thread will wait for it, or say what is wrong
        self._began_now = began
        return True

    def commit(self) -> None:
        self.execute("COMMIT", {})
        began, self._began_now = self._began_now, None
        if began is not None and (now := time.monotonic()) - began > _SLOW:
            self._held_back = now + _WARY

    def _be_patient(self, patient: bool) -> None:
        self._pragma(f"busy_timeout = {int(1000 * BUSY) if patient else 0}")
        self._patient = patient

    def _fold(self) -> None:
        """Bring the log into the database, and begin a new one. What fails here is tried again with the next."""
        with contextlib.suppress(UnavailableError):
            self._pragma("wal_checkpoint(PASSIVE)")
            self.execute(SET_META, {"name": "folded", "value": str(self._db.total_changes)})
            self._folded = self._db.total_changes

    def rollback(self) -> None:
        """SQLite has done it by itself after some errors, such as a full disk."""
        if self._connection and self._connection.in_transaction:
            self.execute("ROLLBACK", {})

    def execute(self, statement: str, params: Params) -> Rows:
        try:
            return self._db.execute(statement, params).fetchall()
        except sqlite3.Error:
            with self._in_words():
                raise

    def run_script(self, script: str) -> None:
        """Statement by statement, because `executescript` would commit first."""
        statement = ""
        for line in script.splitlines(keepends=True):
            statement += line
            if sqlite3.complete_statement(statement):
                self.execute(statement, {})
                statement = ""

    def interrupt(self) -> None:
        if connection := self._connection:
            connection.interrupt()

    def _pragma(self, pragma: str) -> None:
        self.execute(f"PRAGMA {pragma}", {})

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError as e:
            raise self._refused(e) from None
        except sqlite3.Error as e:
            raise self._failure(e) from e
        except OSError as e:
            raise UnavailableError(
                f"the database {self._path} cannot be opened: {e.strerror}", code="no_database", path=str(self._path)
            ) from e

    def _refused(self, error: sqlite3.IntegrityError) -> RefusedError:
        match = _UNIQUE.match(str(error))
        if not match:
            return RefusedError(error.sqlite_errorname, words=str(error))
        table = match[1].split(".")[0]
        columns = tuple(column.split(".")[1] for column in match[1].split(", "))
        return RefusedError(self._index(table, columns), columns, str(error))

    def _index(self, table: str, columns: tuple[str, ...]) -> str:
        """The name of the unique index over these columns; SQLite's errors do not say it."""
        indexes = self._db.execute(
            "SELECT name, origin FROM pragma_index_list(?) WHERE \"unique\" ORDER BY origin = 'pk'", [table]
        ).fetchall()
        for name, origin in indexes:
            of = self._db.execute("SELECT name FROM pragma_index_info(?) ORDER BY seqno", [name])
            if tuple(column for (column,) in of) == columns:
                return f"{table}_pkey" if origin == "pk" else str(name)
        return f"{table}_{'_'.join(columns)}"

    def _failure(self, error: sqlite3.Error) -> FleetError:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        kind, code, what, remedy = _FAILURES.get(
            primary, (BrokenError, "database_refused", f"refused a statement: {error}", "")
        )
        return kind(f"the database {self._path or 'in memory'} {what}", remedy=remedy, code=code, sqlite=str(error))


_NOTHING_WRITTEN = "; the transaction was undone"
_FAILURES: dict[int, tuple[type[FleetError], str, str, str]] = {
    sqlite3.SQLITE_FULL: (
        UnavailableError,
        "disk_full",
        f"cannot grow: the disk is full{_NOTHING_WRITTEN}",
        "free some space there",
    ),
    sqlite3.SQLITE_IOERR: (
        UnavailableError,
        "disk_failed",
        f"cannot be read or written: the disk failed, or a quota or limit on file sizes is reached{_NOTHING_WRITTEN}",
        "look at the disk and its free space",
    ),
    sqlite3.SQLITE_READONLY: (
        UnavailableError,
        "read_only",
        "cannot be written",
        "give its owner the right to write it and its folder, and check that the disk is not mounted read-only",
    ),
    sqlite3.SQLITE_CANTOPEN: (
        UnavailableError,
        "no_database",
        "cannot be opened",
        "check that its folder is there and may be written",
    ),
    sqlite3.SQLITE_BUSY: (
        UnavailableError,
        "database_busy",
        f"is being written by another process for more than {BUSY:.0f} s{_NOTHING_WRITTEN}",
        "end that process, or try again",
    ),
    sqlite3.SQLITE_INTERRUPT: (
        UnavailableError,
        "too_slow",
        f"took too long{_NOTHING_WRITTEN}",
        "look at the disk; try again",
    ),
    sqlite3.SQLITE_CORRUPT: (BrokenError, "corrupt_database", "is damaged", "put a copy of it in place"),
    sqlite3.SQLITE_NOTADB: (
        BrokenError,
        "corrupt_database",
        "is no SQLite database, or is damaged",
        "put a copy of it in place, or move it away to begin anew",
    ),
}


def _make_private(path: Path) -> None:
    """Make the file for its owner alone; SQLite gives its log the same mode.

    One that is there is not even opened: closing it would drop the locks of another connection in this process.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        if path.is_file():
            path.chmod(0o600)
