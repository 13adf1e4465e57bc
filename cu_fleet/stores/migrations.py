"""The schema, step by step: each file in `stores/sql` runs once, in order, and the database knows how far it is.

`NNNN_name.sql` is for every database, `NNNN_name.sqlite.sql` and `NNNN_name.postgres.sql` for one of them. All that is
missing runs in one transaction: a database is never between two versions.
"""

import re
from functools import cache
from importlib import resources
from typing import NamedTuple, Protocol

from cu_fleet.model.errors import BrokenError, ConflictError
from cu_fleet.stores.tables import Params
from cu_fleet.stores.transaction import Rows

_FILE = re.compile(r"(\d{4})_(\w+)(?:\.(sqlite|postgres))?\.sql")

# How far this database is; made before the first step, and empty until then.
CREATE = "CREATE TABLE IF NOT EXISTS schema_version (version integer NOT NULL PRIMARY KEY, name text NOT NULL)"
VERSION = "SELECT coalesce(max(version), 0) FROM schema_version"
REACHED = "INSERT INTO schema_version (version, name) VALUES (:version, :name)"


class Step(NamedTuple):
    version: int
    name: str
    script: str


class Database(Protocol):
    """What migrating needs; all of it inside one transaction."""

    dialect: str

    def execute(self, statement: str, params: Params) -> Rows: ...

    def run_script(self, script: str) -> None: ...


@cache
def steps(dialect: str) -> tuple[Step, ...]:
    """The steps for one database, in order."""
    found = []
    for file in resources.files("cu_fleet.stores").joinpath("sql").iterdir():
        match = _FILE.fullmatch(file.name)
        if match and match[3] in (None, dialect):
            found.append(Step(int(match[1]), match[2], file.read_text("utf-8")))
    found.sort()
    if [step.version for step in found] != list(range(1, len(found) + 1)):
        raise BrokenError(f"the schema for {dialect} has a step too many or too few: {[step[:2] for step in found]}")
    return tuple(found)


def migrate(database: Database) -> None:
    """Bring the database to this program's version; refuse one that is ahead of it."""
    known = steps(database.dialect)
    database.execute(CREATE, {})
    version = int(database.execute(VERSION, {})[0][0] or 0)
    if version > len(known):
        raise ConflictError(
            f"the database is from a newer cu-fleet: its version is {version}, this program knows up to {len(known)}",
            remedy="run the newer cu-fleet, or go back to a copy of the database from before it",
            code="newer_database",
            version=version,
            known=len(known),
        )
    for step in known[version:]:
        database.run_script(step.script)
        database.execute(REACHED, {"version": step.version, "name": step.name})
