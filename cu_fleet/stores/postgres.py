"""PostgreSQL, by URL.

One controller per database: an advisory lock, held as long as the connection lives, refuses a second one (so the URL
names the server itself, not a pooler that shares connections out by transaction). When the server goes away and comes
back, the next transaction makes a new connection; work is never run twice. A transaction that breaks in the middle is
undone by the server; when its commit was under way nobody can tell, and the caller is told just that.

Only what is to last waits for the server's disk. The entries of looks and actions do not: as with SQLite, a loss of
power (here also the server's own death) may take the last moments of them, never their order.
"""

import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Self

from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, InvalidError, UnavailableError

try:
    import psycopg
    from psycopg import conninfo, errors
except ImportError as e:
    raise UnavailableError(
        "PostgreSQL cannot be used: the Python package psycopg is not installed",
        remedy="pip install 'cu-fleet-controller[postgres]'",
        code="no_psycopg",
    ) from e

from cu_fleet.stores.engine import LIMIT, SqlStore
from cu_fleet.stores.tables import Params
from cu_fleet.stores.transaction import RefusedError, Rows

PATIENCE = 5.0  # seconds to wait for a server that went away, once
LOCK_WAIT = "3s"  # a killed controller's connection may take a moment to end
_LOCK = 0x63756665  # "cufe"

# A transaction whose commit is on disk when it is answered.
BEGIN = "BEGIN"

# And one whose commit the server writes down a moment later: all it takes is the server's own death to lose it.
BEGIN_IN_HASTE = "BEGIN; SET LOCAL synchronous_commit = off"

# Held until this connection ends; one for each schema, so that tests and fleets can share a database.
TAKE_LOCK = "SELECT pg_advisory_lock(:lock, hashtext(coalesce(current_schema(), '')))"

# Who holds it.
LOCK_HOLDER = """
SELECT activity.application_name FROM pg_locks AS lock JOIN pg_stat_activity AS activity USING (pid)
WHERE lock.locktype = 'advisory' AND lock.classid = :lock AND lock.granted
AND lock.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""


class LostError(UnavailableError):
    """The connection broke; the transaction is undone."""

    default_code = "database_lost"


class PostgresStore(SqlStore):
    dialect = "postgres"

    def __init__(self, url: str, audit_key: bytes) -> None:
        super().__init__(audit_key)
        self._params = _parameters(url)
        self._where = f"{self._params.get('dbname', '')} on {self._params.get('host', 'this machine')}"
        self._connection: psycopg.Connection[Any] | None = None
        self._patience = 0.0
        self._behind = False  # whether something was committed in haste since all was made durable
        self._ending = threading.Event()

    @classmethod
    async def open(cls, url: str, audit_key: bytes) -> Self:
        """The store in this database, as its only controller."""
        store = cls(url, audit_key)
        await store.start()
        return store

    async def make_durable(self) -> None:
        """PostgreSQL syncs its log before it answers a lasting commit, and with it all that was committed before."""
        await self.on_thread(self._sync)

    def _sync(self) -> None:
        if self._behind:
            self.run(lambda tx: tx.set_meta("durable", str(time.time())))
            self._behind = False

    async def close(self) -> None:
        self._ending.set()
        await super().close()

    def _reconnect(self) -> None:
        """A connection that lives. Only the first to miss it waits for the server, or a queue would wait in turns."""
        deadline = time.monotonic() + self._patience
        while self._connection is None or self._connection.closed:
            try:
                self.connect()
            except LostError:
                if time.monotonic() >= deadline or self._ending.wait(0.1):
                    self._patience = 0.0
                    raise
        self._patience = PATIENCE

    def connect(self) -> None:
        self.disconnect()
        with self._in_words():
            self._connection = psycopg.connect(**self._params, autocommit=True)
        try:
            self._check_encoding()
            if self._show("synchronous_commit") == "off":
                self.execute("SET synchronous_commit = on", {})
            self._lock()
        except BaseException:
            self.disconnect()
            raise

    def _check_encoding(self) -> None:
        if (encoding := self._show("server_encoding")) != "UTF8":
            raise InvalidError(
                f"the database {self._where} keeps text as {encoding}, not as UTF8",
                remedy="make it with: createdb --encoding UTF8 --template template0",
                code="bad_database",
            )

    def _lock(self) -> None:
        try:
            self.execute(f"SET lock_timeout = '{LOCK_WAIT}'", {})
            self.execute(TAKE_LOCK, {"lock": _LOCK})
        except _LockedError:
            holder = [str(name) for (name,) in self.execute(LOCK_HOLDER, {"lock": _LOCK})]
            raise ConflictError(
                f"another controller uses the database {self._where}: {', '.join(holder) or 'it has just ended'}",
                remedy="stop that one first, or give this one a database of its own",
                code="database_in_use",
                holder=holder,
            ) from None

    def disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            connection.close()

    def begin(self, *, lasting: bool) -> None:
        """On a connection that lives: the server may have gone and come back since the last transaction."""
        statements = BEGIN if lasting else BEGIN_IN_HASTE
        self._behind |= not lasting
        self._reconnect()
        try:
            self.run_script(statements)
        except LostError:
            self._reconnect()
            self.run_script(statements)

    def commit(self) -> None:
        try:
            self.execute("COMMIT", {})
        except LostError as e:
            raise UnavailableError(
                f"the connection to the database {self._where} broke while a transaction was being committed: "
                "whether it was done is not known",
                remedy="look at what is there before asking again",
                code="fate_unknown",
            ) from e

    def rollback(self) -> None:
        """If even this fails, the connection is given up, and the server undoes the transaction by itself."""
        try:
            self.execute("ROLLBACK", {})
        except FleetError:
            self.disconnect()

    def execute(self, statement: str, params: Params) -> Rows:
        if self._connection is None:
            raise LostError(f"there is no connection to the database {self._where}")
        try:
            cursor = self._connection.execute(_translated(statement), params)
            return cursor.fetchall() if cursor.description else []
        except psycopg.Error:
            with self._in_words():
                raise

    def run_script(self, script: str) -> None:
        assert self._connection is not None
        with self._in_words():
            self._connection.execute(script.encode())

    def interrupt(self) -> None:
        """Shut the connection's socket, so that the thread stops waiting even for a server that hangs."""
        connection = self._connection
        if connection and not connection.closed:
            with socket.socket(fileno=os.dup(connection.fileno())) as line:
                line.shutdown(socket.SHUT_RDWR)

    def _show(self, setting: str) -> str:
        return str(self.execute(f"SHOW {setting}", {})[0][0])

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as e:
            raise self._failure(e) from e

    def _failure(self, error: psycopg.Error) -> Exception:
        words = " ".join(str(error).split())
        if isinstance(error, errors.LockNotAvailable):
            return _LockedError(f"the database {self._where} is locked", code="database_busy")
        if (error.sqlstate or "").startswith(("08", "57P")):
            self.disconnect()  # the server is ending it, though our side may not have noticed yet
        if self._connection is None or self._connection.closed:
            return LostError(
                f"the database {self._where} does not answer: {words}",
                remedy="start it, and check the database's URL",
            )
        if isinstance(error, psycopg.IntegrityError):
            unique = isinstance(error, errors.UniqueViolation)
            columns = _columns(error.diag.message_detail or "") if unique else ()
            return RefusedError(error.diag.constraint_name or "", columns, error.diag.message_primary or words)
        for kind, failure, code, what, remedy in _FAILURES:
            if isinstance(error, kind):
                return failure(f"the database {self._where} {what}: {words}", remedy=remedy, code=code)
        return BrokenError(f"the database {self._where} refused a statement: {words}", code="database_refused")


class _LockedError(UnavailableError):
    """Somebody else has locked it for longer than we wait."""


_FAILURES: tuple[tuple[type[psycopg.Error], type[FleetError], str, str, str], ...] = (
    (errors.DiskFull, UnavailableError, "disk_full", "has no room left", "free some space on its server"),
    (errors.OutOfMemory, UnavailableError, "no_memory", "is out of memory", "look at its server"),
    (errors.ReadOnlySqlTransaction, UnavailableError, "read_only", "cannot be written", "use the primary server's URL"),
    (errors.QueryCanceled, UnavailableError, "too_slow", "took too long", "look at its server, and try again"),
    (
        errors.InsufficientPrivilege,
        UnavailableError,
        "no_permission",
        "does not allow this user to keep tables in it",
        "make the user the owner of the database: createdb --owner",
    ),
    (errors.DataCorrupted, BrokenError, "corrupt_database", "is damaged", "put a backup of it in place"),
    (errors.IndexCorrupted, BrokenError, "corrupt_database", "is damaged", "put a backup of it in place"),
)


def _parameters(url: str) -> dict[str, Any]:
    """The URL's own parameters, and ours where it says nothing."""
    try:
        given = conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise InvalidError(
            "the database URL cannot be understood",
            remedy="it looks like postgresql://user@host/name",
            code="bad_database_url",
        ) from None
    timeout = f"-c statement_timeout={int(LIMIT)}s"
    return {
        "connect_timeout": 5,
        "tcp_user_timeout": 10_000,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "client_encoding": "utf8",
        "application_name": f"cu-fleet on {socket.gethostname()}, process {os.getpid()}",
        **{name: value for name, value in given.items() if value is not None},
        "options": f"{timeout} {given.get('options') or ''}".strip(),
    }


@lru_cache
def _translated(statement: str) -> bytes:
    """`:name` as psycopg writes it."""
    return re.sub(r":([a-z_0-9]+)", r"%(\1)s", statement).encode()


def _columns(detail: str) -> tuple[str, ...]:
    """The columns of a unique index that refused a row: `Key (agent, request_id)=(a, r) already exists.`

    The words around them are in the server's language.
    """
    match = re.search(r"\(([a-z_]+(?:, [a-z_]+)*)\)=\(", detail)
    return tuple(match[1].split(", ")) if match else ()
