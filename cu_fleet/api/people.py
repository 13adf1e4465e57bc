"""Agents and operators over HTTP: who may lease what, who may supervise."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import Field

from cu_fleet.api.auth import At
from cu_fleet.api.problems import raises
from cu_fleet.api.words import NamePath, Ok, example
from cu_fleet.model.access import Grants, Role
from cu_fleet.model.names import Name
from cu_fleet.model.record import Value
from cu_fleet.model.view import AgentView, OperatorView

router = APIRouter(prefix="/v1", tags=["people"])
Patterns = Annotated[tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=1000)]


class Agents(Value):
    agents: list[AgentView]


class Operators(Value):
    operators: list[OperatorView]


class NewAgent(Value):
    """Patterns as in a shell: `*` is everything, an empty list nothing."""

    model_config = example(agent="codex-a", profiles=["local"], resources=["browser:*"], leases=2)
    agent: Name
    profiles: Patterns = ("*",)
    desktops: Patterns = ()
    resources: Patterns = ()
    leases: int = Field(1, ge=0, le=10_000, description="How many at once, waiting ones included.")
    children: int = Field(0, ge=0, le=10_000, description="How many child agents it may add.")


class OneAgent(Value):
    model_config = example(agent="codex-a")
    agent: Name


class NewOperator(Value):
    model_config = example(operator="ana", role="operator")
    operator: Name
    role: Role = Role.OPERATOR


@router.get("/agents", summary="List agents")
async def agents(at: At) -> Agents:
    """Who may lease what."""
    return Agents(agents=await at.fleet.agents(at.who))


@router.post("/agents", summary="Add an agent, or change what it may", status_code=201, responses=raises(409))
async def add_agent(at: At, body: NewAgent) -> AgentView:
    """Answers with its token, which is shown only here."""
    grants = Grants(**body.model_dump(exclude={"agent"}))
    return await at.fleet.add_agent(at.who, body.agent, grants)


@router.post("/agents/{name}/rotate", summary="Give an agent a new token", responses=raises(404))
async def rotate_agent(name: NamePath, at: At) -> AgentView:
    """Its earlier tokens open nothing any more."""
    return await at.fleet.rotate_agent(at.who, name)


@router.post("/agents/token", summary="Hand out an agent's token")
async def agent_token(at: At, body: OneAgent) -> AgentView:
    """For a door that acts for it. Its tokens stay valid; an agent that is not known yet is added."""
    return await at.fleet.agent_token(at.who, body.agent)


@router.post("/agents/{name}/unbar", summary="Lift an agent's bar", responses=raises(404))
async def unbar_agent(name: NamePath, at: At) -> AgentView:
    """After a revoke: it may lease again."""
    return await at.fleet.unbar_agent(at.who, name)


@router.delete("/agents/{name}", summary="Remove an agent", responses=raises(404, 409))
async def remove_agent(name: NamePath, at: At) -> Ok:
    """Its token opens nothing any more."""
    await at.fleet.remove_agent(at.who, name)
    return Ok()


@router.get("/operators", summary="List operators")
async def operators(at: At) -> Operators:
    """Who may supervise."""
    return Operators(operators=await at.fleet.operators(at.who))


@router.post("/operators", summary="Add an operator", status_code=201, responses=raises(409))
async def add_operator(at: At, body: NewOperator) -> OperatorView:
    """Answers with the token, which is shown only here."""
    return await at.fleet.add_operator(at.who, body.operator, body.role)


@router.post("/operators/{name}/rotate", summary="Give an operator a new token", responses=raises(404))
async def rotate_operator(name: NamePath, at: At) -> OperatorView:
    """The earlier tokens open nothing any more."""
    return await at.fleet.rotate_operator(at.who, name)


@router.delete("/operators/{name}", summary="Remove an operator", responses=raises(404, 409))
async def remove_operator(name: NamePath, at: At) -> Ok:
    """The token opens nothing any more."""
    await at.fleet.remove_operator(at.who, name)
    return Ok()
