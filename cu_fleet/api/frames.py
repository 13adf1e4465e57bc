"""Kept frames over HTTP: which there are, their pictures, and how some go before their time."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response
from pydantic import Field

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import Answers, example
from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value
from cu_fleet.model.view import FrameView

router = APIRouter(prefix="/v1/frames", tags=["frames"])
FACTS = ("sha256", "lease", "why", "at_iso", "width", "height")
HEADERS = {f"Cu-Fleet-{name.removesuffix('_iso').title()}": {"schema": {"type": "string"}} for name in FACTS}
PICTURE: Answers = {
    200: {
        "description": "The picture's bytes.",
        "headers": HEADERS,
        "content": {f"image/{kind}": {"schema": {"type": "string"}} for kind in ("png", "jpeg", "webp")},
    }
}
Hash = Annotated[
    str, Path(description="Its sha256, or at least 8 digits of it.", examples=["9f86d081884c7d65"], max_length=64)
]


class Frames(Value):
    frames: list[FrameView]


class Prune(Value):
    model_config = example(older="2d", lease="ls_3k9m2c7d1x")
    older: Seconds | None = Field(None, description="Seconds or '2d': only what was seen before; none: of any age.")
    lease: str | None = Field(None, max_length=100, description="Only of this lease, evidence and all.")


class Pruned(Value):
    removed: int
    bytes: int
    left: int
    left_bytes: int


@router.get("", summary="List kept frames", responses=raises(404, 410, 423))
async def frames(
    at: At,
    lease: Annotated[str | None, Query(max_length=100, description="Only of this lease.")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="How many of the newest.")] = 100,
) -> Frames:
    """Newest first. A lease's token sees that lease's, while it is held; operators see all."""
    return Frames(frames=await at.fleet.frames(at.who, lease, limit))


@router.get(
    "/{sha256}",
    summary="Show a kept frame",
    response_class=Response,
    responses=PICTURE | raises(404, 410, 423),
)
async def frame(sha256: Hash, at: At) -> Response:
    """The picture that the record names by this hash. Showing it is on record too."""
    view, data = await at.fleet.frame(at.who, sha256)
    headers = {header: str(getattr(view, name)) for header, name in zip(HEADERS, FACTS, strict=True)}
    return Response(data, media_type=f"image/{view.format}", headers=headers)


@router.post("/prune", summary="Remove kept frames before their time", responses=raises(404))
async def prune(at: At, body: Prune | None = None) -> Pruned:
    """With neither `older` nor `lease`: what the settings let go. One under way keeps its own unless it is named."""
    body = body or Prune()
    pruned = await at.fleet.prune_frames(at.who, older=body.older, lease=body.lease)
    return Pruned(removed=pruned.removed, bytes=pruned.bytes, left=pruned.left, left_bytes=pruned.left_bytes)
