"""What every store must do, as tests.

    class TestMine(LastingStoreContract):
        @pytest.fixture(autouse=True)
        def _database(self, tmp_path): self.path = tmp_path / "db"
        def opener(self, key=KEY): return partial(MyStore.open, self.path, key)
        async def intrude(self, store, *sql): ...

Each test gets an empty database; opening again within a test finds what was written before. A store that ends with
its process runs `StoreContract` alone and overrides `open` instead.
"""

import asyncio
import threading

import pytest

from cu_fleet.model.audit import verify
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, UnavailableError
from cu_fleet.model.lease import Lease
from cu_fleet.model.resource import Holding
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Store, Tx, all_entries, stream_entries
from cu_fleet.testing.store_base import DEADLINE, KEY, desktop, draft, lease, put
from cu_fleet.testing.store_chain import ChainContract
from cu_fleet.testing.store_records import RecordContract
from cu_fleet.testing.store_writer import Opener, acknowledged, start_writer, write_one


class StoreContract(RecordContract, ChainContract):
    """For every store."""

    def test_a_raised_error_undoes_everything(self) -> None:
        def work(tx: Tx) -> None:
            tx.put(desktop(1))
            tx.set_meta("fact", "new")
            assert tx.next_number("n") == 2
            tx.append(draft(2))
            raise ZeroDivisionError

        def first(tx: Tx) -> None:
            tx.set_meta("fact", "old")
            tx.set_meta("other", "x")
            tx.set_meta("other", None)
            assert tx.next_number("n") == 1
            tx.append(draft(1))

        async def body(store: Store) -> None:
            await store.transact(first)
            with pytest.raises(ZeroDivisionError):
                await store.transact(work)
            assert await store.transact(lambda tx: tx.get(Desktop, "dk_1")) is None
            assert await store.transact(lambda tx: (tx.get_meta("fact"), tx.get_meta("other"))) == ("old", None)
            assert await store.transact(lambda tx: (tx.next_number("n"), tx.next_number("m"))) == (2, 1)
            assert (await store.transact(lambda tx: tx.append(draft(3)))).seq == 2
            assert await store.transact(lambda tx: verify(all_entries(tx, batch=1), [], KEY)) == 2

        self.run(body)

    def test_cancelling_leaves_no_half_and_blocks_nobody(self) -> None:
        began, go_on = threading.Event(), threading.Event()

        def slow(tx: Tx) -> None:
            tx.put(desktop(1))
            began.set()
            assert go_on.wait(DEADLINE)
            tx.put(desktop(2))

        async def body(store: Store) -> None:
            running = asyncio.create_task(store.transact(slow), name="running")
            await asyncio.to_thread(began.wait)
            queued = asyncio.create_task(store.transact(put(desktop(3))), name="queued")
            await asyncio.sleep(0)
            queued.cancel()
            running.cancel()
            await asyncio.wait({queued})
            assert not running.done(), "it ends only when its transaction has"
            go_on.set()
            await asyncio.wait({running})
            assert running.cancelled()
            assert queued.cancelled()
            await store.transact(put(desktop(4)))
            assert [x.id for x in await store.transact(lambda tx: tx.find(Desktop))] == ["dk_1", "dk_2", "dk_4"]

        self.run(body)

    def test_closing_waits_for_what_was_begun_and_closes_even_if_cancelled(self) -> None:
        began, go_on = threading.Event(), threading.Event()

        def slow(tx: Tx) -> None:
            began.set()
            assert go_on.wait(DEADLINE)
            tx.put(desktop(1))

        async def body(store: Store) -> None:
            running = asyncio.create_task(store.transact(slow), name="running")
            await asyncio.to_thread(began.wait)
            closing = asyncio.create_task(store.close(), name="closing")
            await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait({closing})
            with pytest.raises(UnavailableError, match="closed"):
                await store.transact(put(desktop(2)))
            go_on.set()
            await running

        self.run(body)

    def test_misuse_is_refused_in_words(self) -> None:
        async def later(tx: Tx) -> None:
            tx.put(desktop(2))

        async def body(store: Store) -> None:
            def nested(tx: Tx) -> None:
                tx.put(desktop(1))
                asyncio.run(store.transact(put(desktop(2))))

            with pytest.raises(BrokenError, match="inside another"):
                await store.transact(nested)
            with pytest.raises(BrokenError, match="plain function"):
                await (await store.transact(later))
            kept = await store.transact(lambda tx: tx)
            with pytest.raises(BrokenError, match="after its end"):
                kept.find(Desktop)
            for forge in (lambda tx: tx.put(tx.append(draft(1))), lambda tx: tx.delete(tx.append(draft(1)))):
                with pytest.raises(ConflictError, match="chain"):
                    await store.transact(forge)
            assert await store.transact(lambda tx: (tx.find(Desktop), tx.head())) == ([], None)
            await store.close()
            await store.close()
            with pytest.raises(UnavailableError, match="closed"):
                await store.transact(put(desktop(3)))

        self.run(body)


class LastingStoreContract(StoreContract):
    """For stores that outlive their process."""

    def opener(self, key: bytes = KEY) -> Opener:
        """Opens this test's database; can be pickled, for another process."""
        raise AssertionError("a subclass says how to open its store")

    async def open(self) -> Store:
        return await self.opener()()

    async def refusal(self, key: bytes = KEY) -> FleetError:
        with pytest.raises(FleetError) as raised:
            await self.opener(key)()
        return raised.value

    def test_all_of_it_is_there_after_opening_again(self) -> None:
        records = [desktop(2, handle={"pid": 7, "x": None}), desktop(1), lease(1), Holding(resource="r", lease="ls_1")]

        async def body(store: Store) -> None:
            await store.transact(put(*records))
            await store.transact(lambda tx: tx.set_meta("fact", "é"))
            await store.transact(lambda tx: (tx.next_number("n"), tx.append(draft(1))))
            await store.make_durable()
            await store.make_durable()
            await store.close()
            again = await self.open()
            found = await again.transact(lambda tx: [*tx.find(Desktop), *tx.find(Lease), *tx.find(Holding)])
            assert found == records
            assert await again.transact(lambda tx: (tx.next_number("n"), tx.get_meta("fact"))) == (2, "é")
            assert (await again.transact(lambda tx: tx.append(draft(2)))).seq == 2
            assert await again.transact(lambda tx: verify(all_entries(tx), [], KEY)) == 2
            await again.close()

        self.run(body)

    def test_a_database_from_a_newer_version_is_refused(self) -> None:
        async def body(store: Store) -> None:
            await self.intrude(store, "INSERT INTO schema_version (version, name) VALUES (4711, 'later')")
            await store.close()
            refusal = await self.refusal()
            assert isinstance(refusal, ConflictError)
            assert refusal.code == "newer_database"
            assert "4711" in str(refusal)
            assert str(refusal.facts["known"]) in refusal.what
            assert refusal.remedy

        self.run(body)

    def test_another_audit_key_is_refused(self) -> None:
        async def body(store: Store) -> None:
            await store.close()
            refusal = await self.refusal(b"another key")
            assert refusal.code == "wrong_audit_key"
            await (await self.open()).close()

        self.run(body)

    def test_killed_at_any_moment_it_is_whole(self) -> None:
        """Every acknowledged transaction is there, all of each is there, and the chain verifies."""

        async def body(store: Store) -> None:
            await store.transact(write_one)
            await store.close()
            seen = {1}
            for kill in range(3):
                seen |= set(await asyncio.to_thread(acknowledged, start_writer(self.opener()), 20 + 60 * kill))
                again = await self.open()
                kept = await again.transact(lambda tx: tx.find(Snapshot))
                numbers = [int(x.created_at) for x in kept]
                entries = [x async for x in stream_entries(again)]
                assert seen <= set(numbers)
                assert numbers == list(range(1, len(numbers) + 1))
                assert [x.facts["snapshot"] for x in entries] == [x.id for x in kept]
                assert await again.transact(lambda tx: verify(all_entries(tx), [], KEY)) == len(numbers)
                seen.add(await again.transact(write_one))
                assert max(seen) == len(numbers) + 1
                await again.close()

        self.run(body)
