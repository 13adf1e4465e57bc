"""Approvals over HTTP: a lease asks a person, waits for the answer, and acts with it; a person answers."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import Field, PlainValidator

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.stream import until_closing
from cu_fleet.api.words import LeaseId, Reason, example
from cu_fleet.model.action import Action, parse_actions
from cu_fleet.model.approval import Check, Scope
from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value
from cu_fleet.model.view import ApprovalView

router = APIRouter(prefix="/v1", tags=["approvals"])
ApprovalId = Annotated[str, Path(description="An approval's id.", examples=["ap_8x2m9c4d1k"], max_length=100)]
CLICK = {"type": "click", "x": 640, "y": 400}


class Approvals(Value):
    approvals: list[ApprovalView]


class Ask(Value):
    model_config = example(actions=[CLICK], reason="send the mail", checks=[{"id": "sc_1", "message": "It goes out."}])
    actions: Annotated[list[Action], PlainValidator(parse_actions, json_schema_input_type=list[Action])] = Field(
        description="The batch that a person is to judge, as it will be sent."
    )
    reason: str = Field("", max_length=2000, description="Why a person is asked, for that person.")
    checks: Annotated[tuple[Check, ...], Field(max_length=32)] = Field(
        (), description="What a vendor's model wants looked at first."
    )
    frame: str | None = Field(
        None, max_length=100, description="Coordinates are pixels of this picture; none: of the lease's view."
    )
    within: Seconds | None = Field(
        None, gt=0, le=86400, description="How long it waits; no answer in time is a no. None: the settings' time."
    )


class Said(Value):
    model_config = example(reason="that is the right address")
    reason: Reason = ""
    scope: Scope = Field(Scope.ONCE, description="How far it reaches; what may be chosen depends on what is asked.")


@router.post(
    "/leases/{lease}/approvals",
    summary="Ask a person about actions",
    status_code=201,
    responses=raises(404, 409, 410, 423),
)
async def ask(lease: LeaseId, at: At, body: Ask) -> ApprovalView:
    """Answers at once; then wait for the answer with `GET /v1/approvals/{approval}?wait=50`, and send the very same
    actions with `approval`. Meanwhile the lease's clock stands still. Asked again while it is open, it is the same one.
    """
    return await at.fleet.ask_approval(
        at.who,
        lease,
        body.actions,
        reason=body.reason,
        checks=body.checks,
        frame=body.frame,
        within=body.within,
    )


@router.get("/approvals", summary="List approvals")
async def approvals(
    at: At,
    everything: Annotated[bool, Query(alias="all", description="Also those that are answered or over.")] = False,
    lease: Annotated[str | None, Query(description="Only this lease's.", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000, description="How many of the newest.")] = 1000,
) -> Approvals:
    """What waits for a person, oldest first."""
    return Approvals(approvals=await at.fleet.approvals(at.who, everything=everything, lease_id=lease, limit=limit))


@router.get("/approvals/{approval}", summary="Show an approval", responses=raises(404))
async def approval(
    approval: ApprovalId,
    at: At,
    wait: Annotated[float, Query(ge=0, le=50, description="How many seconds to wait for a person's answer.")] = 0,
) -> ApprovalView:
    """One approval; with `wait`, as soon as it waits for nobody any more."""
    return await until_closing(at.closing, at.fleet.approval(at.who, approval, wait=wait))


@router.post("/approvals/{approval}/approve", summary="Approve", responses=raises(404, 409))
async def approve(approval: ApprovalId, at: At, body: Said | None = None) -> ApprovalView:
    """A person's yes. What an agent asked for it may do now, once; a merge is made before this answers."""
    said = body or Said()
    return await at.fleet.answer(at.who, approval, approve=True, reason=said.reason, scope=said.scope)


@router.post("/approvals/{approval}/deny", summary="Deny", responses=raises(404, 409))
async def deny(approval: ApprovalId, at: At, body: Said | None = None) -> ApprovalView:
    """A person's no, and why, in the words the agent will read."""
    said = body or Said()
    return await at.fleet.answer(at.who, approval, approve=False, reason=said.reason, scope=said.scope)
