"""What a run of Codex may do, looked up before it runs: what its desktop offers, what Codex itself is held by, what is
in its environment. What cannot be seen from here is said to be so.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from cu_fleet.model.errors import UnavailableError

_SECRET = re.compile(r"(^|_)(API_?KEYS?|KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|PAT)(_|$)", re.IGNORECASE)
_OURS = "CU_FLEET_"
_ASK = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
_ACCEPT = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
_OPEN = "none: it can do all that you can"
_WORDS = {"--full-auto": "workspace-write", "--yolo": _OPEN, "--dangerously-bypass-approvals-and-sandbox": _OPEN}


async def tools(url: str, token: str) -> list[str]:
    """The tools that Codex will be shown, asked for as Codex will ask."""
    from cu_fleet.client.http import Wire

    wire = Wire(url=url, token=token, home=Path("/"), start=False)
    try:
        async with wire.stream("POST", "/mcp", body=_ASK, headers=_ACCEPT) as answer:
            text = (await answer.aread()).decode()
    finally:
        await wire.close()
    lines = [line.removeprefix("data:").strip() for line in text.splitlines()]
    for line in filter(lambda line: line.startswith("{"), [text.strip(), *lines]):
        result = json.loads(line).get("result")
        if result and result.get("tools"):
            return [tool["name"] for tool in result["tools"]]
    raise UnavailableError(f"{url}/mcp offers no tools, so Codex would have no desktop", code="no_tools")


def told(words: Sequence[str], env: Mapping[str, str], offered: Sequence[str], network: str) -> Iterator[str]:
    """The rest of what there is to say, line by line."""
    yield f"tools: {', '.join(offered)}"
    held = sandbox(words) or "as its own configuration says"
    beside = "" if network == "none" else f"; programs on its desktop reach the network ({network})"
    yield f"Codex itself runs on this machine, with its network; its sandbox: {held}{beside}"
    own = [name for name in sorted(env) if _SECRET.search(name) and not name.startswith(_OURS)]
    yield f"it gets the lease's token and no other of ours; of your environment: {', '.join(own) or 'no credentials'}"


def sandbox(words: Sequence[str]) -> str | None:
    """What Codex's own words say of its sandbox; None if they say nothing."""
    found: str | None = None
    for word, following in zip_longest(words, words[1:], fillvalue=""):
        if word in ("-s", "--sandbox"):
            found = following
        elif word.startswith("--sandbox="):
            found = word.partition("=")[2]
        elif word in ("-c", "--config") and following.startswith("sandbox_mode="):
            found = following.partition("=")[2].strip("\"'")
        else:
            found = _WORDS.get(word, found)
    return _OPEN if found == "danger-full-access" else found


def moves(words: Sequence[str]) -> bool:
    """Whether Codex is told to work in another folder than the one it is started in."""
    return any(word in ("-C", "--cd") or word.startswith("--cd=") or re.match(r"-C.", word) for word in words)


def prompt(words: Sequence[str]) -> str:
    """What Codex is asked for, if its last word reads like it."""
    return words[-1][:2000] if words and " " in words[-1] and not words[-1].startswith("-") else ""
