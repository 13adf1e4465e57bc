"""A lease's screen over HTTP: act, look, windows, programs, clipboard."""

import base64
from functools import lru_cache
from operator import itemgetter
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field, PlainValidator, ValidationError
from pydantic_core import to_json

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import Answers, LeaseId, Ok, example
from cu_fleet.model.action import Action, parse_actions
from cu_fleet.model.errors import BrokenError
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
    screenshot: Shot | None = Field(None, description="Answer with the settled picture too.")
    intent: str | None = Field(None, max_length=2000, description="Why, for the record.")
    frame: str | None = Field(
        None, max_length=100, description="Coordinates are pixels of this picture; none: of the lease's view."
    )
    approval: str | None = Field(
        None, max_length=100, description="A person's answer to these very actions: a yes, or none is sent."
    )
    request_id: str | None = Field(None, max_length=200, description="Sent again, the batch is not done again.")


class Picture(Value):
    """A picture, or, without its pixels, one the caller has already. The headers of a screenshot say the same."""

    frame: str = Field(description="Its id, for `frame` and `if_changed_since`.")
    width: int = Field(description="Of this picture.")
    height: int
    screen_width: int
    screen_height: int
    scale: float = Field(description="Pixels of this picture for each pixel of the screen.")
    generation: int
    sha256: str = Field(description="Of the bytes handed out.")
    age: float = Field(description="Seconds since the server had proved that this is what the screen shows.")
    within: float = Field(description="Seconds by which it may have been older than that; 0: it is exact.")
    format: str
    settled: bool | None = Field(description="Whether the screen kept still; null: nobody waited for that.")
    unchanged: bool = Field(description="Whether it is the frame of `if_changed_since`: then there is no `data`.")
    data: str | None = Field(None, description="base64")


class Answer(Value):
    done: list[Done]
    generation: int
    screenshot: Picture | None
    not_shown: Done | None = Field(None, description="Why there is no picture, though one was asked for.")


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
    text: str = Field(max_length=32 << 20)  # a bound has it checked that these are whole characters


ANSWERS: Answers = {200: {"model": Answer, "description": "What became of each action, and the picture."}}
FACTS = [name for name in Picture.model_fields if name not in ("data", "unchanged")]
HEADERS = {f"Cu-Fleet-{name.replace('_', '-').title()}": {"schema": {"type": "string"}} for name in FACTS}
AGE = "Cu-Fleet-Age"
_AGE = AGE.lower().encode()
_FACTS_OF = itemgetter(*(fact for fact in FACTS if fact != "age"))
_NAMES = [name.lower().encode() for name in HEADERS if name != AGE]
PICTURE: Answers = {
    200: {
        "description": "The picture's bytes. The headers say what an answer with `screenshot` says in JSON.",
        "headers": HEADERS,
        "content": {f"image/{kind}": {"schema": {"type": "string"}} for kind in ("png", "jpeg", "webp")},
    },
    304: {"description": "The frame of `if_changed_since` is what it would show.", "headers": HEADERS},
}


@router.post("/actions", summary="Act", responses=ANSWERS | raises(404, 409, 410, 423, 501), response_model=None)
async def act(lease: LeaseId, at: At, body: Actions) -> Response:
    """Do these in order, and answer what became of each; a wrong one anywhere is refused before anything is sent."""
    acted = await at.fleet.act(
        at.who,
        lease,
        body.actions,
        shot=body.screenshot,
        intent=body.intent,
        request_id=body.request_id,
        frame=body.frame,
        approval=body.approval,
    )
    return Response(to_json(_answer(acted)), media_type="application/json")


def _answer(acted: Acted) -> dict[str, Any]:
    why = {"not_shown": acted.not_shown.model_dump()} if acted.not_shown else {}
    return {
        "done": [done.model_dump(exclude_none=True) for done in acted.done],
        "generation": acted.generation,
        "screenshot": _picture(acted.screenshot) if acted.screenshot else None,
        **why,
    }


def _picture(shown: Shown) -> dict[str, Any]:
    data = {} if shown.unchanged else {"data": base64.b64encode(shown.data).decode()}
    return {**shown.model_dump(exclude={"data"}), **data}


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
    frame: Annotated[str | None, Query(max_length=100, description="`region` is in pixels of this picture.")] = None,
    max_edge: Annotated[
        int | None, Query(ge=16, le=16384, description="Neither edge longer; none: the view's scale.")
    ] = None,
    format: Annotated[str, Query(pattern="^(png|jpeg|webp)$")] = "png",  # noqa: A002 - the query's name
    quality: Annotated[int, Query(ge=1, le=100)] = 80,
    max_bytes: Annotated[int | None, Query(ge=10_000)] = None,
    pointer: Annotated[bool, Query(description="Draw the mouse pointer.")] = False,
    if_changed_since: Annotated[
        str | None, Query(max_length=100, description="Answer 304 if this frame, asked for alike, is what it shows.")
    ] = None,
    settle_ms: Annotated[
        int | None, Query(ge=0, le=10_000, description="Wait until the screen has kept still for so long.")
    ] = None,
    settle_timeout_ms: Annotated[
        int, Query(ge=1, le=60_000, description="Look after so long even if it keeps changing.")
    ] = 2000,
    allow_blank: Annotated[
        bool, Query(description="Also a screen of one colour, or of another size than its profile's.")
    ] = False,
    intent: Annotated[str | None, Query(max_length=2000, description="Why, for the record.")] = None,
) -> Response:
    """What the screen shows now. Looking is an action on record too."""
    shot = Shot(
        region=region,
        frame=frame,
        max_edge=max_edge,
        format=format,
        quality=quality,
        max_bytes=max_bytes,
        pointer=pointer,
        if_changed_since=if_changed_since,
        settle_ms=settle_ms,
        settle_timeout_ms=settle_timeout_ms,
        allow_blank=allow_blank,
    )
    return _Told(await at.fleet.screenshot(at.who, lease, shot, intent=intent))


class _Told(Response):
    """A picture, or word that there is none, with what is said of it in headers that are written already."""

    def __init__(self, shown: Shown) -> None:
        self.status_code, self.body, self.background = 304 if shown.unchanged else 200, shown.data, None
        self.raw_headers = [*_headers(*_FACTS_OF(shown.__dict__)), (_AGE, b"%.6f" % shown.age)]
        if not shown.unchanged:
            kind, size = shown.media_type.encode(), str(len(shown.data)).encode()
            self.raw_headers += [(b"content-type", kind), (b"content-length", size)]


@lru_cache(256)  # a frame that has not changed is told of again and again
def _headers(*facts: object) -> list[tuple[bytes, bytes]]:
    told = zip(_NAMES, facts, strict=True)
    return [(name, _plain(value).encode("latin-1")) for name, value in told if value is not None]


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


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
