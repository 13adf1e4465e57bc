"""Leases over HTTP: ask for one, watch it, supervise it, end it."""

import math
from typing import Annotated, Literal

from fastapi import APIRouter, Body, Query, Response
from pydantic import BeforeValidator, Field, WithJsonSchema

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.stream import until_closing
from cu_fleet.api.words import Answers, Hold, LeaseId, Reason, Ttl, example
from cu_fleet.model.names import Name
from cu_fleet.model.profile import parse_seconds
from cu_fleet.model.record import Value
from cu_fleet.model.request import Acquire
from cu_fleet.model.view import LeaseView

router = APIRouter(prefix="/v1/leases", tags=["leases"])
GRANTED, WAITING = 201, 202
EXAMPLES = [{"agent": "codex-a", "profile": "local", "resources": ["browser:youtube"], "ttl": "15m", "wait": "60s"}]
WAITS: Answers = {WAITING: {"model": LeaseView, "description": "In the queue, with place and holder."}}


class Leases(Value):
    leases: list[LeaseView]


class Renew(Value):
    model_config = example(ttl="15m")
    ttl: Ttl = None


class Pause(Value):
    model_config = example(reason="checking something", looking=True)
    reason: Reason = ""
    looking: bool = Field(True, description="Whether the agent may still take screenshots.")


class Why(Value):
    model_config = example(reason="I take over for the login")
    reason: Reason = ""


def _bar(value: object) -> object:
    if value == "none":
        return None
    return math.inf if value == "forever" else parse_seconds(value)


Bar = Annotated[
    Annotated[float, Field(ge=0)] | None,
    BeforeValidator(_bar),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}], "examples": ["10m", "none", "forever", 600]}),
]


class Revoke(Value):
    model_config = example(reason="it is on the wrong site", bar="10m", snapshot=True)
    reason: Reason = ""
    bar: Bar = Field(600.0, description="How long the agent may not lease again: '10m', 'none' or 'forever'.")
    snapshot: bool = Field(False, description="Keep the desktop's state as evidence.")


class Reassign(Value):
    model_config = example(to="codex-b", mode="as-is", reason="b knows this site")
    to: Name
    mode: Literal["clean", "as-is"] = Field(description="Rolled back first, or as it stands with all that lies on it.")
    reason: Reason = ""
    ttl: Ttl = None


@router.post(
    "",
    summary="Ask for a desktop",
    status_code=GRANTED,
    responses=WAITS | raises(404, 409),
)
async def acquire(
    ask: Annotated[Acquire, Body(examples=EXAMPLES)], at: At, response: Response, hold: Hold = 25
) -> LeaseView:
    """Answers 201 when granted and 202 while it waits: then ask `GET /v1/leases/{lease}?hold=25&while=waiting`.

    A lost answer loses nothing if `request_id` was given: asking again with it returns the same lease.
    """
    view = await until_closing(at.closing, at.fleet.acquire(at.who, ask, hold=hold))
    response.status_code = WAITING if view.state == "waiting" else GRANTED
    return view


@router.get("", summary="List leases")
async def leases(
    at: At,
    everything: Annotated[bool, Query(alias="all", description="Also those that are over.")] = False,
    agent: Annotated[str | None, Query(description="Only this agent's.", max_length=100)] = None,
) -> Leases:
    """Who holds what, who waits, and since when."""
    return Leases(leases=await at.fleet.leases(at.who, everything=everything, agent=agent))


@router.get("/{lease}", summary="Show a lease", responses=raises(404))
async def lease(
    lease: LeaseId,
    at: At,
    hold: Hold = 0,
    unlike: Annotated[
        str | None, Query(alias="while", description="With `hold`: answer as soon as the state differs from this.")
    ] = None,
) -> LeaseView:
    """One lease; with `hold` and `while`, a long poll for its next state."""
    return await until_closing(at.closing, at.fleet.lease(at.who, lease, hold=hold, unlike=unlike))


@router.post("/{lease}/renew", summary="Renew a lease", responses=raises(404, 410, 423))
async def renew(lease: LeaseId, at: At, body: Renew | None = None) -> LeaseView:
    """A full term from now. Every action does this too."""
    return await at.fleet.renew(at.who, lease, body.ttl if body else None)


@router.post("/{lease}/release", summary="Release a lease, or leave the queue", responses=raises(404, 410))
async def release(lease: LeaseId, at: At) -> LeaseView:
    """The desktop is rolled back to clean and goes to the next who waits; a named one keeps its state."""
    return await at.fleet.release(at.who, lease)


@router.post("/{lease}/pause", summary="Pause a lease", responses=raises(404, 409, 410))
async def pause(lease: LeaseId, at: At, body: Pause | None = None) -> LeaseView:
    """Input stops at once and the agent is told why; screen, programs and lease live on, and its clock stands still."""
    body = body or Pause()
    return await at.fleet.pause(at.who, lease, reason=body.reason, looking=body.looking)


@router.post("/{lease}/resume", summary="Resume a lease", responses=raises(404, 409, 410))
async def resume(lease: LeaseId, at: At) -> LeaseView:
    """The agent goes on, with the time it had left."""
    return await at.fleet.resume(at.who, lease)


@router.post("/{lease}/take", summary="Take over as a person", responses=raises(404, 409, 410))
async def take(lease: LeaseId, at: At, body: Why | None = None) -> LeaseView:
    """Pointer and keys are the operator's until `resume`; the agent is told."""
    return await at.fleet.take(at.who, lease, reason=(body or Why()).reason)


@router.post("/{lease}/revoke", summary="Revoke a lease", responses=raises(404, 409, 410))
async def revoke(lease: LeaseId, at: At, body: Revoke | None = None) -> LeaseView:
    """When this answers, nothing more reaches the screen, held keys are up, and the old token only hears why."""
    body = body or Revoke()
    return await at.fleet.revoke(at.who, lease, reason=body.reason, bar=body.bar, snapshot=body.snapshot)


@router.post("/{lease}/reassign", summary="Hand a desktop to another agent", responses=raises(404, 409, 410))
async def reassign(lease: LeaseId, at: At, body: Reassign) -> LeaseView:
    """Ends this lease and answers with the new one, its generation and its token."""
    return await at.fleet.reassign(
        at.who, lease, to=body.to, clean=body.mode == "clean", reason=body.reason, ttl=body.ttl
    )
