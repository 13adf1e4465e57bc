"""The examples for CI services: what they say is well-formed, and every command and option in them is real."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli import tree

CI = Path(__file__).resolve().parents[2] / "examples/ci"
COMMANDS = dict(tree.commands())


def lines(found: Any) -> Iterator[str]:
    """Whatever is run, wherever it stands."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key in ("run", "script", "before_script", "after_script"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from lines(value)
    elif isinstance(found, list):
        for one in found:
            yield from lines(one)


@pytest.mark.parametrize("name", ["github-actions.yml", "gitlab-ci.yml"])
def test_every_command_in_it_is_real(name: str, pytestconfig: pytest.Config) -> None:
    said = [shlex.split(line) for line in lines(yaml.safe_load((CI / name).read_text("utf-8")))]
    ours = [words[1:] for words in said if words[0] == "cu-fleet"]
    assert {words[0] for words in ours} == {"image", "run", "down"}
    for words in ours:
        own, program = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
        path = next(path for path in COMMANDS if own[: len(path.split())] == path.split())
        COMMANDS[path].make_context(path, words[len(path.split()) :]).close()  # refuses what it does not know
        if program[:1] == ["pytest"]:
            _, unknown = pytestconfig._parser.parse_known_and_unknown_args(program[1:])  # noqa: SLF001 - no other way
            assert unknown == []
    assert any(words[:1] == ["pip"] and "cu-fleet-controller[docker,testing]" in words for words in said)


def test_what_is_shown_of_a_failed_test_is_kept() -> None:
    github = (CI / "github-actions.yml").read_text("utf-8")
    gitlab = yaml.safe_load((CI / "gitlab-ci.yml").read_text("utf-8"))["gui"]["artifacts"]
    for told in ("junit.xml", "desktop-report", "artifacts"):
        assert re.search(rf"^ +{told}$", github, re.MULTILINE)
        assert told in gitlab["paths"]
    assert gitlab["when"] == "always"
