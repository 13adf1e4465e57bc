"""Actions: what is taken, what is refused and in which words, and what the record keeps."""

import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cu_fleet.model.action import TYPES, Action, Type, check_on_screen, for_record, parse_actions
from cu_fleet.model.errors import InvalidError

GOOD: list[dict[str, Any]] = [
    {"type": "click", "x": 1, "y": 2},
    {"type": "click", "x": 1, "y": 2, "button": "forward", "count": 3, "modifiers": ["ctrl", "Shift_R"]},
    {"type": "move", "x": 0, "y": 0},
    {"type": "press"},
    {"type": "press", "x": 1, "y": 2, "button": "right"},
    {"type": "release"},
    {"type": "drag", "path": [[1, 2], [3, 4], [5, 6]], "button": "left", "modifiers": ["alt"]},
    {"type": "scroll", "x": 1, "y": 2, "dx": -3, "dy": 1000, "modifiers": []},
    {"type": "key", "keys": "ctrl+shift+t"},
    {"type": "key_down", "key": "shift"},
    {"type": "key_up", "key": "shift"},
    {"type": "hold_key", "keys": "w", "seconds": 1.5},
    {"type": "type", "text": "any Unicode: 世界 🌍\r\n\t"},
    {"type": "paste", "text": "\x1b"},
    {"type": "wait", "seconds": 60},
    {"type": "wait_stable"},
    {"type": "wait_stable", "quiet_ms": 100, "timeout_ms": 60000},
    {"type": "wait_change", "timeout_ms": 1},
]
BAD: list[tuple[object, str]] = [
    ({"type": "click", "x": "1", "y": 2}, "actions[1].x: expected a valid integer, found '1'"),
    ({"type": "click", "x": True, "y": 2}, "actions[1].x: expected a valid integer, found True"),
    ({"type": "click", "x": 1.5, "y": 2}, "actions[1].x: expected a valid integer"),
    ({"type": "click", "x": -1, "y": 2}, "actions[1].x: expected greater than or equal to 0, found -1"),
    ({"type": "click", "x": 1}, "actions[1].y: click needs this key"),
    ({"type": "click", "x": 1, "y": 2, "z": 3}, "actions[1].z: click has no such key"),
    ({"type": "click", "x": 1, "y": 2, "button": "lefty"}, "actions[1].button: expected 'left', 'middle'"),
    ({"type": "click", "x": 1, "y": 2, "count": 11}, "actions[1].count: expected less than or equal to 10, found 11"),
    ({"type": "click", "x": 1, "y": 2, "modifiers": ["q"]}, "actions[1].modifiers[0]: 'q' is not a modifier key"),
    ({"type": "click", "x": 1, "y": 2, "modifiers": "ctrl"}, "actions[1].modifiers: expected a valid list"),
    ({"type": "press", "x": 1}, "actions[1]: x and y go together"),
    ({"type": "drag", "path": [[1, 2]]}, "actions[1].path: "),
    ({"type": "drag", "path": [[1, 2]] * 1001}, "actions[1].path: "),
    ({"type": "drag", "path": [[1, 2], [3]]}, "actions[1].path[1][1]: drag needs this key"),
    ({"type": "drag", "path": [[1, 2], 3]}, "actions[1].path[1]: expected a valid list, found 3"),
    ({"type": "scroll", "x": 1, "y": 2, "dy": 1001}, "actions[1].dy: expected less than or equal to 1000"),
    ({"type": "key", "keys": "ctrl+entr"}, "actions[1].keys: there is no key 'entr'; did you mean Return"),
    ({"type": "key", "keys": ""}, "actions[1].keys: "),
    ({"type": "key_down", "key": "ctrl+a"}, "actions[1].key: there is no key 'ctrl+a'"),
    ({"type": "wait", "seconds": 60.5}, "actions[1].seconds: expected less than or equal to 60"),
    ({"type": "wait", "seconds": float("nan")}, "actions[1].seconds: expected a finite number"),
    ({"type": "hold_key", "keys": "a", "seconds": -1}, "actions[1].seconds: expected greater than or equal to 0"),
    ({"type": "type", "text": "a\x1b[0m"}, "actions[1].text: the control character U+001B cannot be typed"),
    ({"type": "type", "text": "\ud800"}, "actions[1].text: the text is not Unicode: a lone surrogate U+D800"),
    ({"type": "type", "text": "é" * 100_001}, "actions[1].text: the text has 200,002 bytes"),
    ({"type": "paste", "text": "a\0b"}, "actions[1].text: the text has a NUL"),
    ({"type": "type"}, "actions[1].text: type needs this key"),
    ({"type": "wait_change", "timeout_ms": 60001}, "actions[1].timeout_ms: expected less than"),
    ({"type": "clik", "x": 1, "y": 2}, "actions[1].type: there is no action 'clik'; did you mean click"),
    ({"x": 1, "y": 2}, "actions[1].type: this key is needed; one of click, move"),
    ({"type": ["click"]}, "actions[1].type: there is no action ['click']"),
    ("click", "actions[1]: expected an action, found 'click'"),
    (None, "actions[1]: expected an action, found None"),
]


def test_every_action_of_the_interface_is_there() -> None:
    words = "click move press release drag scroll key key_down key_up hold_key type paste wait wait_stable wait_change"
    assert sorted(TYPES) == sorted(words.split())
    assert {action["type"] for action in GOOD} == set(TYPES)
    assert len(get_args(get_args(Action)[0])) == len(TYPES)


@pytest.mark.parametrize("data", GOOD, ids=lambda data: str(data["type"]))
def test_good_actions_are_taken_and_survive_json(data: dict[str, Any]) -> None:
    [action] = parse_actions(json.loads(json.dumps([data])))
    again = json.loads(action.model_dump_json(exclude_unset=True))
    assert parse_actions([again]) == [action] == parse_actions([action])
    assert data.items() <= json.loads(action.model_dump_json()).items()


@pytest.mark.parametrize(("data", "words"), BAD)
def test_bad_actions_are_refused_by_index_and_key(data: object, words: str) -> None:
    with pytest.raises(InvalidError) as e:
        parse_actions([GOOD[0], data, {"type": "nonsense"}])
    assert str(e.value).startswith(words)
    assert e.value.code == "bad_action"
    assert e.value.facts["index"] == 1
    assert len(str(e.value)) < 400


@pytest.mark.parametrize("data", [{}, "click", None, 3])
def test_a_batch_is_a_list(data: object) -> None:
    with pytest.raises(InvalidError, match="actions: expected a list of actions, found"):
        parse_actions(data)


def test_a_batch_has_an_end() -> None:
    assert len(parse_actions([GOOD[0]] * 500)) == 500
    with pytest.raises(InvalidError, match="501 in one batch; at most 500"):
        parse_actions([GOOD[0]] * 501)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(TYPES),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "x", "y", "path", "keys", "text", "seconds", "modifiers"]), inner, max_size=5
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_taken_or_refused_in_words(data: object) -> None:
    refused = ""
    try:
        parse_actions(data)
    except InvalidError as e:
        refused = str(e)
    assert not refused or refused.startswith("actions")


def test_points_off_the_screen_are_refused() -> None:
    on = [{"type": "click", "x": 1279, "y": 799}, {"type": "drag", "path": [[0, 0], [1279, 799]]}, {"type": "press"}]
    for action in parse_actions(on):
        check_on_screen(action, 1280, 800)
    off = [
        {"type": "click", "x": 1280, "y": 0},
        {"type": "move", "x": 0, "y": 800},
        {"type": "drag", "path": [[0, 0], [1, 800], [2, 2]]},
        {"type": "scroll", "x": 5000, "y": 5},
        {"type": "press", "x": 1280, "y": 0},
        {"type": "release", "x": 1280, "y": 0},
    ]
    for action in parse_actions(off):
        with pytest.raises(InvalidError, match="is off the screen, which is 1280x800; x goes from 0 to 1279") as e:
            check_on_screen(action, 1280, 800)
        assert e.value.code == "off_screen"


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"type": "type", "text": "sesame"}, "text"),
        ({"type": "paste", "text": "sesame"}, "text"),
        ({"type": "key", "keys": "s"}, "keys"),
        ({"type": "key", "keys": "shift+s"}, "keys"),
        ({"type": "hold_key", "keys": "s", "seconds": 1}, "keys"),
        ({"type": "key_down", "key": "s"}, "key"),
        ({"type": "key_up", "key": "KP_7"}, "key"),
    ],
)
def test_the_record_keeps_nothing_that_was_typed(data: dict[str, Any], key: str) -> None:
    [action] = parse_actions([data])
    kept = for_record(action, lambda text: {"length": len(text)})
    assert kept == {**data, key: {"length": len(data[key])}}


def test_the_record_keeps_commands_and_places_in_clear() -> None:
    for data in (
        {"type": "key", "keys": "ctrl+s"},
        {"type": "key_down", "key": "shift"},
        {"type": "key", "keys": "Return"},
    ):
        [action] = parse_actions([data])
        assert for_record(action, lambda _: {}) == data
    [drag] = parse_actions([{"type": "drag", "path": [[1, 2], [3, 4]]}])
    kept = for_record(drag, lambda _: {})
    assert json.loads(json.dumps(kept)) == {
        "type": "drag",
        "path": [[1, 2], [3, 4]],
        "button": "left",
        "modifiers": [],
    }


def test_actions_are_values() -> None:
    action = Type(text="a")
    assert action == Type(text="a")
    assert hash(action) == hash(Type(text="a"))
