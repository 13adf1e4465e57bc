"""The SDK's server over the table of tools: lists what a lease may use, and answers each call within a minute."""

import asyncio
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_PARAMS, CallToolRequestParams, ListToolsResult, PaginatedRequestParams
from starlette.requests import Request
from starlette.types import Scope

from cu_fleet import __version__
from cu_fleet.mcp import arguments, tools
from cu_fleet.mcp.answers import Answer, refused
from cu_fleet.mcp.door import CALLER, PROFILE, at_desk
from cu_fleet.mcp.words import INSTRUCTIONS
from cu_fleet.model.access import Caller
from cu_fleet.model.errors import FleetError, TooLongError

if TYPE_CHECKING:
    from cu_fleet.controller import Controller

WITHIN = 50.0  # seconds
_log = logging.getLogger("cu_fleet.mcp")


def leased(fleet: "Controller") -> Server[Any]:
    """The tools for whoever shows a lease's token."""

    async def listing(context: ServerRequestContext[Any, Any], _: PaginatedRequestParams | None) -> ListToolsResult:
        scope = _scope(context)
        who = scope[CALLER]
        known = who if isinstance(who, Caller) else None
        try:
            return ListToolsResult(tools=tools.offered(await fleet.offer(known, scope[PROFILE])))
        except FleetError as error:
            raise MCPError(INVALID_PARAMS, str(error)) from None

    async def call(context: ServerRequestContext[Any, Any], asked: CallToolRequestParams) -> Answer:
        return await called(fleet, _scope(context), asked.name, asked.arguments)

    return Server(
        "cu-fleet",
        version=__version__,
        title="A desktop of your own",
        instructions=INSTRUCTIONS,
        get_tool_input_schema=_schema,
        on_list_tools=listing,
        on_call_tool=call,
    )


async def called(fleet: "Controller", scope: Scope, tool: str, given: Mapping[str, Any] | None) -> Answer:
    """What a tool answers. Whatever goes wrong is an answer too."""
    try:
        who, lease = at_desk(scope)
        return await _within(tool, tools.run(tool, given, tools.At(fleet, who, lease)))
    except FleetError as error:
        return refused(error)
    except Exception:  # noqa: BLE001 - it is logged, and a client that gets no answer would give up
        _log.exception("%s failed", tool[:100])
        return refused(FleetError("the controller failed at this; its log says more", code="internal"))


def _scope(context: ServerRequestContext[Any, Any]) -> Scope:
    assert isinstance(context.request, Request)
    return context.request.scope


async def _within(name: str, work: Any) -> Answer:
    try:
        async with asyncio.timeout(WITHIN):
            answer: Answer = await work
            return answer
    except TimeoutError:
        raise TooLongError(
            f"{name} was stopped after {WITHIN:g} s, and may be half done",
            remedy="take a screenshot to see how far it came, and go on from there in smaller steps",
        ) from None


def _schema(name: str) -> dict[str, Any] | None:
    entry = tools.TOOLS.get(name)
    return arguments.schema_of(entry.takes) if entry else None
