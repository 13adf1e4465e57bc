"""Records as rows, and rows as records again.

A record class says all there is to say about its table: `TABLE`, `KEY` and `COLUMNS` are the only identifiers that
ever enter a statement; what callers give is bound as named parameters. The whole record lies in `body` as JSON, and is
read back before it is written: what JSON cannot carry is refused, not stored as something else.
"""

import re
from collections.abc import Collection, Mapping
from enum import Enum
from functools import lru_cache
from typing import TypeVar

from pydantic import ValidationError

from cu_fleet.model.audit import Draft, Entry, Sealed
from cu_fleet.model.errors import BrokenError, InvalidError
from cu_fleet.model.record import Record

R = TypeVar("R", bound=Record)
Cell = str | int | float | None
Params = Mapping[str, Cell]

_IDENTIFIER = re.compile(r"[a-z][a-z0-9_]*")


class Table:
    """The statements for one kind of record. Parameters are written `:name`."""

    def __init__(self, kind: type[Record]) -> None:
        self.name, self.key, self.columns = kind.TABLE, kind.KEY, kind.COLUMNS
        for identifier in (self.name, self.key, *self.columns):
            if not _IDENTIFIER.fullmatch(identifier):
                raise BrokenError(f"{kind.__name__} has an identifier that is not one: {identifier!r}")
        self.order = "seq" if kind is Entry else "arrival"
        written = [self.key, *self.columns, "body"]
        columns, values = ", ".join(written), ", ".join(f":{name}" for name in written)
        changes = ", ".join(f"{name} = excluded.{name}" for name in written[1:])
        self.get = f"SELECT body FROM {self.name} WHERE {self.key} = :key"  # noqa: S608 - see the module's head
        self.delete = f"DELETE FROM {self.name} WHERE {self.key} = :key"  # noqa: S608
        self.append = f"INSERT INTO {self.name} ({columns}) VALUES ({values})"  # noqa: S608
        self.put = (
            f"INSERT INTO {self.name} ({columns}, arrival) "  # noqa: S608
            f"VALUES ({values}, (SELECT coalesce(max(arrival), 0) + 1 FROM {self.name})) "
            f"ON CONFLICT ({self.key}) DO UPDATE SET {changes}"
        )

    def where(self, equal: Mapping[str, object]) -> tuple[list[str], dict[str, Cell]]:
        """Conditions and parameters for the columns that must equal, or be any of, what is given."""
        terms: list[str] = []
        params: dict[str, Cell] = {}
        for column, wanted in equal.items():
            if column not in (self.key, *self.columns):
                known = ", ".join((self.key, *self.columns))
                raise InvalidError(f"{self.name} is not found by {column!r}; there are {known}", code="bad_filter")
            several = wanted if isinstance(wanted, Collection) and not isinstance(wanted, str | bytes) else [wanted]
            cells = {cell(value) for value in several}
            named = {f"{column}_{n}": value for n, value in enumerate(cells - {None})}
            either = [f"{column} IN ({', '.join(f':{name}' for name in named)})"] if named else []
            either += [f"{column} IS NULL"] if None in cells else []
            terms.append(f"({' OR '.join(either)})" if either else "1 = 0")
            params |= named
        return terms, params

    def select(self, what: str, terms: Collection[str], which: str = "ASC") -> str:
        where = f" WHERE {' AND '.join(terms)}" if terms else ""
        return f"SELECT {what} FROM {self.name}{where} ORDER BY {self.order} {which}"  # noqa: S608


@lru_cache
def table_of(kind: type[Record]) -> Table:
    return Table(kind)


def cell(value: object) -> Cell:
    """A value as both databases store and compare it."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, str) and ("\0" in value or (not value.isprintable() and _half(value))):
        raise InvalidError(f"{value!r} cannot be stored: it is not text", code="not_text")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidError(f"{value} is too large a number", code="bad_number")
    if value is None or isinstance(value, str | int | float):
        return value
    raise InvalidError(f"{value!r} cannot be stored in a column", code="not_storable")


def _half(text: str) -> bool:
    """Whether it contains half a character, which UTF-8 cannot carry."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def row_of(record: Record) -> dict[str, object]:
    """The parameters that write this record."""
    try:
        body = record.model_dump_json()
        same = type(record).model_validate_json(body) == record
    except (ValueError, ValidationError) as e:
        raise InvalidError(f"{record.TABLE} {record.key!r} cannot be stored: {e}", code="not_storable") from None
    if not same:
        what = f"{record.TABLE} {record.key!r} cannot be stored: it would be read back as something else"
        raise InvalidError(what, code="not_storable")
    return {name: getattr(record, name) for name in (record.KEY, *record.COLUMNS)} | {"body": body}


@lru_cache(500)  # records do not change; the same few are read again and again
def record_of(kind: type[R], body: str) -> R:
    try:
        return kind.model_validate_json(body)
    except ValidationError as e:
        problem = e.errors(include_url=False)[0]
        raise BrokenError(
            f"a {kind.TABLE} in the database cannot be read: {'.'.join(map(str, problem['loc']))}: {problem['msg']}",
            remedy="it was changed by something else than this program, or by another version of it",
            code="unreadable_record",
        ) from None


def entry_row(draft: Draft, made: Sealed) -> dict[str, object]:
    """The parameters that write an audit entry: its body is the very text that its MAC covers."""
    of_draft = draft.__dict__
    return {name: of_draft.get(name) for name in Entry.COLUMNS} | {"seq": made.seq, "mac": made.mac, "body": made.text}


ENTRY_COLUMNS = ", ".join(("seq", *Entry.COLUMNS, "body"))


def entry_of(row: tuple[Cell, ...]) -> Entry:
    """An audit entry as it was chained. A column that does not say what the body says was changed by hand.

    The body alone is covered by the MAC; a forged column would otherwise hide an entry from those who filter by it.
    """
    seq, *columns, body = row
    try:
        entry = Entry.model_validate_json(str(body)).model_copy(update={"mac": columns[Entry.COLUMNS.index("mac")]})
        whole = entry.seq == seq and all(
            getattr(entry, name) == value for name, value in zip(Entry.COLUMNS, columns, strict=True)
        )
    except ValidationError:
        whole = False
    if not whole:
        raise BrokenError(
            f"the audit record is broken at entry {seq}: its row was changed",
            remedy="compare it with an export or a copy of the database",
            code="audit_changed",
            seq=seq,
        )
    return entry
