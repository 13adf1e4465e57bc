"""OpenAI's computer tools: `computer`, whose calls hold batches of `actions`, and `computer_use_preview`, with one.

    computer = Computer(desktop)
    response = await client.responses.create(model=…, tools=[computer.tool], input=…)
    input = [item for call in calls for item in await computer.answer(call.to_dict())]

Calls and answers are dictionaries as the Responses API has them. A `computer_call_output` can hold a picture and
nothing else, so what went wrong follows it in a message of the developer's.

A call with pending safety checks is done only when a person has agreed to it: the operator, who is asked through the
controller and answers there (`cu-fleet approval list`), or whoever `confirm` asks instead, by saying `True`.
Distances of the wheel come in pixels; a notch of it is about `PIXELS` of a page.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from inspect import isawaitable
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from cu_fleet.adapters.display import Display, Step, holding
from cu_fleet.client.desktop import Desktop
from cu_fleet.model.errors import DeniedError, InvalidError, LeasePausedError, UnavailableError
from cu_fleet.model.keys import MODIFIERS, keysym

PIXELS = 100.0
WAIT = 2.0  # seconds: a `wait` names none
_BUTTONS = {"wheel": "middle"}
Keys = list[str] | None


class SafetyCheck(TypedDict, total=False):
    id: str
    code: str | None
    message: str | None


class Click(TypedDict):
    type: Literal["click"]
    button: Literal["left", "right", "wheel", "back", "forward"]
    x: int
    y: int
    keys: NotRequired[Keys]


class DoubleClick(TypedDict):
    type: Literal["double_click"]
    x: int
    y: int
    keys: NotRequired[Keys]


class Point(TypedDict):
    x: int
    y: int


class Drag(TypedDict):
    type: Literal["drag"]
    path: list[Point]
    keys: NotRequired[Keys]


class Keypress(TypedDict):
    type: Literal["keypress"]
    keys: Annotated[list[str], Field(min_length=1)]


class Move(TypedDict):
    type: Literal["move"]
    x: int
    y: int
    keys: NotRequired[Keys]


class Screenshot(TypedDict):
    type: Literal["screenshot"]


class Scroll(TypedDict):
    type: Literal["scroll"]
    x: int
    y: int
    scroll_x: int
    scroll_y: int
    keys: NotRequired[Keys]


class Type(TypedDict):
    type: Literal["type"]
    text: str


class Wait(TypedDict):
    type: Literal["wait"]


Action = Annotated[
    Click | DoubleClick | Drag | Keypress | Move | Screenshot | Scroll | Type | Wait, Field(discriminator="type")
]


class ComputerCall(TypedDict):
    """What the API hands out: `action` of `computer_use_preview`, `actions` of `computer`."""

    type: Literal["computer_call"]
    call_id: str
    action: NotRequired[Action | None]
    actions: NotRequired[list[Action] | None]
    pending_safety_checks: NotRequired[list[SafetyCheck] | None]
    status: NotRequired[str | None]


Confirm = Callable[[list[SafetyCheck], ComputerCall], bool | Awaitable[bool]]
_CALL: TypeAdapter[ComputerCall] = TypeAdapter(ComputerCall)


class Computer:
    """The tool over one desktop. `size`: of the display as it is declared; none: of the lease's view."""

    def __init__(
        self,
        desktop: Desktop,
        size: tuple[int, int] | None = None,
        *,
        kind: Literal["computer", "computer_use_preview"] = "computer",
        confirm: Confirm | None = None,
        pixels_per_notch: float = PIXELS,
    ) -> None:
        self.display = Display(desktop, size)
        self.kind = kind
        self._confirm = confirm
        self._per_notch = pixels_per_notch

    @property
    def tool(self) -> dict[str, Any]:
        """For `tools` of a request."""
        if self.kind == "computer":
            return {"type": "computer"}  # which takes the size from the pictures
        size = {"display_width": self.display.width, "display_height": self.display.height}
        return {"type": self.kind, "environment": "linux", **size}

    async def answers(self, output: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What to send for all computer calls among the items of a response, in their order."""
        calls = [item for item in output if item.get("type") == "computer_call"]
        return [item for call in calls for item in await self.answer(call)]

    async def answer(self, call: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Do a call; the items to send for it: the picture, and a message if something was not done.

        Raises if safety checks are not confirmed, if the lease is over, or if there is no picture to be had.
        """
        asked = parsed(call)
        checks = asked.get("pending_safety_checks") or []
        if checks and self._confirm:
            await self._confirmed(self._confirm, checks, asked)
        intent = "confirmed: " + ", ".join(str(check.get("code") or check.get("id")) for check in checks)
        try:
            steps = [step for action in _actions(asked) for step in self.steps(action)]
            approval = None if self._confirm or not checks else await self._approved(checks, steps)
            shown = await self.display.act(steps, intent=intent[:2000] if checks else None, approval=approval)
        except (InvalidError, LeasePausedError) as error:  # the model can say better words, or wait
            return self._items(asked, (await self.display.look()).url, checks, f"nothing was done: {error}")
        if shown.image is None:
            raise UnavailableError(f"{shown.error or 'done'}; no picture: {shown.blind}", code="no_picture")
        return self._items(asked, shown.image.url, checks, shown.error)

    def steps(self, action: Action) -> list[Step]:
        """Ours for one of theirs."""
        if action["type"] == "keypress":
            return [{"type": "key", "keys": keys} for keys in _presses(action["keys"])]
        if action["type"] == "type":
            return [{"type": "type", "text": action["text"]}]
        if action["type"] == "wait":
            return [{"type": "wait", "seconds": WAIT}]
        if action["type"] == "screenshot":
            return []  # each answer has one, of the end of its batch
        return holding(action.get("keys") or [], self._pointing(action))

    def _pointing(self, action: Click | DoubleClick | Drag | Move | Scroll) -> Step:
        if action["type"] == "drag":
            return {"type": "drag", "path": [[point["x"], point["y"]] for point in action["path"]]}
        at = {"x": action["x"], "y": action["y"]}
        if action["type"] == "click":
            return {"type": "click", **at, "button": _BUTTONS.get(action["button"], action["button"])}
        if action["type"] == "double_click":
            return {"type": "click", **at, "count": 2}
        if action["type"] == "move":
            return {"type": "move", **at}
        dx = self.display.notches(action["scroll_x"], self._per_notch, across=True)
        dy = self.display.notches(action["scroll_y"], self._per_notch, across=False)
        return {"type": "scroll", **at, "dx": dx, "dy": dy}

    async def _confirmed(self, confirm: Confirm, checks: list[SafetyCheck], call: ComputerCall) -> None:
        said: object = confirm(checks, call)
        if isawaitable(said):
            said = await said
        if said is not True:
            raise _unconfirmed(checks, "the operator did not agree")

    async def _approved(self, checks: list[SafetyCheck], steps: list[Step]) -> str:
        """The operator's approval of these very steps."""
        said = await self.display.answered(steps, "OpenAI wants a person to look first", [_told(x) for x in checks])
        if said.state == "void":
            await self.display.look()  # if the lease is over, that is what is raised
        if said.state != "approved":
            words = {"denied": f"{said.by} said no", "expired": "nobody answered in time, which is a no"}
            why = f": {said.answer}" if said.answer else ""
            raise _unconfirmed(checks, f"{words.get(said.state, f'the question is {said.state}')}{why}", said.approval)
        return said.approval

    def _items(self, call: ComputerCall, url: str, checks: list[SafetyCheck], error: str) -> list[dict[str, Any]]:
        output: dict[str, Any] = {
            "type": "computer_call_output",
            "call_id": call["call_id"],
            "output": {"type": "computer_screenshot", "image_url": url},
        }
        if checks:
            output["acknowledged_safety_checks"] = [dict(check) for check in checks]
        if not error:
            return [output]
        text = f"Of computer call {call['call_id']}: {error}"
        return [output, {"role": "developer", "content": [{"type": "input_text", "text": text}]}]


def parsed(call: Mapping[str, Any]) -> ComputerCall:
    """The call, checked; what we do not know in it is refused by name."""
    try:
        asked = _CALL.validate_python(dict(call))
    except ValidationError as e:
        error = e.errors()[0]
        where = ".".join(str(part) for part in error["loc"]) or "call"
        raise InvalidError(f"{where}: {error['msg']}", remedy="nothing was done", code="bad_call") from None
    if asked.get("status") == "incomplete":
        raise InvalidError(f"call {asked['call_id']} is incomplete", remedy="nothing was done", code="bad_call")
    return asked


def _told(check: SafetyCheck) -> dict[str, object]:
    """As our controller takes it."""
    most = {"id": 200, "code": 200, "message": 4000}
    return {key: str(value)[: most[key]] for key, value in check.items() if key in most and value is not None}


def _unconfirmed(checks: list[SafetyCheck], why: str, approval: str | None = None) -> DeniedError:
    what = "; ".join(str(check.get("message") or check.get("code") or check.get("id")) for check in checks)
    return DeniedError(
        f"nothing was done: OpenAI wants a person to look first ({what})",
        remedy=why,
        code="safety_check",
        checks=[dict(check) for check in checks],
        approval=approval,
    )


def _actions(call: ComputerCall) -> list[Action]:
    single = call.get("action")
    return call.get("actions") or ([single] if single else [])


def _presses(keys: list[str]) -> list[str]:
    """Each key in its turn, with the modifiers among them held: CTRL, A is ctrl+A; TAB, TAB is twice tab."""
    names = [part if len(key) > 1 else key for key in keys for part in (key.split("+") if len(key) > 1 else [key])]
    held = {keysym(name): name for name in names if keysym(name) in MODIFIERS}
    others = [name for name in names if keysym(name) not in MODIFIERS]
    parts = [[*held.values(), other] for other in others] or [list(held.values())]
    return ["+".join("plus" if name == "+" else name for name in part) for part in parts]
