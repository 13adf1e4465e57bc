"""The MCP Inspector's own command line as a client: over stdio, and over HTTP.

It comes from the npm registry, once, into the Python environment that the tests run in.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.sync import Fleet
from tests.cli.support import TOP
from tests.cli.test_live import Controller

pytestmark = [pytest.mark.real, pytest.mark.slow]

VERSION = "1.0.3"


def installed() -> str:
    folder = Path(sys.prefix) / "inspector" / "node_modules"
    program = folder / ".bin" / "mcp-inspector-cli"
    if not program.exists():
        words = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder.parent)]
        package = f"@modelcontextprotocol/inspector-cli@{VERSION}"
        subprocess.run([*words, package], check=True, timeout=300, stdin=subprocess.DEVNULL)
    whole = folder / "@modelcontextprotocol"  # without the pages, of which it wants to know the version
    shutil.copy(whole / "inspector-cli" / "package.json", whole / "package.json")
    return str(program)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    assert shutil.which("npm"), "npm is missing: tests/run.sh installs it"
    with Controller(tmp_path_factory.mktemp("inspector") / "home").running() as controller:
        yield controller


@pytest.mark.parametrize("way", ["stdio", "http"])
def test_the_inspector_lists_and_calls(live: Controller, way: str) -> None:
    with Fleet.connect(home=live.home, start=False) as fleet:
        if way == "http":
            lease = fleet.acquire(agent="insp-http", profile="mem").lease
            where = [str(lease.mcp_url), "--transport", "http", "--header", f"Authorization: Bearer {lease.token}"]
        else:
            env = [f"CU_FLEET_HOME={live.home}", f"PYTHONPATH={TOP}"]
            own = [sys.executable, "-m", "cu_fleet", "mcp", "--agent", "insp-stdio", "--profile", "mem"]
            where = [*(word for pair in env for word in ("-e", pair)), *own]

        def asked(method: str, *words: str) -> Any:
            done = subprocess.run(
                [installed(), "--cli", *where, "--method", method, *words],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=90,
                check=False,
            )
            assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
            return json.loads(done.stdout)

        tools = {tool["name"]: tool for tool in asked("tools/list")["tools"]}
        assert {"screenshot", "click", "act", "lease_status"} <= set(tools)
        assert all(len(tool["annotations"]) == 5 for tool in tools.values()), "the title, and all four hints"
        text, image = asked("tools/call", "--tool-name", "screenshot")["content"]
        assert (text["type"], image["type"], image["mimeType"]) == ("text", "image", "image/png")
        wrong = asked("tools/call", "--tool-name", "key", "--tool-arg", "keys=nosuchkey")
        assert (wrong["isError"], "nosuchkey" in wrong["content"][0]["text"]) == (True, True)
        states = [x.state for x in fleet.leases(everything=True) if x.agent == f"insp-{way}"]
    assert states == (["active"] if way == "http" else ["released", "released"]), "a process each, but one for the list"
