"""The command line: `cu-fleet`, one file per group of commands.

Every command is a thin door: it asks the controller over HTTP (`connect`), shows the answer as words or as one JSON
document (`output`), and ends with a telling exit code (`errors`). What is heavy is imported inside the commands, since
people and agents call this hundreds of times a day.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from cu_fleet.cli import (
    approval,
    audit,
    codex,
    cp,
    desktop,
    doctor,
    frames,
    image,
    lease,
    machines,
    mcp,
    people,
    profile,
    run,
    screen,
    service,
    snapshot,
    watch,
    worktree,
)
from cu_fleet.cli.errors import FleetGroup

GROUPS = (
    service,
    doctor,
    profile,
    image,
    lease,
    watch,
    desktop,
    screen,
    frames,
    cp,
    snapshot,
    worktree,
    approval,
    mcp,
    codex,
    run,
    people,
    audit,
    machines,
)

app = typer.Typer(
    name="cu-fleet",
    cls=FleetGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Settings: CU_FLEET_HOME, or CU_FLEET_URL and CU_FLEET_TOKEN for a controller elsewhere.\n"
    "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 denied or in conflict, 4 waited too long, 5 not found,"
    " 6 the lease is paused, revoked or over.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from cu_fleet import __version__

        typer.echo(f"cu-fleet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Every AI agent gets its own desktop: lease it, watch it, supervise it, and have it all on record."""


for _group in GROUPS:
    _group.register(app)
if find_spec("cu_fleet.cli.bench"):
    import_module("cu_fleet.cli.bench").register(app)


def main() -> None:
    app(prog_name="cu-fleet")
