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

DESKTOPS, ROUNDS, SOAK = 50, 20, 10_000


def register(root: typer.Typer) -> None:
    examples = (
        "cu-fleet bench",
        "cu-fleet bench --quick",
        "cu-fleet bench --only png --rounds 50 --json",
        "cu-fleet bench --only soak",
        "cu-fleet bench --only docker",
        "cu-fleet bench --only libvirt",
        "cu-fleet bench --only codex",
    )
    command(root, "bench", *examples, rich_help_panel="The controller")(bench)


def rows(partial: str) -> list[str]:
    """For the shell, which asks while a word is being typed."""
    from cu_fleet.bench.programme import ROWS

    return [row for row in ROWS if row.startswith(partial)]


def bench(
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", metavar="ROW", help="Only this row, or all that begin so; repeatable.", autocompletion=rows
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, max=1000, help=f"How often each is measured (default {ROUNDS}).")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A glance: few rounds, 5 desktops.")] = False,
    as_json: Json = False,
) -> None:
    """Measure how fast desktops start, are granted, rolled back and driven on this machine.

    Runs controllers of its own in a temporary folder, beside whatever runs here, and leaves nothing behind; takes
    about four minutes. Each row says the median and what 19 of 20 kept to, and against what it was measured. A soak of
    10,000 screenshots and as many actions, desktops in containers and in virtual machines, and runs of Codex are
    measured only if they are asked for.
    """
    import asyncio

    from cu_fleet.bench.run import run
    from cu_fleet.bench.stage import Plan

    wanted = _known(only or [])
    plan = Plan(rounds or 3, 5, 2.0, 100) if quick else Plan(rounds or ROUNDS, DESKTOPS, 10.0, SOAK)
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


def _known(only: Sequence[str]) -> Sequence[str]:
    from cu_fleet.bench.programme import ROWS, rows_of

    for name in only:
        if not rows_of([name]):
            raise InvalidError(f"--only: there is no row {name!r}; there are: {', '.join(ROWS)}", code="usage")
    return rows_of(only)


def _show(facts: dict[str, Any], figures: "Sequence[Figure]") -> None:
    from cu_fleet.bench.figures import COLUMNS, COLUMNS_BESIDE
    from cu_fleet.bench.machine import in_words

    output.say(in_words(facts) + "\n")
    alone, beside = [x for x in figures if not x.others], [x for x in figures if x.others]
    if alone or not beside:
        output.table(COLUMNS, [figure.cells() for figure in alone], empty="Nothing was measured.")
    if beside:
        output.say("\n" if alone else "")
        output.table(COLUMNS_BESIDE, [figure.cells_beside() for figure in beside], empty="")
    for words in sorted({one for figure in beside for one in figure.others.values() if isinstance(one, str)}):
        output.say(f"not measured: {words}")
    for figure in figures:
        for name, value in figure.facts.items():
            output.say(f"{figure.row}: {_fact(name, value)}")


def _fact(name: str, value: object) -> str:
    words = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else str(value)
    return f"{name.replace('_', ' ')} {words}"
