"""The configuration that each MCP client wants: where it goes, and what stands in it.

Tokens are never written into it, only the variable that holds one. Clients start a server with hardly any of their
environment, so what ours needs of it (its home, for instance) is named.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TOKEN = "CU_FLEET_LEASE_TOKEN"  # noqa: S105 - the name of the variable that holds it
KNOWN = ("codex", "claude", "cursor", "vscode")
_PASSED = ("CU_FLEET_HOME", "CU_FLEET_URL", "XDG_DATA_HOME")


@dataclass(frozen=True)
class Configuration:
    client: str
    path: str  # where it goes
    text: str
    note: str


def over_http(client: str, name: str, url: str) -> Configuration:
    """A server that the controller is itself; whoever starts the client puts a lease's token into its environment."""
    note = f"set {TOKEN} to the token of a lease: cu-fleet lease acquire --agent A --profile P --json"
    if client == "codex":
        return _toml(name, {"url": url, "bearer_token_env_var": TOKEN}, note)
    if client == "vscode":
        entry = {"type": "http", "url": url, "headers": {"Authorization": f"Bearer ${{input:{name}-token}}"}}
        asked = {"type": "promptString", "id": f"{name}-token", "description": "Token of the lease", "password": True}
        return _vscode({"inputs": [asked], "servers": {name: entry}}, "VS Code asks for the token of a lease")
    value = f"${{{TOKEN}}}" if client == "claude" else f"${{env:{TOKEN}}}"
    typed = {"type": "http"} if client == "claude" else {}
    return _json(client, name, {**typed, "url": url, "headers": {"Authorization": f"Bearer {value}"}}, note)


def over_stdio(client: str, name: str, command: list[str], environment: Mapping[str, str]) -> Configuration:
    """A server that the client starts; it leases by itself."""
    env = {key: environment[key] for key in _PASSED if environment.get(key)}
    held = [key for key in ("CU_FLEET_TOKEN",) if environment.get(key)]
    entry: dict[str, Any] = {"command": command[0], "args": command[1:]} | ({"env": env} if env else {})
    note = "each process that the client starts leases a desktop of its own with the first call, and gives it back"
    if client == "codex":
        return _toml(name, entry | ({"env_vars": held} if held else {}), note)
    asked = {key: f"${{{key}}}" if client == "claude" else f"${{env:{key}}}" for key in held}
    if asked:
        entry["env"] = {**env, **asked}
    if client == "vscode":
        return _vscode({"servers": {name: {"type": "stdio", **entry}}}, note)
    return _json(client, name, entry, note)


def _json(client: str, name: str, entry: Mapping[str, Any], note: str) -> Configuration:
    path = {"claude": ".mcp.json", "cursor": ".cursor/mcp.json"}[client]
    return Configuration(client, path, json.dumps({"mcpServers": {name: entry}}, indent=2), note)


def _vscode(whole: Mapping[str, Any], note: str) -> Configuration:
    return Configuration("vscode", ".vscode/mcp.json", json.dumps(whole, indent=2), note)


def _toml(name: str, entry: Mapping[str, Any], note: str) -> Configuration:
    """JSON's strings and lists are TOML's too. Where it is not required, Codex begins before it knows the tools."""
    lines = [f"[mcp_servers.{name}]", "required = true"]
    lines += [f"{key} = {_inline(value)}" for key, value in entry.items()]
    return Configuration("codex", "~/.codex/config.toml", "\n".join(lines), note)


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {json.dumps(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)
