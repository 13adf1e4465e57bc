"""A lease's screen over HTTP: act, look, windows, programs, clipboard."""

import base64
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, PlainValidator, ValidationError
from pydantic_core import to_json

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import Answers, LeaseId, Ok, example
from cu_fleet.model.action import Action, parse_actions
from cu_fleet.model.errors import BrokenError, UnsupportedError
from cu_fleet.model.record import Value
from cu_fleet.model.request import Acted, Done, Shot, Shown

router = APIRouter(prefix="/v1/leases/{lease}", tags=["screen"])
RAISES = raises(404, 410, 423, 501)


class Actions(Value):
    model_config = example(
        actions=[{"type": "click", "x": 640, "y": 400}, {"type": "type", "text": "hello"}],
        screenshot={"format": "jpeg", "max_edge": 1024},
        intent="greet",
    )
    actions: Annotated[list[Action], PlainValidator(parse_actions, json_schema_input_type=list[Action])] = Field(
        description="Done in order, until one fails."
    )
    screenshot: Shot | None = Field(None, description="Answer with the settled picture.")
    intent: str | None = Field(None, max_length=2000, description="Why, for the record.")
    frame: str | None = Field(None, max_length=100, description="Coordinates are pixels of this picture.")
    approval: str | None = Field(None, max_length=100, description="A person's answer to a gate.")
    request_id: str | None = Field(None, max_length=200, description="Sent again, the batch is not done again.")


class Picture(Value):
    frame: str
    width: int
    height: int
    sha256: str = Field(description="Of the bytes in `data`.")
    scale: float = Field(description="Pixels of this picture for each pixel of the desktop.")
    age: float = Field(description="Seconds since its newest pixel arrived.")
    format: str
    data: str = Field(description="base64")


class Answer(Value):
    done: list[Done]
    generation: int
    screenshot: Picture | None


class Window(BaseModel):
    """As the desktop's own helper tells it."""

    id: int
    title: str
    class_: str = Field(alias="class")
    pid: int | None
    x: int
    y: int
    width: int
    height: int
    focused: bool
    minimized: bool = False


class Windows(Value):
    windows: list[Window]


class Focus(Value):
    model_config = example(window=4194311)
    window: int = Field(ge=0, description="Its id, from `windows`.")


class Launch(Value):
    model_config = example(name="browser", args=["http://localhost:8000"])
    name: str = Field(max_length=100, description="A program that the profile lists under `launch`.")
    args: list[Annotated[str, Field(max_length=10_000)]] = Field([], max_length=100)


class Text(Value):
    model_config = example(text="hello")
    text: str


ANSWERS: Answers = {200: {"model": Answer, "description": "What became of each action, and the picture."}}
HEADERS = ("Frame", "Sha256", "Age", "Scale", "Width", "Height", "Generation")
PICTURE: Answers = {
    200: {
        "description": "The picture's bytes; Width and Height are the desktop's.",
        "headers": {f"Cu-Fleet-{name}": {"schema": {"type": "string"}} for name in HEADERS},
        "content": {f"image/{kind}": {"schema": {"type": "string"}} for kind in ("png", "jpeg", "webp")},
    }
}


@router.post("/actions", summary="Act", responses=ANSWERS | raises(404, 409, 410, 423, 501), response_model=None)
async def act(lease: LeaseId, at: At, body: Actions) -> Response:
    """Do these in order, and answer what became of each; a wrong one anywhere is refused before anything is sent."""
    for name in ("frame", "approval"):
        if getattr(body, name) is not None:
            raise UnsupportedError(f"this controller knows no {name}s", remedy=f"leave {name} out", code=f"no_{name}s")
    acted = await at.fleet.act(
        at.who,
        lease,
        body.actions,
        shot=body.screenshot,
        intent=body.intent,
        request_id=body.request_id,
    )
    return Response(to_json(_answer(acted)), media_type="application/json")


def _answer(acted: Acted) -> dict[str, Any]:
    return {
        "done": [done.model_dump(exclude_none=True) for done in acted.done],
        "generation": acted.generation,
        "screenshot": _picture(acted.screenshot) if acted.screenshot else None,
    }


def _picture(shown: Shown) -> dict[str, Any]:
    fields = shown.model_dump(include=set(Picture.model_fields) - {"data"})
    return {**fields, "data": base64.b64encode(shown.data).decode()}


@router.get(
    "/screenshot",
    summary="Look at the screen",
    response_class=Response,
    responses=PICTURE | RAISES,
)
async def screenshot(
    lease: LeaseId,
    at: At,
    region: Annotated[
        str | None, Query(pattern=r"^\d+,\d+,\d+,\d+$", description="X,Y,WIDTH,HEIGHT", examples=["0,0,640,400"])
    ] = None,
    max_edge: Annotated[int | None, Query(ge=16, le=16384)] = None,
    format: Annotated[str, Query(pattern="^(png|jpeg|webp)$")] = "png",  # noqa: A002 - the query's name
    quality: Annotated[int, Query(ge=1, le=100)] = 80,
    max_bytes: Annotated[int | None, Query(ge=10_000)] = None,
    pointer: Annotated[bool, Query(description="Draw the mouse pointer.")] = False,
    intent: Annotated[str | None, Query(max_length=2000, description="Why, for the record.")] = None,
) -> Response:
    """What the screen shows now. Looking is an action on record too."""
    asked = {"max_edge": max_edge, "format": format, "quality": quality, "max_bytes": max_bytes, "pointer": pointer}
    shown = await at.fleet.screenshot(at.who, lease, Shot.model_validate({**asked, "region": region}), intent=intent)
    return Response(shown.data, media_type=shown.media_type, headers=_headers(shown))


def _headers(shown: Shown) -> dict[str, str]:
    size = (shown.screen_width, shown.screen_height)
    values = (shown.frame, shown.sha256, f"{shown.age:.6f}", shown.scale, *size, shown.generation)
    return {f"Cu-Fleet-{name}": str(value) for name, value in zip(HEADERS, values, strict=True)}


@router.get("/windows", summary="List windows", responses=RAISES)
async def windows(lease: LeaseId, at: At) -> Windows:
    """Every window of the desktop, with its title, class and place."""
    told = await at.fleet.windows(at.who, lease)
    try:
        return Windows.model_validate({"windows": told})
    except ValidationError:
        raise BrokenError(f"the desktop of lease {lease} tells of its windows what nobody understands") from None


@router.post("/focus", summary="Focus a window", responses=raises(404, 409, 410, 423, 501))
async def focus(lease: LeaseId, at: At, body: Focus) -> Ok:
    """Raise a window and give it the keyboard."""
    await at.fleet.focus(at.who, lease, body.window)
    return Ok()


@router.post("/launch", summary="Start a program", responses=raises(404, 409, 410, 423, 501))
async def launch(lease: LeaseId, at: At, body: Launch) -> dict[str, Any]:
    """One of the programs that the profile lets an agent start, by name."""
    return await at.fleet.launch(at.who, lease, body.name, body.args)


@router.get("/clipboard", summary="Read the clipboard", responses=RAISES)
async def clipboard_get(lease: LeaseId, at: At) -> Text:
    """The text in the desktop's own clipboard."""
    return Text(text=await at.fleet.clipboard_get(at.who, lease))


@router.put("/clipboard", summary="Set the clipboard", responses=raises(404, 409, 410, 423, 501))
async def clipboard_set(lease: LeaseId, at: At, body: Text) -> Ok:
    """Any Unicode text, into the desktop's own clipboard."""
    await at.fleet.clipboard_set(at.who, lease, body.text)
    return Ok()
