"""`cu-fleet mcp-config`: what it prints must be what each client reads, and hold no token."""

import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.settings import read_settings
from tests.cli.support import Ended, cli

SECRET = "cfa_a_1_0123456789abcdef"  # noqa: S105 - it opens nothing
ENV: dict[str, str | None] = {"CU_FLEET_HOME": "/tmp/a home", "CU_FLEET_TOKEN": SECRET, "CU_FLEET_URL": None}
AT: dict[str, str | None] = {**ENV, "CU_FLEET_URL": "http://127.0.0.1:8712"}


def _printed(*words: str, env: dict[str, str | None] = ENV) -> Ended:
    done = cli("mcp-config", *words, env=env)
    assert done.code == 0, done.err
    assert SECRET not in done.out + done.err
    return done


def _entry(client: str, text: str) -> dict[str, Any]:
    found = tomllib.loads(text)["mcp_servers"] if client == "codex" else json.loads(text)
    servers = found if client == "codex" else found["servers" if client == "vscode" else "mcpServers"]
    (name,) = servers
    assert name == "desktop"
    return dict(servers[name])


@pytest.mark.parametrize("client", ["codex", "claude", "cursor", "vscode"])
def test_stdio_names_a_program_that_is_there_and_what_clients_strip(client: str) -> None:
    entry = _entry(client, _printed("--client", client, "--agent", "x", "--profile", "browser").out)
    assert os.access(entry["command"], os.X_OK)
    assert entry["args"][-5:] == ["mcp", "--agent", "x", "--profile", "browser"]
    assert entry["env"]["CU_FLEET_HOME"] == "/tmp/a home"
    passed = entry["env_vars"] if client == "codex" else [entry["env"]["CU_FLEET_TOKEN"]]
    wanted = {"codex": "CU_FLEET_TOKEN", "claude": "${CU_FLEET_TOKEN}"}.get(client, "${env:CU_FLEET_TOKEN}")
    assert passed == [wanted]


@pytest.mark.parametrize(
    ("client", "bearer"),
    [
        ("codex", None),
        ("claude", "Bearer ${CU_FLEET_LEASE_TOKEN}"),
        ("cursor", "Bearer ${env:CU_FLEET_LEASE_TOKEN}"),
        ("vscode", "Bearer ${input:desktop-token}"),
    ],
)
def test_http_names_the_door_and_where_the_token_is(client: str, bearer: str | None) -> None:
    entry = _entry(client, _printed("--client", client, "--http", env=AT).out)
    assert entry["url"] == "http://127.0.0.1:8712/mcp"
    where = {"headers": {"Authorization": bearer}} if bearer else {"bearer_token_env_var": "CU_FLEET_LEASE_TOKEN"}
    assert entry.items() >= where.items()


def test_codex_waits_for_its_tools() -> None:
    assert _entry("codex", _printed("--client", "codex").out)["required"] is True


def test_vscode_asks_for_the_token() -> None:
    (asked,) = json.loads(_printed("--client", "vscode", "--http", env=AT).out)["inputs"]
    assert (asked["id"], asked["password"]) == ("desktop-token", True)


def test_json_says_where_it_goes() -> None:
    told = _printed("--client", "cursor", "--json").json
    assert (told["client"], told["path"]) == ("cursor", ".cursor/mcp.json")
    assert json.loads(told["configuration"])["mcpServers"]


@pytest.mark.parametrize("words", [["--client", "emacs"], ["--client", "codex", "--name", "my desktop"], []])
def test_wrong_usage(words: list[str]) -> None:
    assert cli("mcp-config", *words, env=ENV).code == 2


def test_without_a_script_of_ours_the_module_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "__main__.py")])
    entry = _entry("codex", _printed("--client", "codex").out)
    assert [entry["command"], *entry["args"][:3]] == [sys.executable, "-m", "cu_fleet", "mcp"]


def test_the_variable_it_names_stops_no_controller(tmp_path: Path) -> None:
    assert read_settings(tmp_path, {"CU_FLEET_LEASE_TOKEN": SECRET}).home == tmp_path
