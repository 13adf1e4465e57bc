"""The audit record over HTTP: read, verify, export, follow."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic_core import to_json

from cu_fleet.api.auth import At, Call
from cu_fleet.api.problems import stopping
from cu_fleet.api.stream import NDJSON, Stream, error_line, in_words, line, with_silences
from cu_fleet.api.words import Answers
from cu_fleet.model.access import Role
from cu_fleet.model.audit import Entry
from cu_fleet.model.record import Value
from cu_fleet.model.view import iso

router = APIRouter(prefix="/v1", tags=["record"])
KEEP_ALIVE = 15.0
_PAGE = 1000
Only = Annotated[str | None, Query(max_length=200, description="Only entries with exactly this.")]


class EntryView(Entry):
    at_iso: str


class Entries(Value):
    entries: list[EntryView]


class Verified(Value):
    ok: bool = True
    entries: int


PAGE: Answers = {
    200: {"model": Entries, "content": {NDJSON: {"schema": {"type": "string"}}}, "description": "A page, or all."}
}
EVENTS: Answers = {
    200: {
        "description": "Server-sent events: `id` is the entry's number, `event` its `what`, `data` the entry.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


@router.get(
    "/audit",
    summary="Read the audit record",
    response_model=None,
    responses=PAGE,
)
async def audit(
    at: At,
    after: Annotated[int, Query(ge=0, description="Entries with a greater number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = _PAGE,
    lease: Only = None,
    agent: Only = None,
    desktop: Only = None,
    what: Only = None,
    accept: Annotated[str, Header(description=f"{NDJSON}: all of it, one entry a line.")] = "",
) -> Response:
    """A page of entries by number; as NDJSON all of them, streamed."""
    asked = {"lease": lease, "agent": agent, "desktop": desktop, "what": what}
    equal = {key: value for key, value in asked.items() if value is not None}
    wanted = _PAGE if NDJSON in accept else limit
    page = await at.fleet.audit(at.who, after=after, limit=wanted, **equal)
    if NDJSON in accept:
        lines = in_words(_all(at, page, equal))
        return Stream(lines, media_type=NDJSON, closing=at.closing, farewell=error_line(stopping()))
    return Response(to_json({"entries": [_shown(entry) for entry in page]}), media_type="application/json")


async def _all(at: Call, page: list[Entry], equal: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    while page:
        for entry in page:
            yield line(_shown(entry))
        page = await at.fleet.audit(at.who, after=page[-1].seq, limit=_PAGE, **equal)


def _shown(entry: Entry) -> dict[str, Any]:
    return {**entry.model_dump(mode="json"), "at_iso": iso(entry.at)}


@router.get("/audit/verify", summary="Verify the audit record")
async def verify(at: At) -> Verified:
    """Every entry against the key, its neighbours and the anchors; 500 with a code `audit_…` if it does not hold."""
    return Verified(entries=await at.fleet.verify_audit(at.who))


@router.get(
    "/events",
    summary="Follow what happens",
    response_class=Response,
    responses=EVENTS,
)
async def events(
    at: At,
    after: Annotated[int | None, Query(ge=0, description="From this entry's number on; none: from now.")] = None,
    last_event_id: Annotated[int | None, Header(ge=0, description="As a browser sends when it comes back.")] = None,
) -> Response:
    """Each audit entry as it is written. After a break, go on after the last id seen."""
    at.who.needs(Role.OBSERVER)  # a refusal needs its status before the stream begins
    entries = at.fleet.events(at.who, after=after if last_event_id is None else last_event_id)
    return Stream(_events(entries), media_type="text/event-stream", closing=at.closing)


async def _events(entries: AsyncIterator[Entry]) -> AsyncGenerator[bytes, None]:
    yield b"retry: 1000\n\n"
    async for entry in with_silences(entries, KEEP_ALIVE):
        if entry is None:
            yield b": nothing new\n\n"
        else:
            yield b"id: %d\nevent: %s\ndata: %s\n\n" % (entry.seq, entry.what.encode(), to_json(_shown(entry)))
