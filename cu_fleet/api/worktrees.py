"""Worktrees over HTTP: planned and made for a lease, looked into, merged or given up by a person."""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import PlainTextResponse
from pydantic import Field

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.stream import until_closing
from cu_fleet.api.words import Answers, Hold, Reason, example
from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value
from cu_fleet.model.worktree import WorktreeAsk, WorktreePlan, WorktreeView

router = APIRouter(prefix="/v1/worktrees", tags=["worktrees"])
WorktreeId = Annotated[str, Path(description="A worktree's id.", examples=["wt_4x2m9c4d1k"], max_length=100)]
MARKDOWN: Answers = {200: {"content": {"text/markdown": {}}, "description": "Markdown."}}
DIFF: Answers = {200: {"content": {"text/plain": {}}, "description": "A unified diff."}}
ASKED = {"repository": "/home/ana/project", "base": "main", "into": "next", "intent": "mend the date picker"}


class PlanWorktree(WorktreeAsk):
    model_config = example(**ASKED)


class MakeWorktree(WorktreeAsk):
    model_config = example(lease="ls_3k9m2c7d1x", **ASKED)
    lease: str = Field(max_length=100, description="Whose desktop's slot it lies in, until that lease is over.")


class Merge(Value):
    model_config = example(reason="reads well")
    reason: Reason = ""


class PruneWorktrees(Value):
    model_config = example(older="7d")
    older: Seconds = Field(0.0, description="Only what has waited for so long: seconds, or '7d'.")


class Worktrees(Value):
    worktrees: list[WorktreeView]
    size_bytes: int = Field(description="What those that are there take of the disk, or what was freed.")


@router.post("/plan", summary="Plan a worktree", responses=raises(404, 409, 408))
async def plan(at: At, body: PlanWorktree) -> WorktreePlan:
    """What it would be, and what would become of it; nothing is made. Needs an admin, as making one does."""
    return await at.fleet.plan_worktree(at.who, WorktreeAsk(**body.model_dump()))


@router.post("", summary="Make a worktree", status_code=201, responses=raises(404, 409, 501, 408))
async def make(at: At, body: MakeWorktree) -> WorktreeView:
    """A folder on a new branch, in the slot of the lease's desktop. When the lease ends, whatever the end, it is taken
    out: removed if nothing was changed, else kept, checked and put before a person.
    """
    return await at.fleet.make_worktree(at.who, body.lease, WorktreeAsk(**body.model_dump(exclude={"lease"})))


@router.get("", summary="List worktrees")
async def worktrees(
    at: At,
    everything: Annotated[bool, Query(alias="all", description="Also those that are gone.")] = False,
    lease: Annotated[str | None, Query(max_length=100, description="Only this lease's.")] = None,
) -> Worktrees:
    """Those in use, and those that wait for a person; the size is known of what is back from its desktop."""
    found = await at.fleet.worktrees(at.who, everything=everything, lease=lease)
    return Worktrees(worktrees=found, size_bytes=sum(one.size_bytes for one in found if one.path))


@router.get("/{worktree}", summary="Show a worktree", responses=raises(404))
async def one(worktree: WorktreeId, at: At, hold: Hold = 0) -> WorktreeView:
    """One; with `hold`, as soon as it waits for a person or is gone."""
    return await until_closing(at.closing, at.fleet.worktree(at.who, worktree, hold=hold))


@router.get(
    "/{worktree}/summary",
    summary="Read its summary",
    response_class=PlainTextResponse,
    responses=MARKDOWN | raises(404),
)
async def summary(worktree: WorktreeId, at: At) -> PlainTextResponse:
    """Who changed what for which end, what the checks said, and the diff."""
    return PlainTextResponse(await at.fleet.worktree_summary(at.who, worktree), media_type="text/markdown")


@router.get(
    "/{worktree}/diff", summary="Read its diff", response_class=PlainTextResponse, responses=DIFF | raises(404, 409)
)
async def diff(worktree: WorktreeId, at: At) -> PlainTextResponse:
    """All of what would be merged."""
    return PlainTextResponse(await at.fleet.worktree_diff(at.who, worktree))


@router.post("/{worktree}/merge", summary="Merge a worktree", responses=raises(404, 409, 408))
async def merge(worktree: WorktreeId, at: At, body: Merge | None = None) -> WorktreeView:
    """A person's yes: committed in the agent's name and merged, or refused with nothing changed."""
    return await at.fleet.merge_worktree(at.who, worktree, (body or Merge()).reason)


@router.delete("/{worktree}", summary="Discard a worktree", responses=raises(404, 409))
async def discard(worktree: WorktreeId, at: At) -> WorktreeView:
    """Its folder goes, and its branch, unless somebody has gone on with it."""
    return await at.fleet.discard_worktree(at.who, worktree)


@router.post("/prune", summary="Discard old worktrees", responses=raises(409))
async def prune(at: At, body: PruneWorktrees | None = None) -> Worktrees:
    """All that have waited for a person for so long; how much of the disk that frees is told."""
    found = await at.fleet.prune_worktrees(at.who, older=(body or PruneWorktrees()).older)
    return Worktrees(worktrees=found, size_bytes=sum(one.size_bytes for one in found))
