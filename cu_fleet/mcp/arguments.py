"""What each tool takes. A wrong type or an unknown key is refused by name, before anything is sent.

The schemas that clients are shown come from these models, in the plainest words of JSON Schema: one flat object with
nothing to look up, since every client, and the model behind it, reads them in its own way.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cu_fleet.model.action import TYPES, Action, Button, Modifiers
from cu_fleet.model.errors import InvalidError

MOST_FILE = 8 << 20  # bytes that one call puts in
_NOISE = frozenset({"title", "default", "discriminator", "maximum", "minimum", "maxLength", "minLength"})
_PLAIN = frozenset({"properties", "$defs"})  # here the keys are names

X = Annotated[int, Field(ge=0, le=65535, description="Pixels from the left of the picture.")]
Y = Annotated[int, Field(ge=0, le=65535, description="Pixels from the top of the picture.")]
Frame = Annotated[
    str | None,
    Field(max_length=100, description="Id of the picture that the coordinates are pixels of; needed after zoom."),
]
Since = Annotated[
    str | None,
    Field(max_length=100, description="Id of the last picture you saw: sends no pixels if nothing has changed."),
]
Ref = Annotated[str | None, Field(max_length=20, description="Of an element, from ui, instead of x and y.")]
Approval = Annotated[
    str | None, Field(max_length=100, description="A person's yes to these very actions, from approval_wait.")
]
Held = Annotated[Modifiers, Field(description="Keys held meanwhile, such as ctrl or shift.")]
Path = Annotated[str, Field(min_length=1, max_length=4096, description="Below ~/Shared in the desktop.")]


class Nothing(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Acts(Nothing):
    intent: str | None = Field(None, max_length=2000, description="Why, in a few words: kept on record.")


class Points(Acts):
    frame: Frame = None


class AtPoint(Points):
    """A point of the picture, or an element."""

    x: X | None = None
    y: Y | None = None
    ref: Ref = None

    @model_validator(mode="after")
    def _one(self) -> "AtPoint":
        if (self.x is None) != (self.y is None) or (self.x is None) == (self.ref is None):
            raise ValueError("give x and y, or the ref of an element")
        return self


class Screenshot(Acts):
    if_changed_since: Since = None
    pointer: bool = Field(False, description="Draw the mouse pointer.")


class Zoom(Points):
    x: X
    y: Y
    width: int = Field(ge=1, le=65536)
    height: int = Field(ge=1, le=65536)


class Click(AtPoint):
    button: Button = "left"
    count: int = Field(1, ge=1, le=10, description="Clicks in quick succession; 3 selects a line.")
    modifiers: Held = ()


class DoubleClick(AtPoint):
    button: Button = "left"
    modifiers: Held = ()


class Drag(Points):
    path: Annotated[list[list[int]], Field(description="Two or more points [x, y], from the first to the last.")]
    button: Button = "left"
    modifiers: Held = ()


class Move(Points):
    x: X
    y: Y


class Scroll(Points):
    x: X
    y: Y
    dx: int = Field(0, description="Notches of the wheel; more than 0 is right.")
    dy: int = Field(0, description="Notches of the wheel; more than 0 is down.")
    modifiers: Held = ()


class Key(Acts):
    keys: str = Field(description="One key or several together: enter, ctrl+shift+t, alt+F4.")


class Type(Acts):
    text: str = Field(description="Any Unicode; a line break presses Enter.")
    ref: Ref = Field(None, description="An element from ui to click first, so that it has the focus.")


class Wait(Acts):
    seconds: float = Field(1.0, ge=0, le=30, description="How long, or at most how long for `until`.")
    until: Literal["stable", "change"] | None = Field(
        None, description="stable: until the screen keeps still; change: until it has changed since your last action."
    )
    if_changed_since: Since = None


class Act(Points):
    actions: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=500)]
    if_changed_since: Since = None
    approval: Approval = None
    picture: bool = Field(True, description="Answer with the picture once the screen keeps still.")


class Ask(Points):
    approval: str | None = Field(None, max_length=100, description="Wait for this one; or give actions to ask.")
    actions: Annotated[list[dict[str, Any]], Field(max_length=500)] | None = None
    seconds: float = Field(30.0, ge=0, le=45, description="How long to wait in this call.")

    @model_validator(mode="after")
    def _one(self) -> "Ask":
        if (self.approval is None) == (self.actions is None):
            raise ValueError("give an approval to wait for, or actions to ask about")
        if self.actions is not None and not self.intent:
            raise ValueError("say in intent why: a person reads it")
        return self


class Text(Acts):
    text: str = Field(max_length=1 << 20)


class Window(Acts):
    window: int = Field(ge=0, description="Its id, from windows.")


class Launch(Acts):
    name: str = Field(max_length=100)
    args: list[str] = Field([], max_length=100, description="Words after the command, such as a file or a URL.")


class Ui(Acts):
    window: str = Field(
        "", max_length=200, description="Part of a window's title or program; without it the active one."
    )
    role: str = Field("", max_length=100, description="Only such elements: button, entry, link, menu item, check box …")
    text: str = Field("", max_length=500, description="Only elements with this in their name or value.")


class FileGet(Acts):
    path: Path


class FilePut(Acts):
    path: Path
    text: str | None = Field(None, description="Its contents; or give base64.")
    base64: str | None = Field(None, description="Its contents, if they are no text.")

    @model_validator(mode="after")
    def _one(self) -> "FilePut":
        if (self.text is None) == (self.base64 is None):
            raise ValueError("give text or base64")
        return self


def parsed(kind: type[Nothing], tool: str, given: Mapping[str, Any] | None) -> Any:
    """The arguments, or an error that names the first wrong one."""
    try:
        return kind.model_validate(dict(given or {}))
    except ValidationError as e:
        error = e.errors()[0]
        key = ".".join(str(part) for part in error["loc"]) or "arguments"
        known = ", ".join(kind.model_fields) or "none"
        words = {"extra_forbidden": f"{tool} takes no such argument; only {known}", "missing": "is needed"}
        what = words.get(error["type"], error["msg"].removeprefix("Value error, "))
        raise InvalidError(f"{key}: {what}", remedy="nothing was sent; call it again", code="bad_argument") from None


def schema_of(kind: type[Nothing]) -> dict[str, Any]:
    """Its JSON schema, without what only programs would want to know."""
    schema: dict[str, Any] = _plain(kind.model_json_schema())
    if "actions" in schema.get("properties", {}):
        schema["properties"]["actions"] = _actions()
    return schema


def _actions() -> dict[str, Any]:
    """All actions as one object: a union would be four times as long, and says no more to who reads it."""
    properties: dict[str, Any] = {"type": {"type": "string", "enum": list(TYPES)}}
    lines = []
    for kind in get_args(get_args(Action)[0]):
        own = _plain(kind.model_json_schema())
        names = {name: facts for name, facts in own["properties"].items() if name != "type"}
        properties = {**names, **properties}
        needed = own.get("required", [])
        words = ", ".join(name if name in needed else f"{name}?" for name in names)
        lines.append(f"{kind.model_fields['type'].default} {{{words}}}")
    item: dict[str, Any] = {
        "type": "object",
        "properties": dict(sorted(properties.items(), key=_type_first)),
        "required": ["type"],
    }
    item["additionalProperties"] = False
    return {"type": "array", "items": item, "minItems": 1, "maxItems": 500, "description": "; ".join(lines)}


def _type_first(pair: tuple[str, Any]) -> bool:
    return pair[0] != "type"


def _plain(schema: Any, names: bool = False) -> Any:
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if not names:
        schema = _without_null(schema)
        if "prefixItems" in schema:  # a point or a rectangle: each part is alike
            schema = {**schema, "items": schema["prefixItems"][0]}
            schema = {key: value for key, value in schema.items() if key != "prefixItems"}
    return {key: _plain(value, key in _PLAIN) for key, value in schema.items() if names or key not in _NOISE}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What may be left out need not say that it may be null too."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) != 1:
        return schema
    return {**kinds[0], **{key: value for key, value in schema.items() if key != "anyOf"}}
