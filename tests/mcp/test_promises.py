"""What the README says of the MCP door is what it does."""

import re
from pathlib import Path

from cu_fleet.mcp.tools import TOOLS

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def test_the_readme_names_every_tool_and_no_other() -> None:
    (listed,) = re.findall(r"\nThe tools: (.*?)\.\s+What\s+the\s+profile", README, re.DOTALL)
    named = re.sub(r"\(.*?\)", "", listed, flags=re.DOTALL)  # explanations name tools too
    assert re.findall(r"`(\w+)`", named) == sorted(TOOLS, key=re.findall(r"`(\w+)`", named).index)
