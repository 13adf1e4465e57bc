"""What every command group shares: the `command` decorator, and the options and arguments that recur."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from cu_fleet.cli import complete
from cu_fleet.model.errors import InvalidError

F = TypeVar("F", bound=Callable[..., Any])

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of words and tables.")]
LeaseId = Annotated[
    str,
    typer.Argument(metavar="LEASE", help="A lease's id, or the desktop it holds.", autocompletion=complete.leases),
]
DesktopId = Annotated[
    str,
    typer.Argument(
        metavar="ID", help="A desktop's id or name, or the lease that holds it.", autocompletion=complete.desktops
    ),
]
Profile = Annotated[
    str, typer.Option("--profile", "-p", help="What kind of desktop.", autocompletion=complete.profiles)
]
Wait = Annotated[str, typer.Option("--wait", metavar="TIME", help="How long to stand in line: 60s, 5m or forever.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Why, in the words the agent will read.")]
Ttl = Annotated[str | None, typer.Option("--ttl", metavar="TIME", help="How long the lease lives, as 90s, 15m or 2h.")]


def command(app: typer.Typer, name: str, *examples: str, **more: Any) -> Callable[[F], F]:
    """`app.command`, with the docstring as help and the examples that end it."""

    def add(function: F) -> F:
        text = inspect.cleandoc(function.__doc__ or "")
        unwrapped = "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
        app.command(name, help=unwrapped, epilog=shown_examples(examples), **more)(function)
        return function

    return add


def shown_examples(examples: tuple[str, ...]) -> str:
    lines = [f"$ {example}".replace("[", "\\[") for example in examples]
    return "\n".join(["[bold]Examples[/bold]", *lines])


def group(name: str, help: str) -> typer.Typer:  # noqa: A002 -- Typer's own word
    return typer.Typer(name=name, help=help, no_args_is_help=True, rich_markup_mode="rich")


def seconds(option: str, text: str | None, **words: float | None) -> float | None:
    """The seconds in `15m` or `90s`, or what one of `words` stands for; None if nothing was given."""
    from cu_fleet.model.profile import parse_seconds

    if text is None or text in words:
        return words[text] if text else None
    value = parse_seconds(text)
    if not isinstance(value, float):
        also = "".join(f", or {word}" for word in words)
        raise InvalidError(f"{option}: expected a time such as 90s, 15m or 2h{also}, found {text!r}", code="usage")
    return value


def given(**values: object) -> dict[str, object]:
    """Only what was given: the controller knows the defaults of the rest."""
    return {name: value for name, value in values.items() if value is not None}
