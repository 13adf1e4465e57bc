"""The chain itself, without a database."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cu_fleet.model.audit import START, Anchor, Draft, Entry, canonical, chained, redacted, verify
from cu_fleet.model.errors import BrokenError, InvalidError

KEY = b"k" * 32
CHANGES: list[dict[str, object]] = [{"who": "agent b"}, {"at": 9.5}, {"facts": {}}]


def chain(count: int, key: bytes = KEY) -> list[Entry]:
    entries: list[Entry] = []
    for number in range(count):
        draft = Draft(at=float(number), what="act", who="agent a", facts={"n": number})
        entries.append(chained(draft, entries[-1] if entries else None, key))
    return entries


def anchors(entries: list[Entry]) -> list[Anchor]:
    return [Anchor(seq=entry.seq, mac=entry.mac, at=entry.at) for entry in entries]


def code(entries: list[Entry], at: list[Anchor] | None = None, key: bytes = KEY) -> str:
    with pytest.raises(BrokenError) as raised:
        verify(entries, at or [], key)
    assert raised.value.remedy
    return raised.value.code


def test_a_whole_chain_verifies_and_is_counted() -> None:
    entries = chain(5)
    assert entries[0].previous == START
    assert verify(iter(entries), anchors(entries[1::2]), KEY) == 5
    assert verify([], [], KEY) == 0


@given(st.data())
def test_any_change_removal_or_reordering_is_found(data: st.DataObject) -> None:
    entries = chain(6)
    at = data.draw(st.integers(0, 4))
    to = data.draw(st.integers(0, 5).filter(lambda to: to != at))
    forged = entries.copy()
    how = data.draw(st.sampled_from(["change", "remove", "move", "double"]))
    if how == "change":
        forged[at] = entries[at].but(**data.draw(st.sampled_from(CHANGES)))
    elif how == "remove":
        del forged[at]
    elif how == "move":
        forged.insert(to, forged.pop(at))
    else:
        forged.insert(to, entries[at])
    assert code(forged) in ("audit_changed", "audit_gap")


def test_without_the_key_no_entry_can_be_made_or_mended() -> None:
    forged = chain(3, key=b"a guess")
    assert code(forged) == "audit_changed"
    assert code(chain(3), key=b"another") == "audit_changed"


def test_a_cut_tail_and_a_chain_written_anew_show_against_anchors() -> None:
    entries, other = chain(6), chain(7)[1:]
    assert code(entries[:4], anchors(entries[4:5])) == "audit_cut"
    assert code([], anchors(entries[:1])) == "audit_cut"
    assert code(entries, [Anchor(seq=3, mac=other[3].mac, at=1.0)]) == "audit_rewritten"
    both = [Anchor(seq=3, mac="00", at=1.0), *anchors(entries[2:3])]
    assert code(entries, both) == "audit_rewritten", "a right anchor does not cover up a wrong one"


def test_a_later_version_with_more_fields_verifies_old_entries() -> None:
    class Later(Entry):
        approval: str | None = None

    for entry in chain(3):
        assert canonical(Later(**dict(entry))) == canonical(entry)


def test_it_is_returned_as_it_will_be_read() -> None:
    entry = chained(Draft(at=1, what="x", who="y", facts={"a": (1, 2), "b": {3: b"x"}}), None, KEY)
    assert entry.facts == {"a": [1, 2], "b": {"3": "x"}}
    assert Entry.model_validate_json(entry.model_dump_json()) == entry


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", b"\xff", object()])
def test_what_json_cannot_carry_is_refused(value: object) -> None:
    with pytest.raises(InvalidError) as raised:
        chained(Draft(at=1.0, what="act", who="agent a", facts={"x": value}), None, KEY)
    assert raised.value.code == "not_recordable"


def test_typed_text_is_kept_as_length_and_keyed_hash() -> None:
    kept = redacted("hunter2", KEY)
    assert kept["length"] == 7
    assert "hunter2" not in str(kept)
    assert kept == redacted("hunter2", KEY)
    assert kept["hmac"] not in (redacted("hunter2", b"other")["hmac"], redacted("hunter3", KEY)["hmac"])
    assert redacted("half \ud800", KEY)["length"] == 6


def test_typing_an_entrys_text_does_not_yield_its_mac() -> None:
    entry = chain(1)[0]
    assert not entry.mac.startswith(str(redacted(canonical(entry), KEY)["hmac"]))
