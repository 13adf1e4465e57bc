"""The command tree as people meet it, for tests that walk it."""

from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from cu_fleet.cli import app


def root() -> Any:
    return get_command(app)


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that reach it; hidden ones too."""

    def walk(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, (*words, name))
        if not hasattr(command, "commands"):
            yield " ".join(words), command

    yield from walk(root(), ())


def groups() -> Iterator[tuple[str, Any]]:
    yield "cu-fleet", root()
    for name, child in root().commands.items():
        if hasattr(child, "commands"):
            yield name, child


def named(words: str) -> Any:
    return dict(commands())[words]


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
