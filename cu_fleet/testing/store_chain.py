"""The audit chain holds whatever is recorded, and every way of tampering with it is found."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cu_fleet.model.audit import Draft, Entry, verify
from cu_fleet.model.errors import BrokenError
from cu_fleet.stores.anchors import anchor, read_anchors, verify_store
from cu_fleet.stores.base import Store, all_entries, stream_entries
from cu_fleet.testing.store_base import KEY, StoreBase, draft, examples

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


class ChainContract(StoreBase):
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
            seqs = await store.transact(lambda tx: [x.seq for x in tx.newest(limit=2, agent="a")])
            assert seqs == [5, 7]

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
            await self.intrude(store, f"DELETE FROM audit WHERE seq > {kept}")  # noqa: S608 - two numbers of ours
            with pytest.raises(BrokenError):
                await anchor(store, path, 9.0)
            again = [Draft(**x.model_dump(exclude={"seq", "previous", "mac"})) for x in entries[kept:]]
            await store.transact(lambda tx: [tx.append(x.but(who="agent b")) for x in [*again, *again]])
            assert await store.transact(lambda tx: verify(all_entries(tx), [], KEY)) > 6
            with pytest.raises(BrokenError) as verified:
                await verify_store(store, path, KEY)
            with pytest.raises(BrokenError) as anchored:
                await anchor(store, path, 9.0)
            assert verified.value.code == anchored.value.code == "audit_rewritten"
            assert [x.seq for x in read_anchors(path)] == [6], "no anchor covers up what happened"

        self.run(body)

    async def recorded(self, store: Store, folder: Path) -> list[Entry]:
        """Six entries, anchored, and the proof that they verify before anybody touches them."""
        entries = await store.transact(lambda tx: [tx.append(draft(n)) for n in range(1, 7)])
        await anchor(store, folder / "anchors", 6.0)
        assert await verify_store(store, folder / "anchors", KEY) == 6
        return entries
