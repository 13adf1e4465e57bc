"""`cu-fleet serve-machines`: what a controller elsewhere begins through SSH, where its hypervisor is."""

from typing import Annotated

import typer

from cu_fleet.cli.common import command


def register(root: typer.Typer) -> None:
    command(root, "serve-machines", "cu-fleet serve-machines", hidden=True)(serve_machines)


def serve_machines(
    as_json: Annotated[bool, typer.Option("--json", help="As always: it speaks JSON lines.")] = True,
) -> None:
    """Serve this host's virtual machines to a controller elsewhere, which begins this through SSH.

    It ends with that connection; desktops live on. Nobody needs to call it by hand.
    """
    from cu_fleet.cli import root

    raise typer.Exit(root.serve_machines())
