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
import importlib
import pkgutil
import random
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cu_fleet.model
from cu_fleet.model.access import Agent
from cu_fleet.model.audit import Draft, Entry, verify
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import BrokenError, ConflictError, FleetError, InvalidError, UnavailableError
from cu_fleet.model.lease import Lease, LeaseState
from cu_fleet.model.record import Record
from cu_fleet.model.resource import Holding
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.anchors import anchor, read_anchors, verify_store
from cu_fleet.stores.base import Store, TakenError, Tx, all_entries, stream_entries
from cu_fleet.testing.store_writer import Opener, start_writer, write_one

KEY = b"an audit key for tests only....."
DEADLINE = 60.0  # seconds for one test: hanging is a failure


def desktop(number: int, **more: Any) -> Desktop:
    fields = {"profile": "p", "profile_digest": "0", "backend": "b", "width": 640, "height": 480, "created_at": 1.0}
    return Desktop(id=f"dk_{number}", **{**fields, **more})


def lease(number: int, **more: Any) -> Lease:
    fields = {"agent": "a", "profile": "p", "backend": "b", "asked_at": 1.0, "asked_by": "agent a"}
    return Lease(id=f"ls_{number}", **{**fields, **more})


def snapshot(number: int, **more: Any) -> Snapshot:
    return Snapshot(id=f"sn_{number}", **{"desktop": "dk_1", "profile": "p", "backend": "b", "created_at": 1.0, **more})


def draft(number: int, **more: Any) -> Draft:
    return Draft(at=float(number), what="act", who="agent a", lease="ls_1", facts={"n": number}, **more)


def put(*records: Record) -> Callable[[Tx], None]:
    def work(tx: Tx) -> None:
        for record in records:
            tx.put(record)

    return work


# One suite for several classes is what this is; each has its own database, and the health check's worry is its examples.
examples = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.differing_executors])

snapshots = st.builds(
    snapshot,
    st.integers(1, 5),
    desktop=st.sampled_from(["dk_1", "dk_2"]),
    state=st.sampled_from(["saving", "saved", "deleting"]),
    note=st.text(max_size=5),
    agent=st.none() | st.just("a"),
)
changes = st.lists(st.tuples(st.sampled_from(["put", "delete"]), snapshots), max_size=6)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
drafts = st.builds(
    Draft,
    at=st.floats(0, 4e9),
    what=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=8),
    who=st.sampled_from(["agent a", "operator ana"]),
    lease=st.none() | st.just("ls_1"),
    action=st.none() | st.dictionaries(st.text(max_size=4), json_values, max_size=3),
    intent=st.none() | st.text(max_size=20),
    frames=st.lists(st.just("00"), max_size=2).map(tuple),
    seconds=st.none() | st.floats(0, 100),
    facts=st.dictionaries(st.text(max_size=4), json_values, max_size=3),
)


class StoreContract:
    async def open(self) -> Store:
        """The store over this test's database."""
        raise AssertionError("a subclass says how to open its store")

    async def intrude(self, store: Store, *sql: str) -> None:
        """Run statements on the database behind the store, with the triggers on `audit` gone."""
        raise AssertionError("a subclass says how to get at its database")

    def run(self, body: Callable[[Store], Awaitable[None]]) -> None:
        """Run a test's body on an open store, and close it."""

        async def bounded() -> None:
            async with asyncio.timeout(DEADLINE):
                store = await self.open()
                try:
                    await body(store)
                finally:
                    await store.close()

        asyncio.run(bounded())

    # records

    @examples
    @given(st.lists(st.tuples(changes, st.booleans()), max_size=5))
    def test_it_is_like_a_dict(self, transactions: list[tuple[list[tuple[str, Snapshot]], bool]]) -> None:
        """Whatever is put, changed, deleted and undone: what is found is what a dict would hold, oldest first."""

        def work(tx: Tx, model: dict[str, Snapshot], steps: list[tuple[str, Snapshot]], fails: bool) -> None:
            for what, record in steps:
                if what == "put":
                    tx.put(record)
                    model[record.id] = record
                else:
                    tx.delete(record)
                    model.pop(record.id, None)
                assert tx.get(Snapshot, record.id) == model.get(record.id)
                assert tx.find(Snapshot) == list(model.values())
                assert tx.find(Snapshot, state=("saved", "saving"), desktop="dk_1") == [
                    x for x in model.values() if x.state != "deleting" and x.desktop == "dk_1"
                ]
            if fails:
                raise InvalidError("undo this")

        async def body(store: Store) -> None:
            await store.transact(lambda tx: [tx.delete(x) for x in tx.find(Snapshot)])
            model: dict[str, Snapshot] = {}
            for steps, fails in transactions:
                tried = dict(model)
                try:
                    await store.transact(lambda tx, m=tried, s=steps, f=fails: work(tx, m, s, f))  # type: ignore[misc]
                    model = tried
                except InvalidError:
                    assert fails
                assert await store.transact(lambda tx: tx.find(Snapshot)) == list(model.values())

        self.run(body)

    def test_every_kind_of_record_has_its_table(self) -> None:
        for module in pkgutil.iter_modules(cu_fleet.model.__path__):
            importlib.import_module(f"cu_fleet.model.{module.name}")
        kinds = set(Record.__subclasses__()) - {Entry}
        assert len(kinds) >= 6

        async def body(store: Store) -> None:
            for kind in kinds:
                for column in (kind.KEY, *kind.COLUMNS):
                    assert await store.transact(lambda tx, k=kind, c=column: tx.find(k, **{c: None})) == []  # type: ignore[misc]
            assert await store.transact(lambda tx: tx.entries(**dict.fromkeys(Entry.COLUMNS))) == []

        self.run(body)

    def test_none_and_any_of(self) -> None:
        async def body(store: Store) -> None:
            kept = [desktop(1, name="x"), desktop(2), desktop(3, name="z")]
            await store.transact(put(*kept))

            def found(tx: Tx, **equal: object) -> list[str]:
                return [x.id for x in tx.find(Desktop, **equal)]

            def work(tx: Tx) -> None:
                assert found(tx, name=None) == ["dk_2"]
                assert found(tx, name=["x", None]) == ["dk_1", "dk_2"]
                assert found(tx, name={"z"}, stage=Stage.PLANNED) == ["dk_3"]
                assert found(tx, name=()) == []
                assert found(tx, id="dk_2") == ["dk_2"]
                assert found(tx, name="x' OR '1'='1") == []

            await store.transact(work)

        self.run(body)

    @pytest.mark.parametrize(
        "work",
        [
            lambda tx: tx.find(Desktop, **{"name = '' OR 1": 1}),
            lambda tx: tx.find(Desktop, boot="x"),
            lambda tx: tx.entries(body="x"),
            lambda tx: tx.get(Desktop, "a\0b"),
            lambda tx: tx.put(lease(1, request_id="a\0b")),
            lambda tx: tx.put(lease(1, request_id="half \ud83d")),
            lambda tx: tx.put(snapshot(1, created_at=float("inf"), note="x")),
            lambda tx: tx.entries(after=2**70),
            lambda tx: tx.append(draft(1, seconds=float("inf"))),
            lambda tx: tx.append(draft(1, intent="half \ud83d")),
            lambda tx: tx.append(draft(1, action={"text": b"\xff"})),
        ],
    )
    def test_what_cannot_be_stored_or_asked_is_refused(self, work: Callable[[Tx], Any]) -> None:
        async def body(store: Store) -> None:
            with pytest.raises(InvalidError):
                await store.transact(work)
            assert await store.transact(lambda tx: (tx.find(Lease), tx.find(Snapshot), tx.head())) == ([], [], None)

        self.run(body)

    # illegal states

    def refused(self, before: list[Record], write: Record, index: str, **values: object) -> None:
        """`write` after `before` is taken, from within put; nothing of its transaction lands, even if it is caught."""
        caught: list[TakenError] = []

        def careless(tx: Tx) -> None:
            tx.put(Agent(name="innocent", created_at=1.0))
            try:
                tx.put(write)
            except TakenError as e:
                caught.append(e)

        async def body(store: Store) -> None:
            await store.transact(put(*before))
            with pytest.raises(TakenError) as raised:
                await store.transact(careless)
            assert caught == [raised.value]
            assert raised.value.facts["index"] == index
            assert raised.value.facts["values"] == values
            assert write.key in str(raised.value)
            assert await store.transact(lambda tx: tx.find(Agent)) == []

        self.run(body)

    def test_one_active_lease_per_desktop(self) -> None:
        first, second = (lease(n, state=LeaseState.ACTIVE, desktop="dk_1") for n in (1, 2))
        self.refused([first], second, "lease_one_active_per_desktop", desktop="dk_1")

    def test_an_ended_lease_gives_way(self) -> None:
        first, second = (lease(n, state=LeaseState.ACTIVE, desktop="dk_1") for n in (1, 2))
        self.run(lambda store: store.transact(put(first, first.but(state=LeaseState.REVOKED), second)))

    def test_one_holder_per_resource(self) -> None:
        held = Holding(resource="browser:x", lease="ls_1")
        stolen = held.but(lease="ls_2")
        self.refused([lease(1), lease(2), held, held], stolen, "holding_pkey", resource="browser:x")

    def test_one_lease_per_request(self) -> None:
        self.refused(
            [lease(1, request_id="r"), lease(3, request_id="r", agent="b"), lease(4), lease(5)],
            lease(2, request_id="r"),
            "lease_one_per_request",
            agent="a",
            request_id="r",
        )

    def test_one_desktop_per_name_until_it_is_gone(self) -> None:
        gone = desktop(1, name="finance", stage=Stage.GONE)
        named = desktop(2, name="finance")
        self.refused([gone, named, desktop(4)], desktop(3, name="finance"), "desktop_one_per_name", name="finance")

    @pytest.mark.parametrize(
        "record", [lease(1, state=LeaseState.ACTIVE), Holding(resource="r", lease="ls_9")], ids=["nowhere", "nobody"]
    )
    def test_no_active_lease_without_a_desktop_and_no_holding_without_a_lease(self, record: Record) -> None:
        async def body(store: Store) -> None:
            with pytest.raises(ConflictError) as raised:
                await store.transact(put(record))
            assert raised.value.code == "illegal_state"
            assert await store.transact(lambda tx: tx.get(type(record), record.key)) is None

        self.run(body)

    # transactions

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
                await store.transact(later)
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

    # the audit chain

    @examples
    @given(st.lists(drafts, max_size=5))
    def test_whatever_is_recorded_verifies_and_reads_the_same(self, wanted: list[Draft]) -> None:
        async def body(store: Store) -> None:
            head = await store.transact(lambda tx: tx.head())
            written = await store.transact(lambda tx: [tx.append(x) for x in wanted])
            assert [x async for x in stream_entries(store, after=head.seq if head else 0, batch=2)] == written
            assert [Entry.model_validate_json(x.model_dump_json()) for x in written] == written
            count = (head.seq if head else 0) + len(wanted)
            assert await store.transact(lambda tx: verify(all_entries(tx), [], KEY)) == count

        self.run(body)

    def test_entries_are_found_by_their_columns(self) -> None:
        async def body(store: Store) -> None:
            await store.transact(lambda tx: [tx.append(draft(n, agent="a" if n % 2 else "b")) for n in range(1, 8)])
            seqs = await store.transact(
                lambda tx: [x.seq for x in tx.entries(after=1, limit=2, agent="a", what=["act"])]
            )
            assert seqs == [3, 5]

        self.run(body)

    @pytest.mark.parametrize(
        ("sql", "code"),
        [
            ("UPDATE audit SET who = 'agent b' WHERE seq = 3", "audit_changed"),
            ("UPDATE audit SET lease = NULL WHERE seq = 3", "audit_changed"),
            ("UPDATE audit SET mac = (SELECT mac FROM audit WHERE seq = 2) WHERE seq = 3", "audit_changed"),
            ("""UPDATE audit SET body = replace(body, '"n":3', '"n":4') WHERE seq = 3""", "audit_changed"),
            ("UPDATE audit SET body = '{' WHERE seq = 3", "audit_changed"),
            ("DELETE FROM audit WHERE seq = 3", "audit_gap"),
            ("DELETE FROM audit WHERE seq = 1", "audit_gap"),
            ("UPDATE audit SET seq = CASE seq WHEN 3 THEN 40 ELSE 3 END WHERE seq IN (3, 4)", "audit_changed"),
            ("DELETE FROM audit WHERE seq > 4", "audit_cut"),
            ("DELETE FROM audit", "audit_cut"),
        ],
    )
    def test_tampering_is_found(self, sql: str, code: str, tmp_path: Path) -> None:
        async def body(store: Store) -> None:
            await self.recorded(store, tmp_path)
            await self.intrude(store, sql)
            with pytest.raises(BrokenError) as raised:
                await verify_store(store, tmp_path / "anchors", KEY)
            assert raised.value.code == code
            assert raised.value.remedy

        self.run(body)

    @pytest.mark.parametrize("kept", [0, 4])
    def test_a_record_cut_or_written_anew_with_the_key_is_found(self, kept: int, tmp_path: Path) -> None:
        path = tmp_path / "anchors"

        async def body(store: Store) -> None:
            entries = await self.recorded(store, tmp_path)
            await self.intrude(store, f"DELETE FROM audit WHERE seq > {kept}")
            with pytest.raises(BrokenError):
                await anchor(store, path, 9.0)
            again = [Draft(**x.model_dump(exclude={"seq", "previous", "mac"})) for x in entries[kept:]]
            await store.transact(lambda tx: [tx.append(x.but(who="agent b")) for x in [*again, *again]])
            assert await store.transact(lambda tx: verify(all_entries(tx), [], KEY)) > 6
            for check in (verify_store(store, path, KEY), anchor(store, path, 9.0)):
                with pytest.raises(BrokenError) as raised:
                    await check
                assert raised.value.code == "audit_rewritten"
            assert [x.seq for x in read_anchors(path)] == [6], "no anchor covers up what happened"

        self.run(body)

    async def recorded(self, store: Store, folder: Path) -> list[Entry]:
        """Six entries, anchored, and the proof that they verify before anybody touches them."""
        entries = await store.transact(lambda tx: [tx.append(draft(n)) for n in range(1, 7)])
        await anchor(store, folder / "anchors", 6.0)
        assert await verify_store(store, folder / "anchors", KEY) == 6
        return entries


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
            await store.transact(lambda tx: (tx.next_number("n"), tx.set_meta("fact", "é"), tx.append(draft(1))))
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
            acknowledged = {1}
            for kill in range(3):
                acknowledged |= await asyncio.to_thread(written_until_killed, self.opener(), random.Random(kill))
                again = await self.open()
                kept = await again.transact(lambda tx: tx.find(Snapshot))
                numbers = [int(x.created_at) for x in kept]
                entries = [x async for x in stream_entries(again)]
                assert acknowledged <= set(numbers)
                assert numbers == list(range(1, len(numbers) + 1))
                assert [x.facts["snapshot"] for x in entries] == [x.id for x in kept]
                assert await again.transact(lambda tx: verify(all_entries(tx), [], KEY)) == len(numbers)
                acknowledged.add(await again.transact(write_one))
                assert max(acknowledged) == len(numbers) + 1
                await again.close()

        self.run(body)


def written_until_killed(opener: Opener, chance: random.Random) -> set[int]:
    """Let a process write, kill it, and return what it was told is done."""
    process = start_writer(opener)
    assert process.stdout
    with process.stdout as lines:
        seen = [int(lines.readline()) for _ in range(chance.randint(20, 200))]
        process.kill()
        seen += [int(line) for line in lines if line.endswith(b"\n")]
    process.wait()
    return set(seen)
