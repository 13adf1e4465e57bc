"""What is on a lease's screen, as its programs name it."""

from typing import Annotated

from fastapi import APIRouter, Path, Query

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import LeaseId
from cu_fleet.model.ui import Ui, UiPoint

router = APIRouter(prefix="/v1/leases/{lease}", tags=["screen"])


@router.get("/ui", summary="Read the elements of a window", responses=raises(404, 410, 423, 501))
async def ui(
    lease: LeaseId,
    at: At,
    window: Annotated[str, Query(max_length=200, description="Part of its title or program; none: the active.")] = "",
    role: Annotated[str, Query(max_length=100, description="Only such elements.", examples=["button"])] = "",
    text: Annotated[str, Query(max_length=500, description="Only with this in their name or value.")] = "",
    intent: Annotated[str | None, Query(max_length=2000, description="Why, for the record.")] = None,
) -> Ui:
    """Buttons, fields, links and texts with role, name, value and place, pruned to what matters.

    A window whose `toolkit` is empty tells nothing of what is in it.
    """
    return await at.fleet.ui(at.who, lease, window=window, role=role, text=text, intent=intent)


@router.get("/ui/{ref}", summary="Find an element again", responses=raises(404, 409, 410, 423, 501))
async def where(
    lease: LeaseId, at: At, ref: Annotated[str, Path(max_length=20, description="As `ui` told it.")]
) -> UiPoint:
    """The middle of it now, in pixels of the lease's view. One that is no longer what it was is refused as stale."""
    x, y = await at.fleet.where(at.who, lease, ref)
    return UiPoint(x=x, y=y)
