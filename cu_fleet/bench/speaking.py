"""MCP beside plain HTTP: the same look and the same click, in turns, by a client that speaks either as plainly."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import closing
from typing import Any

from cu_fleet.bench.figures import Figure, milliseconds
from cu_fleet.bench.house import house
from cu_fleet.bench.plain import Plain
from cu_fleet.bench.stage import Stage, spot, terminal, with_page
from cu_fleet.client.http import v1
from cu_fleet.mcp.answers import MOST_IMAGE
from cu_fleet.model.errors import BrokenError

_STIR = [{"type": "key", "keys": "a"}, {"type": "wait_change"}]
_HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
_MORE = 3.0  # milliseconds


async def speaking(stage: Stage) -> AsyncGenerator[Figure, None]:
    took: dict[str, list[float]] = {"look-http": [], "look-mcp": [], "click-http": [], "click-mcp": []}
    async with house(stage.top, {"launch": terminal()}, most=2) as at:
        desktop = await with_page(at)
        assert at.wire.url
        where, token = v1("leases", desktop.id), str(desktop.lease.token)

        def look(kind: str) -> None:
            ways = {"look-http": lambda: http.ask("GET", f"{where}/screenshot?max_bytes={MOST_IMAGE}"),
                    "look-mcp": lambda: _called(mcp, "screenshot")}  # fmt: skip
            took[kind].append(ways[kind]()[0])

        def click(number: int) -> None:
            x, y = spot(number), 790
            body = {"actions": [{"type": "click", "x": x, "y": y}]}
            took["click-http"].append(http.ask("POST", f"{where}/actions", body)[0])
            took["click-mcp"].append(_called(mcp, "click", x=x, y=y - 20)[0])

        with closing(Plain(at.wire.url, token)) as http, closing(Plain(at.wire.url, token, _HEADERS)) as mcp:
            for number in range(stage.plan.rounds + 1):
                stage.tell(f"MCP beside HTTP: {number} of {stage.plan.rounds}")
                for kind in ("look-http", "look-mcp"):
                    await desktop.act(_STIR)
                    await asyncio.sleep(0.01)
                    await asyncio.to_thread(look, kind)
                await asyncio.to_thread(click, number)
    for row, name in (("screenshot-mcp", "look"), ("click-mcp", "click")):
        what = {"look": "a fresh picture of a terminal full of text", "click": "a click until it is acknowledged"}[name]
        ours = milliseconds(took[f"{name}-mcp"][1:], f"{what}, through MCP over HTTP")
        yield Figure(row, ours, milliseconds(took[f"{name}-http"][1:], "the same over plain HTTP"), most_more=_MORE)


def _called(mcp: Plain, tool: str, **given: Any) -> tuple[float, bytes, str]:
    params = {"name": tool, "arguments": given}
    answer = mcp.ask("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    if b'"isError":false' not in answer[1]:
        raise BrokenError(f"the tool {tool} failed: {answer[1][:500]!r}")
    return answer
