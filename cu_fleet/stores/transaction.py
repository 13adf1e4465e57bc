"""One transaction over an SQL database: what the work is given, and what makes it all or nothing.

The first failure dooms it: whatever the work does then raises that same error, and so does its end, even if the work
has caught it. PostgreSQL would allow nothing else, and half of "all of these or none" must not land by a careless
`except`.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from cu_fleet.model.audit import Draft, Entry, Sealed, sealed
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError
from cu_fleet.model.record import Record
from cu_fleet.stores.base import TakenError
from cu_fleet.stores.tables import ENTRY_COLUMNS, Cell, Params, cell, entry_of, entry_row, record_of, row_of, table_of

R = TypeVar("R", bound=Record)
Rows = list[tuple[Cell, ...]]
Execute = Callable[[str, Params], Rows]

# The newest number of a sequence, after counting one up.
NEXT_NUMBER = """
INSERT INTO number (name, value) VALUES (:name, 1)
ON CONFLICT (name) DO UPDATE SET value = number.value + 1 RETURNING value"""

# One fact about the fleet.
GET_META = "SELECT value FROM meta WHERE name = :name"

# The same fact, written or changed.
SET_META = """
INSERT INTO meta (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value"""

# The same fact, forgotten.
FORGET_META = "DELETE FROM meta WHERE name = :name"

# Where the audit chain ends.
END = "SELECT seq, mac FROM audit ORDER BY seq DESC LIMIT 1"

# The newest audit entry.
HEAD = f"SELECT {ENTRY_COLUMNS} FROM audit ORDER BY seq DESC LIMIT 1"  # noqa: S608 - columns of Entry, nothing else


class RefusedError(Exception):
    """The database says that a write would make an illegal state. `columns` where it is a unique index, else empty."""

    def __init__(self, index: str, columns: tuple[str, ...] = (), words: str = "") -> None:
        super().__init__(words or index)
        self.index = index
        self.columns = columns


class SqlTx:
    """See `stores.base.Tx`."""

    def __init__(self, execute: Execute, audit_key: bytes) -> None:
        self._execute = execute
        self._key = audit_key
        self._error: FleetError | None = None
        self.over = False

    def get(self, kind: type[R], key: str) -> R | None:
        _not_the_chain(kind)
        rows = self._do(table_of(kind).get, {"key": key})
        return record_of(kind, str(rows[0][0])) if rows else None

    def find(self, kind: type[R], /, **equal: object) -> list[R]:
        _not_the_chain(kind)
        table = table_of(kind)
        terms, params = table.where(equal)
        return [record_of(kind, str(body)) for (body,) in self._do(table.select("body", terms), params)]

    def put(self, record: Record) -> None:
        _not_the_chain(type(record))
        self._do(table_of(type(record)).put, row_of(record), record)

    def delete(self, record: Record) -> None:
        _not_the_chain(type(record))
        self._do(table_of(type(record)).delete, {"key": record.key}, record)

    def next_number(self, name: str) -> int:
        return int(self._do(NEXT_NUMBER, {"name": name})[0][0] or 0)

    def append(self, draft: Draft) -> Entry:
        return self._append(draft).entry()

    def add(self, draft: Draft) -> int:
        return self._append(draft).seq

    def _append(self, draft: Draft) -> Sealed:
        """The chain's end is read anew each time: a cached one would outlive a rollback, or another process's entry."""
        rows = self._do(END, {})
        made = sealed(draft, (int(rows[0][0] or 0), str(rows[0][1])) if rows else None, self._key)
        self._do(table_of(Entry).append, entry_row(draft, made))
        return made

    def head(self) -> Entry | None:
        rows = self._do(HEAD, {})
        return entry_of(rows[0]) if rows else None

    def entries(self, *, after: int = 0, limit: int = 1000, **equal: object) -> list[Entry]:
        return self._entries("ASC", after, limit, equal)

    def newest(self, *, limit: int, **equal: object) -> list[Entry]:
        return self._entries("DESC", 0, limit, equal)[::-1]

    def _entries(self, order: str, after: int, limit: int, equal: Mapping[str, object]) -> list[Entry]:
        table = table_of(Entry)
        terms, params = table.where(equal)
        statement = table.select(ENTRY_COLUMNS, ["seq > :after", *terms], f"{order} LIMIT :limit")
        return [entry_of(row) for row in self._do(statement, {**params, "after": after, "limit": limit})]

    def get_meta(self, name: str) -> str | None:
        rows = self._do(GET_META, {"name": name})
        return str(rows[0][0]) if rows else None

    def set_meta(self, name: str, value: str | None) -> None:
        if value is None:
            self._do(FORGET_META, {"name": name})
        else:
            self._do(SET_META, {"name": name, "value": value})

    def check(self) -> None:
        """Raise what went wrong, if the work has kept silent about it."""
        if self._error:
            raise self._error

    def _do(self, statement: str, params: Mapping[str, object], record: Record | None = None) -> Rows:
        if self.over:
            raise BrokenError("a transaction was used after its end", code="transaction_over")
        if self._error:
            raise self._error
        cells = {name: cell(value) for name, value in params.items()}
        try:
            return self._execute(statement, cells)
        except RefusedError as refused:
            self._error = why_refused(refused, record)
        except FleetError as e:
            self._error = e
        raise self._error


def _not_the_chain(kind: type[Record]) -> None:
    if kind is Entry:
        raise ConflictError(
            "the audit record is a chain, not a table of records",
            remedy="add to it with append, and read it with entries",
            code="append_only",
        )


def why_refused(refused: RefusedError, record: Record | None = None) -> FleetError:
    """The refusal of a write in words."""
    name = f"{record.TABLE} {record.key}" if record else "a transaction"
    if not (refused.columns and record):
        return ConflictError(f"{name} was refused: {refused}", code="illegal_state", index=refused.index)
    values = {column: getattr(record, column) for column in refused.columns}
    has = " and ".join(f"{column} {value}" for column, value in values.items())
    return TakenError(
        f"{name} was refused: another {record.TABLE} has {has}",
        index=refused.index,
        table=record.TABLE,
        key=record.key,
        values=values,
    )
