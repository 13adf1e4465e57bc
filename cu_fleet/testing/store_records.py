"""Records come back as they were put, are found as asked, and illegal states cannot be stored."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cu_fleet.model
from cu_fleet.model.access import Agent
from cu_fleet.model.approval import SETTLED, ApprovalState, Kind
from cu_fleet.model.audit import Entry
from cu_fleet.model.desktop import Desktop, Stage
from cu_fleet.model.errors import ConflictError, InvalidError
from cu_fleet.model.lease import Lease, LeaseState
from cu_fleet.model.record import Record
from cu_fleet.model.resource import Holding
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.stores.base import Store, TakenError, Tx
from cu_fleet.testing.store_base import StoreBase, approval, desktop, draft, examples, lease, put, snapshot

snapshots = st.builds(
    snapshot,
    st.integers(1, 5),
    desktop=st.sampled_from(["dk_1", "dk_2"]),
    state=st.sampled_from(["saving", "saved", "deleting"]),
    note=st.text(max_size=5),
    agent=st.none() | st.just("a"),
)
changes = st.lists(st.tuples(st.sampled_from(["put", "delete"]), snapshots), max_size=6)


def delete_all(tx: Tx) -> None:
    for record in tx.find(Snapshot):
        tx.delete(record)


class RecordContract(StoreBase):
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
            await store.transact(delete_all)
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
            nothing: dict[str, Any] = dict.fromkeys(Entry.COLUMNS)
            assert await store.transact(lambda tx: tx.entries(**nothing)) == []

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
            lambda tx: tx.put(snapshot(1, created_at=float("inf"))),
            lambda tx: tx.put(lease(1, expires_at=float("inf"))),
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
            with pytest.raises(TakenError):
                tx.put(Agent(name="late", created_at=1.0))

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

    def test_one_open_question_of_the_same(self) -> None:
        asked = approval(1, state=ApprovalState.APPROVED)
        others = [approval(3, lease="ls_2"), approval(4, kind=Kind.MERGE), approval(5, subject="else")]
        over = [approval(n, state=state) for n, state in enumerate(SETTLED, 6)]
        same = {"lease": "ls_1", "kind": Kind.ACTION, "subject": "do"}
        self.refused([asked, *others, *over], approval(2), "approval_one_open_per_subject", **same)

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
