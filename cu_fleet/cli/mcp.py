"""`cu-fleet mcp` and `mcp-config`: an agent's desktop as MCP tools, and how its client is told of them."""

import os
import re
import shutil
import sys
from typing import Annotated

import typer

from cu_fleet.cli import clients, connect, output
from cu_fleet.cli.common import Json, command
from cu_fleet.model.errors import InvalidError, UnavailableError

PANEL = "Agents' doors"
AGENT, PROFILE = "mcp", "local"
_AGENT_HELP = "The agent it leases for. Further processes of it get children of that agent: A-2, A-3, …"
_PROFILE_HELP = "What kind of desktop."


def register(root: typer.Typer) -> None:
    command(root, "mcp", "cu-fleet mcp --agent codex-a --profile local", rich_help_panel=PANEL)(mcp)
    command(
        root,
        "mcp-config",
        "cu-fleet mcp-config --client codex",
        "cu-fleet mcp-config --client claude --http > .mcp.json",
        rich_help_panel=PANEL,
    )(mcp_config)


def mcp(
    agent: Annotated[str, typer.Option("--agent", metavar="NAME", help=_AGENT_HELP)] = AGENT,
    profile: Annotated[str, typer.Option("--profile", metavar="NAME", help=_PROFILE_HELP)] = PROFILE,
    as_json: Annotated[bool, typer.Option("--json", help="As always: it speaks JSON lines.")] = True,
) -> None:
    """Serve a desktop as MCP tools on standard input and output, for a client that starts it.

    It leases a desktop with the first call that needs one, and gives it back at the end of input, when its parent dies,
    or when it is told to end. While none is free it says which place in line it has. With an operator's right it gets
    the agent's token and uses that alone; CU_FLEET_TOKEN may hold an agent's token, or that of a lease.
    """
    from cu_fleet.cli import root

    root.mcp(agent=agent, profile=profile)


def mcp_config(
    client: Annotated[str, typer.Option("--client", metavar="CLIENT", help=f"One of {', '.join(clients.KNOWN)}.")],
    http: Annotated[bool, typer.Option("--http/--stdio", help="Reach the controller, or start cu-fleet mcp.")] = False,
    agent: Annotated[str, typer.Option("--agent", metavar="NAME", help=_AGENT_HELP)] = AGENT,
    profile: Annotated[str, typer.Option("--profile", metavar="NAME", help=_PROFILE_HELP)] = PROFILE,
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="What the client calls the server.")] = "desktop",
    as_json: Json = False,
) -> None:
    """Print the configuration with which an MCP client finds its desktop.

    Over stdio (the default) the client starts cu-fleet mcp, which leases by itself. Over HTTP it reaches the
    controller, with the token of a lease that you acquired.
    """
    if client not in clients.KNOWN:
        raise InvalidError(f"--client: {client!r} is none of {', '.join(clients.KNOWN)}", code="usage")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InvalidError(f"--name: {name!r}: use letters, digits, dashes and underscores", code="usage")
    if http:
        made = clients.over_http(client, name, f"{_url()}/mcp")
    else:
        made = clients.over_stdio(
            client, name, [*_program(), "mcp", "--agent", agent, "--profile", profile], os.environ
        )
    if as_json:
        output.document({"client": client, "path": made.path, "configuration": made.text, "note": made.note})
    else:
        output.say(made.text)
        output.note(f"for {made.path}; {made.note}")


def _url() -> str:
    if url := os.environ.get("CU_FLEET_URL"):
        return url.rstrip("/")
    url = connect.get("/v1/status")["url"]
    if not url:
        raise UnavailableError("the controller listens at no address", remedy="cu-fleet down, then cu-fleet up")
    return str(url)


def _program() -> list[str]:
    """How to start ourselves, from wherever: clients have a PATH of their own."""
    found = shutil.which(sys.argv[0]) if "cu-fleet" in sys.argv[0] else None
    return [os.path.abspath(found)] if found else [sys.executable, "-m", "cu_fleet"]  # noqa: PTH100 - links stay as they are
