"""The life of an approval, and what stands for the actions that it is bound to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cu_fleet.model.action import parse_actions
from cu_fleet.model.approval import (
    OPEN,
    SETTLED,
    TRANSITIONS,
    Approval,
    ApprovalEvent,
    ApprovalState,
    Kind,
    as_of,
    digest,
    moved,
    why_not,
)
from cu_fleet.model.errors import ConflictError

KEY = b"k" * 32
MINE = {"lease": "ls_1", "generation": 2, "subject": "these"}


def approval(**more: Any) -> Approval:
    fields = {"kind": Kind.ACTION, "subject": "these", "lease": "ls_1", "agent": "a", "generation": 2, "asked_at": 1.0}
    return Approval(id="ap_1", **{**fields, "asked_by": "agent a", "deadline": 10.0, **more})


@given(st.sampled_from(ApprovalState), st.sampled_from(ApprovalEvent))
def test_every_move_is_in_the_table_or_refused_by_name(state: ApprovalState, event: ApprovalEvent) -> None:
    before = approval(state=state, by="operator ana", answer="fine")
    if event in TRANSITIONS[state]:
        assert moved(before, event).state is TRANSITIONS[state][event]
    else:
        with pytest.raises(ConflictError) as caught:
            moved(before, event)
        assert caught.value.code == f"approval_{state.value}"


@given(st.lists(st.sampled_from(ApprovalEvent), max_size=12))
def test_what_is_settled_stays_so_and_is_used_once_and_only_after_a_yes(events: list[ApprovalEvent]) -> None:
    one, seen = approval(), [ApprovalState.WAITING]
    for event in events:
        if event in TRANSITIONS[one.state]:
            one = moved(one, event)
            seen.append(one.state)
    assert all(state in OPEN for state in seen[:-1])
    assert seen.count(ApprovalState.USED) <= 1
    if ApprovalState.USED in seen:
        assert seen[seen.index(ApprovalState.USED) - 1] is ApprovalState.APPROVED
    assert set(OPEN) | set(SETTLED) == set(ApprovalState)


@pytest.mark.parametrize("state", ApprovalState)
def test_only_a_yes_in_time_to_the_same_allows_it(state: ApprovalState) -> None:
    one = approval(state=state)
    refusal = why_not(one, **MINE)
    assert (refusal is None) == (state is ApprovalState.APPROVED)
    late = why_not(as_of(one, 10.0), **MINE)
    assert late
    assert late.code == f"approval_{'expired' if state in OPEN else state.value}"
    for other, code in (({"lease": "ls_2"}, "other_lease"), ({"subject": "those"}, "other_actions")):
        wrong = why_not(one, **{**MINE, **other})
        assert wrong
        assert wrong.code == code
    old = why_not(one, **{**MINE, "generation": 3})
    assert old
    assert old.code == ("old_generation" if state in OPEN else f"approval_{state.value}")


SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "click", "x": 1, "y": 2}, {"type": "click", "x": 1, "y": 2, "button": "left", "count": 1}),
    ({"type": "wait", "seconds": 1}, {"type": "wait", "seconds": 1.0}),
]
OTHERS: list[list[dict[str, Any]]] = [
    [],
    [{"type": "click", "x": 1, "y": 2}],
    [{"type": "click", "x": 2, "y": 1}],
    [{"type": "click", "x": 1, "y": 2, "modifiers": ["ctrl"]}],
    [{"type": "click", "x": 1, "y": 2}, {"type": "click", "x": 1, "y": 2}],
    [{"type": "type", "text": "a"}],
    [{"type": "paste", "text": "a"}],
    [{"type": "type", "text": "a"}, {"type": "type", "text": "b"}],
    [{"type": "type", "text": "ab"}],
]


def test_the_digest_is_of_the_very_actions() -> None:
    for one, two in SAME:
        assert digest(parse_actions([one]), KEY) == digest(parse_actions([two]), KEY)
    assert len({digest(parse_actions(batch), KEY) for batch in OTHERS}) == len(OTHERS)
    batch = parse_actions(OTHERS[5])
    assert digest(batch, KEY) != digest(batch, b"x" * 32), "nobody without the key finds out what was typed"
