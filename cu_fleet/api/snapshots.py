"""Snapshots over HTTP: save a desktop's state, put it back, drop it."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import DesktopId, Ok, SnapshotId, example
from cu_fleet.model.record import Value
from cu_fleet.model.snapshot import Snapshot
from cu_fleet.model.view import DesktopView

router = APIRouter(prefix="/v1", tags=["snapshots"])


class Save(Value):
    model_config = example(note="after the login")
    note: str = Field("", max_length=1000)


class Restore(Value):
    model_config = example(desktop="dk_7x2m9c4d1k")
    desktop: str | None = Field(None, max_length=100, description="Onto which; none: the one it was made of.")


class Snapshots(Value):
    snapshots: list[Snapshot]


class Restored(Value):
    snapshot: str
    desktop: DesktopView


@router.post(
    "/desktops/{desktop}/snapshots", summary="Save a snapshot", status_code=201, responses=raises(404, 409, 501)
)
async def save(desktop: DesktopId, at: At, body: Save | None = None) -> Snapshot:
    """Whole or not at all; the desktop stands still only for a moment."""
    return await at.fleet.save(at.who, desktop, (body or Save()).note)


@router.get("/snapshots", summary="List snapshots", responses=raises(404))
async def snapshots(
    at: At, desktop: Annotated[str | None, Query(max_length=100, description="Only of this one.")] = None
) -> Snapshots:
    """All that are saved."""
    return Snapshots(snapshots=await at.fleet.snapshots(at.who, desktop))


@router.post("/snapshots/{snapshot}/restore", summary="Restore a snapshot", responses=raises(404, 409, 501))
async def restore(snapshot: SnapshotId, at: At, body: Restore | None = None) -> Restored:
    """Ends all that runs on it and puts its files back exactly, with a fresh screen, or a machine as it ran."""
    view = await at.fleet.restore(at.who, snapshot, (body or Restore()).desktop)
    return Restored(snapshot=snapshot, desktop=view)


@router.delete("/snapshots/{snapshot}", summary="Delete a snapshot", responses=raises(404, 409))
async def delete(snapshot: SnapshotId, at: At) -> Ok:
    """It cannot be had back."""
    await at.fleet.delete_snapshot(at.who, snapshot)
    return Ok()
