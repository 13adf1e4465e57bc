"""The right and the name with which a door asks for an agent's desktop.

A door that leases for an agent holds that agent's token and no more: an operator's, or none at the home's own socket,
serves once, to get it. Where the agent has as many leases as it may, a child of that agent with a number to its name
gets the next one, so that no two of its processes ever share a desktop.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from cu_fleet.client.http import Wire, read
from cu_fleet.model.access import CHILDREN
from cu_fleet.model.errors import ConflictError, DeniedError
from cu_fleet.model.view import AgentView

T = TypeVar("T")
_NO_MORE = ("too_many_leases", "too_many_children")  # the codes of refusals after which the next name is tried


def kind_of(token: str | None) -> str:
    """`cfo`, `cfa` or `cfl`: an operator's, an agent's or a lease's."""
    return (token or "").partition("_")[0]


def named_in(token: str) -> str:
    """The agent that an agent's token names."""
    return token.partition("_")[2].rsplit("_", 2)[0]


async def agents_token(wire: Wire, agent: str) -> str | None:
    """For an operator; an agent that is not known yet is added."""
    return read(AgentView, (await wire.call("POST", "/v1/agents/token", body={"agent": agent})).json()).token


async def first_free(wire: Wire, agent: str, profile: str, ask: Callable[[str | None], Awaitable[T]]) -> T:
    """What `ask` gets with the first of the agent's names that may have one lease more.

    It is given the name's token; None stands for the agent's own, which the wire has.
    """
    busy: DeniedError | None = None
    try:
        async for token in _names(wire, agent, profile):
            try:
                return await ask(token)
            except DeniedError as error:
                if error.code not in _NO_MORE:
                    raise
                busy = busy or error
    except DeniedError as error:
        raise (busy if busy and error.code in _NO_MORE else error) from None
    raise busy or DeniedError(f"agent {agent} may not lease")


async def _names(wire: Wire, agent: str, profile: str) -> AsyncIterator[str | None]:
    """The agent's own, then those of its children, each added when it is wanted."""
    yield None
    for number in range(2, CHILDREN + 2):
        child = {"agent": f"{agent}-{number}", "profiles": [profile]}
        try:
            added = await wire.call("POST", "/v1/agents", body=child)
        except ConflictError:
            continue  # somebody else is called that
        yield read(AgentView, added.json()).token
