"""What is PostgreSQL's own: one controller per database, a server that goes away and comes back, URLs."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from cu_fleet.model.audit import verify
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, InvalidError, UnavailableError
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Store, Tx, all_entries
from cu_fleet.stores.postgres import PostgresStore
from cu_fleet.testing.postgres import PrivatePostgres
from cu_fleet.testing.store_base import KEY
from cu_fleet.testing.store_writer import write_one
from tests.support import run, until

pytestmark = pytest.mark.real


@pytest.fixture
def url(postgres: PrivatePostgres) -> str:
    return postgres.new_database()


@contextmanager
def beside(url: str) -> Iterator["psycopg.Connection[tuple[object, ...]]"]:
    """Another connection to the same database, with an administrator's rights."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


# Ends the store's own connection.
END = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'cu-fleet%'"""


async def kept(store: Store) -> int:
    """How many transactions landed, after a look at the whole of it."""
    count = len(await store.transact(lambda tx: tx.find(Snapshot)))
    assert await store.transact(lambda tx: verify(all_entries(tx), [], KEY)) == count
    return count


async def refusal(url: str) -> FleetError:
    with pytest.raises(FleetError) as raised:
        await PostgresStore.open(url, KEY)
    return raised.value


def test_a_second_controller_is_told_who_has_the_database(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.stores.postgres.LOCK_WAIT", "100ms")

    async def body() -> None:
        first = await PostgresStore.open(url, KEY)
        refused = await refusal(url)
        assert isinstance(refused, ConflictError)
        assert refused.code == "database_in_use"
        assert f"process {os.getpid()}" in str(refused)
        assert await first.transact(write_one) == 1
        await first.close()
        second = await PostgresStore.open(url, KEY)
        assert await second.transact(write_one) == 2
        await second.close()

    run(body())


def test_one_that_lost_its_connection_and_its_place_writes_no_more(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cu_fleet.stores.postgres.LOCK_WAIT", "100ms")

    async def body() -> None:
        first = await PostgresStore.open(url, KEY)
        with beside(url) as other:
            other.execute(END)
        second = await PostgresStore.open(url, KEY)
        for _ in range(2):
            with pytest.raises(ConflictError, match="another controller"):
                await first.transact(write_one)
        await second.close()
        assert await first.transact(write_one) == 1
        await first.close()

    run(body())


def test_it_goes_on_after_the_server_was_restarted(postgres: PrivatePostgres, url: str) -> None:
    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        for number in range(1, 4):
            assert await store.transact(write_one) == number
            postgres.restart()
        assert await kept(store) == 3
        await store.close()

    run(body())


def test_it_waits_for_a_server_that_is_still_starting(postgres: PrivatePostgres, url: str) -> None:
    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        postgres.stop()
        waiting = asyncio.create_task(store.transact(write_one), name="waiting")
        await asyncio.sleep(0)  # the store's own thread is at it from now on
        postgres.start()
        assert await waiting == 1
        await store.close()

    try:
        run(body())
    finally:
        postgres.restart()


def test_without_a_server_it_says_so_and_does_not_hang(
    postgres: PrivatePostgres, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cu_fleet.stores.postgres.PATIENCE", 0.3)

    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        postgres.stop()
        for _ in range(3):
            with pytest.raises(UnavailableError) as raised:
                await store.transact(write_one)
            assert raised.value.code == "database_lost"
            assert raised.value.remedy
        assert (await refusal(url)).code == "database_lost"
        postgres.start()
        assert await store.transact(write_one) == 1
        await store.close()

    try:
        run(body())
    finally:
        postgres.restart()


def test_a_transaction_that_breaks_in_the_middle_is_undone_and_not_run_again(url: str) -> None:
    runs: list[int] = []

    def work(tx: Tx) -> None:
        runs.append(write_one(tx))
        with beside(url) as other:
            other.execute(END)
        write_one(tx)

    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        with pytest.raises(UnavailableError) as raised:
            await store.transact(work)
        assert raised.value.code == "database_lost"
        assert runs == [1]
        assert await kept(store) == 0
        await store.close()

    run(body())


# Makes every commit with a snapshot in it wait for the administrator's lock.
SLOW_COMMIT = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(1);
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON snapshot DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION slow();
SELECT pg_advisory_lock(1)"""

COMMITTING = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND query = 'COMMIT' AND wait_event_type = 'Lock'"""


def test_a_commit_whose_fate_is_unknown_is_reported_as_that(url: str) -> None:
    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        with beside(url) as other:
            other.execute(SLOW_COMMIT)
            task = asyncio.create_task(store.transact(write_one), name="committing")
            await until(lambda: other.execute(COMMITTING).fetchone() == (1,))
            other.execute(END)
            with pytest.raises(UnavailableError) as raised:
                await task
            assert raised.value.code == "fate_unknown"
            other.execute("DROP TRIGGER slow ON snapshot")
        assert await store.transact(write_one) == await kept(store)
        await store.close()

    run(body())


def test_a_server_that_hangs_is_given_up(postgres: PrivatePostgres, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process for this connection is stopped in the middle: only our side can end the wait."""
    monkeypatch.setattr("cu_fleet.stores.engine.LIMIT", 0.2)
    stopped: list[int] = []

    def work(tx: Tx) -> None:
        write_one(tx)
        with beside(url) as other:
            query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
            stopped.extend(int(str(pid)) for (pid,) in other.execute(query))
        os.kill(stopped[0], signal.SIGSTOP)
        write_one(tx)

    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        try:
            with pytest.raises(UnavailableError) as raised:
                await store.transact(work)
        finally:
            os.kill(stopped[0], signal.SIGCONT)
        assert raised.value.code == "database_lost"
        assert await store.transact(write_one) == 1
        assert await kept(store) == 1
        await store.close()

    run(body())


def test_the_record_cannot_be_changed_or_emptied_by_plain_sql(url: str) -> None:
    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        await store.transact(write_one)
        with beside(url) as other:
            for sql in ("UPDATE audit SET who = 'x'", "DELETE FROM audit", "TRUNCATE audit"):
                with pytest.raises(psycopg.errors.IntegrityConstraintViolation, match="append-only"):
                    other.execute(sql)
        assert await kept(store) == 1
        await store.close()

    run(body())


def test_a_commit_is_on_disk_even_where_the_server_would_not_wait(postgres: PrivatePostgres, url: str) -> None:
    """Our private server says `synchronous_commit = off`; a store must not believe a commit that is not yet durable."""

    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        with beside(url) as other:
            assert other.execute("SHOW synchronous_commit").fetchone() == ("off",)
        assert await store.transact(lambda tx: store.execute("SHOW synchronous_commit", {})) == [("on",)]
        await store.close()

    run(body())


def test_a_commit_in_haste_is_on_disk_once_all_is_made_durable(url: str) -> None:
    async def body() -> None:
        store = await PostgresStore.open(url, KEY)
        setting = await store.transact(lambda tx: store.execute("SHOW synchronous_commit", {}), lasting=False)
        assert setting == [("off",)]
        assert await store.transact(lambda tx: store.execute("SHOW synchronous_commit", {})) == [("on",)]
        await store.transact(write_one, lasting=False)
        with beside(url) as other:
            written = other.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
            await store.make_durable()
            flushed = "SELECT pg_current_wal_flush_lsn() >= %s::pg_lsn, (SELECT value FROM meta WHERE name = 'durable')"
            done, first = other.execute(flushed, written).fetchone() or (None, None)
            assert done
            await store.make_durable()  # nothing is left to do
            assert (other.execute(flushed, written).fetchone() or (None, None))[1] == first
        await store.close()

    run(body())


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [
        ("postgresql://secret:hunter2@[bad", InvalidError, "bad_database_url"),
        ("postgresql:///nowhere?host=/nonexistent&password=hunter2", UnavailableError, "database_lost"),
        ("latin", InvalidError, "bad_database"),
        ("foreign", BrokenError, "database_refused"),
        ("stranger", UnavailableError, "no_permission"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_in_words(
    how: str, kind: type[FleetError], code: str, postgres: PrivatePostgres, url: str
) -> None:
    with beside(url) as other:
        if how == "latin":
            other.execute("DROP DATABASE IF EXISTS latin")
            other.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
            how = postgres.url("latin")
        elif how == "foreign":
            other.execute("CREATE TABLE lease (id text)")
            how = url
        elif how == "stranger":
            other.execute("DROP ROLE IF EXISTS stranger")
            other.execute("CREATE ROLE stranger LOGIN")
            how = url.replace("user=fleet", "user=stranger")

    async def body() -> None:
        refused = await refusal(how)
        assert isinstance(refused, kind)
        assert refused.code == code
        assert "hunter2" not in str(refused)

    run(body())
