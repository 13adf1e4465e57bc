"""A controller of fakes behind its doors, `/mcp` among them, and real MCP clients of both protocols."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ImageContent, TextContent

from cu_fleet.api.auth import SOCKET_OWNER
from cu_fleet.mcp.answers import CODE
from cu_fleet.mcp.door import Door as McpDoor
from cu_fleet.model.profile import Profile
from tests.api.door import Door, served
from tests.controller.fleet import profile, running

OLD, NEW = "legacy", "auto"  # of 2025-06-18, with a handshake; of 2026-07-28, without
LAUNCH = {"terminal": {"command": ["xterm"], "title": "Terminal"}}


@asynccontextmanager
async def house(home: Path, *profiles: Profile, **more: Any) -> AsyncIterator[Door]:
    async with running(home, *(profiles or (profile(launch=LAUNCH),)), **more) as fleet:
        door = McpDoor(fleet.controller, SOCKET_OWNER)
        try:
            async with served(fleet, doors={"/mcp": door}) as doors:
                yield doors
        finally:
            await door.close()


@asynccontextmanager
async def client(door: Door, token: str | None, mode: str = OLD, query: str = "") -> AsyncIterator[Client]:
    """A session of the SDK's own client."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(f"{door.url}/mcp{query}", http_client=http), mode=mode) as session,
    ):
        yield session


def text(result: Any) -> str:
    assert isinstance(result, CallToolResult)
    assert result.structured_content is None
    return "".join(part.text for part in result.content if isinstance(part, TextContent))


def images(result: Any) -> list[ImageContent]:
    return [part for part in result.content if isinstance(part, ImageContent)]


def failed(result: Any, code: str) -> str:
    """The words of an error, which must have this code."""
    assert result.is_error, text(result)
    assert (result.meta or {}).get(CODE) == code, (result.meta, text(result))
    return text(result)
