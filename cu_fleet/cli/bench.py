"""`cu-fleet bench`: how fast it is here, side by side with the bare thing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cu_fleet.cli import output
from cu_fleet.cli.common import Json, command
from cu_fleet.cli.errors import TERMINATED
from cu_fleet.model.errors import InvalidError

if TYPE_CHECKING:
    from cu_fleet.bench.figures import Figure

DESKTOPS, ROUNDS = 50, 20


def register(root: typer.Typer) -> None:
    examples = ("cu-fleet bench", "cu-fleet bench --quick", "cu-fleet bench --only cold-start --rounds 50 --json")
    command(root, "bench", *examples, rich_help_panel="The controller")(bench)


def rows(partial: str) -> list[str]:
    """For the shell, which asks while a word is being typed."""
    from cu_fleet.bench.scenes import ROWS

    return [row for row in ROWS if row.startswith(partial)]


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="ROW", help="Only this row; may be repeated.", autocompletion=rows),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, max=1000, help=f"How often each is measured (default {ROUNDS}).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A glance: few rounds, 5 desktops.")] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast desktops start, are granted, rolled back and driven on this machine.

    Runs controllers of its own in a temporary folder, beside whatever runs here, and leaves nothing behind; takes
    about three minutes. Each row says the median and what 19 of 20 kept to, and against what it was measured.
    """
    import asyncio

    from cu_fleet.bench.run import run
    from cu_fleet.bench.scenes import ROWS, Plan

    wanted = _known(only, ROWS)
    plan = Plan(rounds or 3, 5, 2.0) if quick else Plan(rounds or ROUNDS, DESKTOPS, 10.0)
    live = output.Live()
    try:
        facts, figures = asyncio.run(run(wanted, plan, live.show))
    except asyncio.CancelledError:
        raise typer.Exit(TERMINATED) from None
    finally:
        live.clear()
    if as_json:
        output.document({"machine": facts, "rows": [figure.json() for figure in figures]})
    else:
        _show(facts, figures)


def _known(only: Sequence[str] | None, every: Sequence[str]) -> Sequence[str]:
    unknown = [row for row in only or () if row not in every]
    if unknown:
        raise InvalidError(f"--only: there is no row {unknown[0]!r}; there are: {', '.join(every)}", code="usage")
    return only or every


def _show(facts: dict[str, Any], figures: "Sequence[Figure]") -> None:
    from cu_fleet.bench.figures import COLUMNS
    from cu_fleet.bench.machine import in_words

    output.say(in_words(facts) + "\n")
    output.table(COLUMNS, [figure.cells() for figure in figures], empty="Nothing was measured.")
    for figure in figures:
        for name, value in figure.facts.items():
            output.say(f"{figure.row}: {_fact(name, value)}")


def _fact(name: str, value: object) -> str:
    words = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else str(value)
    return f"{name.replace('_', ' ')} {words}"
