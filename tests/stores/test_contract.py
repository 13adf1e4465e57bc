"""The contract suite over every store that ships."""

import sqlite3
from functools import partial
from pathlib import Path

import psycopg
import pytest

from cu_fleet.stores.base import Store
from cu_fleet.stores.postgres import PostgresStore
from cu_fleet.stores.sqlite import SqliteStore
from cu_fleet.testing.postgres import PrivatePostgres
from cu_fleet.testing.store_base import KEY
from cu_fleet.testing.store_contract import LastingStoreContract, StoreContract
from cu_fleet.testing.store_writer import Opener

SQLITE_TRIGGERS = [f"DROP TRIGGER IF EXISTS audit_never_{what}" for what in ("changed", "removed", "skips")]


class TestMemory(StoreContract):
    async def open(self) -> Store:
        return await SqliteStore.memory(KEY)

    async def intrude(self, store: Store, *sql: str) -> None:
        assert isinstance(store, SqliteStore)
        for statement in [*SQLITE_TRIGGERS, *sql]:
            await store.transact(lambda tx, s=statement: store.execute(s, {}))  # type: ignore[misc]


class TestSqlite(LastingStoreContract):
    @pytest.fixture(autouse=True)
    def _database(self, tmp_path: Path) -> None:
        self.path = tmp_path / "fleet.db"

    def opener(self, key: bytes = KEY) -> Opener:
        return partial(SqliteStore.open, self.path, key)

    async def intrude(self, store: Store, *sql: str) -> None:
        connection = sqlite3.connect(self.path)
        connection.executescript(";".join([*SQLITE_TRIGGERS, *sql]))
        connection.close()


@pytest.mark.real
class TestPostgres(LastingStoreContract):
    @pytest.fixture(autouse=True)
    def _database(self, postgres: PrivatePostgres) -> None:
        self.url = postgres.new_database()

    def opener(self, key: bytes = KEY) -> Opener:
        return partial(PostgresStore.open, self.url, key)

    async def intrude(self, store: Store, *sql: str) -> None:
        with psycopg.connect(self.url) as connection:
            for statement in ["ALTER TABLE audit DISABLE TRIGGER USER", *sql]:
                connection.execute(statement.encode())
