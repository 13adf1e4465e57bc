"""Help worth reading: what every command and option must say about itself."""

import re
import shlex
from typing import Any

import pytest

from tests.cli import tree
from tests.cli.support import cli

COMMANDS = dict(tree.commands())
EXAMPLES = [
    (words, example) for words, command in COMMANDS.items() for example in re.findall(r"\$ (.+)", command.epilog or "")
]


@pytest.mark.parametrize("words", COMMANDS)
def test_command_says_in_a_line_what_it_does(words: str) -> None:
    first = COMMANDS[words].help.split("\n\n")[0]
    assert first.endswith(".")
    assert len(first) < 130


@pytest.mark.parametrize("words", COMMANDS)
def test_command_takes_json(words: str) -> None:
    assert "--json" in tree.options(COMMANDS[words])


@pytest.mark.parametrize("words", COMMANDS)
def test_every_option_and_argument_is_explained(words: str) -> None:
    unexplained = [p.name for p in COMMANDS[words].params if not getattr(p, "hidden", False) and not p.help]
    assert unexplained == []


@pytest.mark.parametrize("words", COMMANDS)
def test_command_has_an_example(words: str) -> None:
    assert any(example for of, example in EXAMPLES if of == words)


@pytest.mark.parametrize(("words", "example"), EXAMPLES)
def test_example_is_a_valid_call_of_its_command(words: str, example: str) -> None:
    call = arguments_of(example.replace("\\[", "["))
    assert call[: len(words.split())] == words.split()
    context: Any = COMMANDS[words].make_context("cu-fleet", call[len(words.split()) :])
    assert context.params


def arguments_of(example: str) -> list[str]:
    """The words after `cu-fleet`, without what the shell would do with them."""
    words = shlex.split(example)
    words = words[words.index("cu-fleet") + 1 :]
    stops = [i for i, word in enumerate(words) if word in ("|", "<", ">")]
    return words[: stops[0]] if stops else words


@pytest.mark.parametrize("words", COMMANDS)
def test_help_is_shown_whole(words: str) -> None:
    shown = cli(*words.split(), "--help", env={"COLUMNS": "200"})
    assert shown.code == 0
    text = " ".join(shown.out.split())
    for of, example in EXAMPLES:
        if of == words:
            assert " ".join(example.replace("\\[", "[").split()) in text


def test_a_group_without_a_command_shows_its_help() -> None:
    shown = cli("lease")
    assert shown.code == 2
    assert "acquire" in shown.out


def test_version() -> None:
    assert re.fullmatch(r"cu-fleet \d+\.\d+\.\d+\n", cli("--version").out)
