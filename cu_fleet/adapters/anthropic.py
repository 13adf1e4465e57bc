"""Anthropic's computer tools: `computer_20250124`, `computer_20251124` (with zoom) and the toolset of 2026-08-01.

    computer = Computer(desktop)
    message = await client.beta.messages.create(model=…, tools=[computer.tool], betas=[computer.beta], messages=…)
    results = await computer.answers([block.to_dict() for block in message.content])

Tool uses and results are dictionaries as the Messages API has them. Each result of an action holds the settled screen;
what went wrong is a result with `is_error` that says why. After one of these, the other actions of the same message are
not done: they were meant for what did not happen. That the lease is over is raised.

Clicks without a coordinate go to where this tool has put the pointer last, and `cursor_position` tells that.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cu_fleet.adapters.display import Display, Image64, Shown, Step, holding, keys_of, waiting
from cu_fleet.client.desktop import Desktop
from cu_fleet.model.errors import FleetError, InvalidError, LeaseOverError
from cu_fleet.model.keys import combo

Kind = Literal["computer_20250124", "computer_20251124", "computer_toolset_20260801"]
_BETAS = {"computer_20250124": "computer-use-2025-01-24", "computer_20251124": "computer-use-2025-11-24"}
_CLICKS = {
    "left_click": ("left", 1),
    "right_click": ("right", 1),
    "middle_click": ("middle", 1),
    "double_click": ("left", 2),
    "triple_click": ("left", 3),
}
_WAYS = {"up": ("dy", -1), "down": ("dy", 1), "left": ("dx", -1), "right": ("dx", 1)}
_SEEING = frozenset({"screenshot", "zoom", "cursor_position"})
ACTIONS = frozenset(
    {*_CLICKS, *_SEEING, "key", "hold_key", "type", "mouse_move", "left_mouse_down", "left_mouse_up"}
    | {"left_click_drag", "scroll", "wait"}
)
Point = tuple[int, int]
Duration = Annotated[float, Field(ge=0, le=300, allow_inf_nan=False)]


class Input(TypedDict, total=False):
    """What the model says; of the toolset, the action is the tool's name instead."""

    action: str
    coordinate: Point | None
    start_coordinate: Point | None
    region: tuple[int, int, int, int] | None
    text: str | None
    duration: Duration | None
    repeat: Annotated[int, Field(ge=1, le=100)] | None
    scroll_direction: Literal["up", "down", "left", "right"] | None
    scroll_amount: Annotated[int, Field(ge=0, le=1000)] | None


class ToolUse(TypedDict, total=False):
    type: Literal["tool_use"]
    id: str
    name: str
    input: Input
    toolset_name: str | None


_INPUT: TypeAdapter[Input] = TypeAdapter(Input)


class Computer:
    """The tool over one desktop. `size`: of the display as it is declared; none: of the lease's view."""

    def __init__(
        self, desktop: Desktop, size: tuple[int, int] | None = None, *, kind: Kind = "computer_20251124"
    ) -> None:
        self.display = Display(desktop, size)
        self.kind = kind

    @property
    def tool(self) -> dict[str, Any]:
        """For `tools` of a request."""
        if self.kind == "computer_toolset_20260801":
            return {"type": self.kind}
        size = {"display_width_px": self.display.width, "display_height_px": self.display.height}
        zoom = {"enable_zoom": True} if self.kind == "computer_20251124" else {}
        return {"type": self.kind, "name": "computer", **size, **zoom}

    @property
    def beta(self) -> str | None:
        """For `betas` of a request; none is known for the toolset."""
        return _BETAS.get(self.kind)

    async def answers(self, content: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The results for all computer tool uses among a message's blocks, in their order."""
        results: list[dict[str, Any]] = []
        failed = False
        for block in content:
            if not self.is_ours(block):
                continue
            if failed and _action(block) not in _SEEING:
                results.append(_result(block, ["not done, because what came before it failed"], error=True))
                continue
            results.append(await self.answer(block))
            failed = failed or bool(results[-1].get("is_error"))
        return results

    def is_ours(self, block: Mapping[str, Any]) -> bool:
        if block.get("type") != "tool_use":
            return False
        return block.get("name") == "computer" or block.get("toolset_name") == "computer"

    async def answer(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Do a tool use; the result to send for it. Raises only when the lease is over."""
        try:
            action = _action(block)
            given = parsed(action, block.get("input") or {})
            if action in _SEEING:
                return _result(block, [await self._seen(action, given)])
            shown = await self.display.act(self.steps(action, given))
        except LeaseOverError:
            raise
        except FleetError as error:
            return _result(block, [str(error)], error=True)
        return _acted(block, shown)

    async def _seen(self, action: str, given: Input) -> str | Image64:
        if action == "screenshot":
            return await self.display.look()
        if action == "zoom":
            if self.kind == "computer_20250124":
                raise InvalidError("computer_20250124 has no zoom", remedy="take a screenshot", code="bad_action")
            return await self.display.zoom(*_needed(given.get("region"), action, "region"))
        x, y = self._pointer(action)
        return f"X={x},Y={y} (where this tool has put the pointer last; a person may have moved it since)"

    def steps(self, action: str, given: Input) -> list[Step]:
        """Ours for one of theirs."""
        if action in ("key", "hold_key", "type", "wait"):
            return self._typing(action, given)
        if action in ("left_mouse_down", "left_mouse_up"):
            at = given.get("coordinate")
            return [{"type": "press" if action.endswith("down") else "release", **(_at(at) if at else {})}]
        return holding(keys_of(text) if (text := given.get("text")) else [], self._pointing(action, given))

    def _typing(self, action: str, given: Input) -> list[Step]:
        if action == "wait":
            return waiting(_needed(given.get("duration"), action, "duration"))
        text = _needed(given.get("text"), action, "text")
        if action == "type":
            return [{"type": "type", "text": text}]
        if action == "hold_key":
            pieces = waiting(_needed(given.get("duration"), action, "duration"))
            if len(pieces) == 1:
                return [{"type": "hold_key", "keys": text, "seconds": pieces[0]["seconds"]}]
            down = holding(keys_of(text), {"type": "wait", "seconds": 0})
            middle = len(down) // 2
            return [*down[:middle], *pieces, *down[middle + 1 :]]
        return [{"type": "key", "keys": keys} for keys in _presses(text)] * (given.get("repeat") or 1)

    def _pointing(self, action: str, given: Input) -> Step:
        if action == "mouse_move":
            return {"type": "move", **_at(_needed(given.get("coordinate"), action, "coordinate"))}
        if action == "left_click_drag":
            start = given.get("start_coordinate") or self._pointer(action)
            return {"type": "drag", "path": [[*start], [*_needed(given.get("coordinate"), action, "coordinate")]]}
        at = _at(given.get("coordinate") or self._pointer(action))
        if action == "scroll":
            key, sign = _WAYS[_needed(given.get("scroll_direction"), action, "scroll_direction")]
            return {"type": "scroll", **at, key: sign * _needed(given.get("scroll_amount"), action, "scroll_amount")}
        button, count = _CLICKS[action]
        return {"type": "click", **at, "button": button, "count": count}

    def _pointer(self, action: str) -> Point:
        if self.display.pointer is None:
            raise InvalidError(
                f"{action}: where the pointer is, is not known, since this tool has not moved it yet",
                remedy="name a coordinate",
                code="no_pointer",
            )
        return self.display.pointer


def parsed(action: str, given: Mapping[str, Any]) -> Input:
    """The input, checked."""
    if action not in ACTIONS:
        names = ", ".join(sorted(ACTIONS))
        raise InvalidError(f"there is no action {action[:60]!r}", remedy=f"one of {names}", code="bad_action")
    try:
        return _INPUT.validate_python(dict(given))
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(str(part) for part in error["loc"])
        raise InvalidError(f"{action}: {where}: {error['msg']}", remedy="nothing was done", code="bad_action") from None


def _action(block: Mapping[str, Any]) -> str:
    given = block.get("input")
    if block.get("toolset_name"):
        return str(block.get("name"))
    return str(given.get("action", "")) if isinstance(given, Mapping) else ""


def _needed(value: Any, action: str, name: str) -> Any:
    if value is None:
        raise InvalidError(f"{action} needs {name}", remedy="nothing was done", code="bad_action")
    return value


def _at(point: Point) -> Step:
    return {"x": point[0], "y": point[1]}


def _presses(text: str) -> list[str]:
    """One combination, or, as xdotool has it, several with blanks between them."""
    try:
        combo(text)
    except InvalidError:
        if len(text.split()) < 2:
            raise
        return text.split()
    return [text]


def _acted(block: Mapping[str, Any], shown: Shown) -> dict[str, Any]:
    parts: list[str | Image64] = [shown.error] if shown.error else []
    if shown.image:
        parts.append(shown.image)
    else:
        parts.append(f"{'' if shown.error else 'done, but '}there is no picture: {shown.blind}")
    return _result(block, parts, error=bool(shown.error))


def _result(block: Mapping[str, Any], parts: Iterable[str | Image64], error: bool = False) -> dict[str, Any]:
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": block.get("id"), "content": [*map(_part, parts)]}
    if error:
        result["is_error"] = True
    if toolset := block.get("toolset_name"):
        result["toolset_name"] = toolset
    return result


def _part(part: str | Image64) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image", "source": {"type": "base64", "media_type": part.media_type, "data": part.data}}
