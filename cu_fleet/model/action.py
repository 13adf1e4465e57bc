"""What an agent can do to its desktop, one frozen model an action, and what the record keeps of each.

All of an action is checked here, before anything is sent: types (strictly: "1" is no number), bounds, key names, and,
once the size of the screen is known, that every point lies on it.
"""

import difflib
import unicodedata
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from cu_fleet.model.errors import InvalidError
from cu_fleet.model.keys import combo, keysym, modifier, prints
from cu_fleet.model.record import Value

MOST_ACTIONS = 500  # in one batch
MOST_POINTS = 1000  # of one drag
MOST_NOTCHES = 1000  # of one scroll, each way
MOST_AREAS = 50  # that a wait ignores
MOST_TEXT = 200_000  # bytes of UTF-8
MOST_SECONDS = 60.0

Redact = Callable[[str], dict[str, object]]


def _as_tuple(value: object) -> object:
    if not isinstance(value, list | tuple):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _known(read: Callable[[str], object]) -> AfterValidator:
    """A name that `read` knows; its refusal becomes pydantic's."""

    def check(name: str) -> str:
        try:
            read(name)
        except InvalidError as e:
            raise ValueError(str(e)) from None
        return name

    return AfterValidator(check)


def _typeable(text: str) -> str:
    for char in _text(text):
        if unicodedata.category(char) == "Cc" and char not in "\n\r\t":
            raise ValueError(f"the control character U+{ord(char):04X} cannot be typed; press it with a key action")
    return text


def _text(text: str) -> str:
    try:
        size = len(text.encode())
    except UnicodeEncodeError as e:
        raise ValueError(f"the text is not Unicode: a lone surrogate U+{ord(text[e.start]):04X}") from None
    if size > MOST_TEXT:
        raise ValueError(f"the text has {size:,} bytes; at most {MOST_TEXT:,} go at once")
    if "\0" in text:
        raise ValueError("the text has a NUL character (U+0000)")
    return text


Coordinate = Annotated[int, Field(ge=0, le=65535)]
Point = tuple[Coordinate, Coordinate]
Button = Literal["left", "middle", "right", "back", "forward"]
Notches = Annotated[int, Field(ge=-MOST_NOTCHES, le=MOST_NOTCHES)]
Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS, allow_inf_nan=False)]
KeyName = Annotated[str, Field(min_length=1, max_length=200), _known(keysym)]
Keys = Annotated[str, Field(min_length=1, max_length=200), _known(combo)]
Modifiers = Annotated[
    tuple[Annotated[str, Field(max_length=40), _known(modifier)], ...],
    BeforeValidator(_as_tuple),
    Field(max_length=8),
]
Path = Annotated[tuple[Point, ...], BeforeValidator(_as_tuple), Field(min_length=2, max_length=MOST_POINTS)]
Edge = Annotated[int, Field(ge=1, le=65536)]
Area = Annotated[tuple[Coordinate, Coordinate, Edge, Edge], BeforeValidator(_as_tuple)]
Areas = Annotated[tuple[Area, ...], BeforeValidator(_as_tuple), Field(max_length=MOST_AREAS)]
TimeoutMs = Annotated[int, Field(ge=1, le=int(MOST_SECONDS * 1000))]


class _Action(Value):
    model_config = ConfigDict(strict=True)


class Move(_Action):
    type: Literal["move"] = "move"
    x: Coordinate
    y: Coordinate


class Click(_Action):
    type: Literal["click"] = "click"
    x: Coordinate
    y: Coordinate
    button: Button = "left"
    count: int = Field(1, ge=1, le=10)
    modifiers: Modifiers = ()


class _Pointing(_Action):
    """With a point, or where the pointer is."""

    x: Coordinate | None = None
    y: Coordinate | None = None
    button: Button = "left"

    @model_validator(mode="after")
    def _both(self) -> "_Pointing":
        if (self.x is None) != (self.y is None):
            raise ValueError("x and y go together; leave out both for where the pointer is")
        return self


class Press(_Pointing):
    type: Literal["press"] = "press"


class Release(_Pointing):
    type: Literal["release"] = "release"


class Drag(_Action):
    type: Literal["drag"] = "drag"
    path: Path
    button: Button = "left"
    modifiers: Modifiers = ()


class Scroll(_Action):
    type: Literal["scroll"] = "scroll"
    x: Coordinate
    y: Coordinate
    dx: Notches = Field(0, description="Notches of the wheel; more than 0 is right.")
    dy: Notches = Field(0, description="Notches of the wheel; more than 0 is down.")
    modifiers: Modifiers = ()


class Key(_Action):
    type: Literal["key"] = "key"
    keys: Keys = Field(description="One key or several together, such as ctrl+shift+t.")


class KeyDown(_Action):
    type: Literal["key_down"] = "key_down"
    key: KeyName


class KeyUp(_Action):
    type: Literal["key_up"] = "key_up"
    key: KeyName


class HoldKey(_Action):
    type: Literal["hold_key"] = "hold_key"
    keys: Keys
    seconds: Seconds


class Type(_Action):
    type: Literal["type"] = "type"
    text: Annotated[str, AfterValidator(_typeable)]


class Paste(_Action):
    type: Literal["paste"] = "paste"
    text: Annotated[str, AfterValidator(_text)]


class Wait(_Action):
    type: Literal["wait"] = "wait"
    seconds: Seconds


class _Watching(_Action):
    """What of the screen counts, in pixels of the screen like all coordinates."""

    region: Area | None = Field(None, description="X, Y, width and height of what counts; none: the whole screen.")
    ignore: Areas = Field((), description="Rectangles whose changes do not count, such as a clock's.")
    ignore_below: int = Field(0, ge=0, le=10_000_000, description="A change of fewer pixels does not count.")
    timeout_ms: TimeoutMs = 10_000


class WaitStable(_Watching):
    type: Literal["wait_stable"] = "wait_stable"
    quiet_ms: TimeoutMs = 300


class WaitChange(_Watching):
    type: Literal["wait_change"] = "wait_change"


Action = Annotated[
    Click
    | Move
    | Press
    | Release
    | Drag
    | Scroll
    | Key
    | KeyDown
    | KeyUp
    | HoldKey
    | Type
    | Paste
    | Wait
    | WaitStable
    | WaitChange,
    Field(discriminator="type"),
]
TYPES = tuple(str(kind.model_fields["type"].default) for kind in get_args(get_args(Action)[0]))
_ADAPTER: TypeAdapter[Action] = TypeAdapter(Action)


def parse_actions(data: object) -> list[Action]:
    """The actions of a batch, or an error that names the first wrong one by index and key."""
    if not isinstance(data, list | tuple):
        raise InvalidError(f"actions: expected a list of actions, found {_shown(data)}", code="bad_action")
    if len(data) > MOST_ACTIONS:
        raise InvalidError(
            f"actions: {len(data)} in one batch; at most {MOST_ACTIONS} go at once",
            remedy="send them in several batches",
            code="bad_action",
        )
    return [_parse(item, index) for index, item in enumerate(data)]


def check_on_screen(action: Action, width: int, height: int, what: str = "the screen") -> None:
    """Refuse an action with a point, or a corner of a region, off the screen, or off the picture it is given in."""
    for x, y in _points(action):
        if not (0 <= x < width and 0 <= y < height):
            raise InvalidError(
                f"{action.type} at {x},{y} is off {what}, which is {width}x{height}",
                remedy=f"x goes from 0 to {width - 1} and y from 0 to {height - 1}",
                code="off_screen",
                x=x,
                y=y,
                width=width,
                height=height,
            )


def for_record(action: Action, redact: Redact) -> dict[str, object]:
    """The action as the audit keeps it: what it types, by text or by key, is in there only as `redact` leaves it."""
    kept: dict[str, object] = action.model_dump(mode="json", exclude_none=True)
    if isinstance(action, Type | Paste):
        kept["text"] = redact(action.text)
    elif isinstance(action, Key | HoldKey) and prints(combo(action.keys)):
        kept["keys"] = redact(action.keys)
    elif isinstance(action, KeyDown | KeyUp) and prints((keysym(action.key),)):
        kept["key"] = redact(action.key)
    return kept


def _points(action: Action) -> Iterator[tuple[int, int]]:
    if isinstance(action, Drag):
        yield from action.path
    elif isinstance(action, WaitStable | WaitChange):
        for x, y, width, height in (*((action.region,) if action.region else ()), *action.ignore):
            yield x, y
            yield x + width - 1, y + height - 1
    elif isinstance(action, Move | Click | Scroll | Press | Release) and action.x is not None and action.y is not None:
        yield action.x, action.y


def _parse(item: object, index: int) -> Action:
    where = f"actions[{index}]"
    if isinstance(item, _Action):
        return _ADAPTER.validate_python(item)
    kind = item.get("type") if isinstance(item, dict) else None
    if not isinstance(item, dict) or kind not in TYPES:
        raise _no_action(where, index, item, kind)
    try:
        return _ADAPTER.validate_python(item)
    except ValidationError as e:
        raise _refusal(where, index, kind, e.errors()[0]) from None


def _no_action(where: str, index: int, item: object, kind: object) -> InvalidError:
    if not isinstance(item, dict):
        return InvalidError(f"{where}: expected an action, found {_shown(item)}", code="bad_action", index=index)
    close = difflib.get_close_matches(kind[:40], TYPES, n=1) if isinstance(kind, str) else []
    what = f"there is no action {_shown(kind)}" if "type" in item else "this key is needed"
    return InvalidError(
        f"{where}.type: {what}",
        remedy=f"did you mean {close[0]}" if close else "one of " + ", ".join(TYPES),
        code="bad_action",
        index=index,
        key="type",
    )


def _refusal(where: str, index: int, kind: str, error: Any) -> InvalidError:
    loc = tuple(part for part in error["loc"][1:] if part != "constrained-int")
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    if error["type"] == "extra_forbidden":
        what = f"{kind} has no such key"
    elif error["type"] == "missing":
        what = f"{kind} needs this key"
    elif error["type"] in ("value_error", "assertion_error"):
        what = error["msg"].removeprefix("Value error, ")
    else:
        what = error["msg"].replace("Input should be", "expected").replace("tuple", "list")
        what += f", found {_shown(error['input'])}"
    return InvalidError(f"{where}{key}: {what}", code="bad_action", index=index, key=key.lstrip("."))


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
