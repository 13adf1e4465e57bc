"""Files in and out of a leased desktop's slot (`~/Shared` inside), streamed both ways."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.stream import Stream, chunks_of
from cu_fleet.api.words import Answers, LeaseId, Ok
from cu_fleet.backends.base import FileInfo
from cu_fleet.model.record import Value

router = APIRouter(prefix="/v1/leases/{lease}/files", tags=["files"])
RAISES = raises(404, 409, 410, 423, 501)
BYTES: dict[str, Any] = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
FILE: Answers = {200: {"description": "The file's bytes.", **BYTES}}
InSlot = Annotated[str, Path(description="Below the slot.", examples=["out/report.pdf"], max_length=4096)]


class Files(Value):
    files: list[FileInfo]


class Put(Value):
    path: str
    size: int


@router.get("", summary="List files", responses=RAISES)
async def listing(
    lease: LeaseId, at: At, path: Annotated[str, Query(max_length=4096, description="A folder; none: all.")] = ""
) -> Files:
    """What lies in the desktop's slot."""
    return Files(files=await at.fleet.files(at.who, lease, path))


@router.get("/{path:path}", summary="Take a file out", response_class=Response, responses=FILE | RAISES)
async def get(lease: LeaseId, path: InSlot, at: At) -> Response:
    """Its bytes; an answer that breaks off is not a whole file."""
    chunks = await at.fleet.get_file(at.who, lease, path)
    return Stream(chunks_of(chunks), media_type="application/octet-stream")


@router.put(
    "/{path:path}",
    summary="Put a file in",
    status_code=201,
    responses=RAISES | raises(413),
    openapi_extra={"requestBody": {"required": True} | BYTES},
)
async def put(
    lease: LeaseId,
    path: InSlot,
    request: Request,
    at: At,
    mode: Annotated[str, Query(pattern="^0?[0-7]{3}$", description="Octal, as chmod has it.")] = "0644",
) -> Put:
    """Written whole or not at all; folders on the way are made."""
    size = await at.fleet.put_file(at.who, lease, path, request.stream(), int(mode, 8))
    return Put(path=path, size=size)


@router.delete("/{path:path}", summary="Remove a file or folder", responses=RAISES)
async def remove(lease: LeaseId, path: InSlot, at: At) -> Ok:
    """With all in it; it is no error if it is not there."""
    await at.fleet.remove_file(at.who, lease, path)
    return Ok()
