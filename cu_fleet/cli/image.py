"""`cu-fleet image`: what desktops in containers and machines are made from. Needs no controller."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from cu_fleet.cli import output
from cu_fleet.cli.common import Json, command, group

_COLUMNS = ["image", "state", "size", "built"]

app = group("image", "The images that desktops in containers and machines are made from.")


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(app, "list", "cu-fleet image list", "cu-fleet image list --json")
def list_(as_json: Json = False) -> None:
    """Show the images there are recipes for, and which are built; who cannot be asked is named on standard error."""
    from cu_fleet.cli.root import images

    known = images(output.note)
    if as_json:
        return output.document({"images": [asdict(one) for one in known]})
    return output.table(_COLUMNS, [_row(one) for one in known], empty="There are no recipes.")


def _row(one: Any) -> list[output.Cell]:
    if one.id is None:
        return [one.name, "missing", "", f"cu-fleet image build {one.name.partition('/')[2]}"]
    if not one.current:
        return [one.name, "old", f"{one.size_bytes >> 20} MiB", f"cu-fleet image build {one.name.partition('/')[2]}"]
    return [one.name, "ok", f"{one.size_bytes >> 20} MiB", one.created.partition(".")[0].replace("T", " ")]


@command(app, "build", "cu-fleet image build desktop", "cu-fleet image build browser --fresh")
def build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe's name, as `cu-fleet image list` shows it.")],
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Build it though nothing has changed, with the packages there are today.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Build an image and try a desktop of it; only one that works takes the place of the one before.

    It is built, with the image it rests on, if it is missing or its recipe has changed: by its Dockerfile or, where no
    image registry can be reached, from the distribution's packages, which needs root and the package mmdebstrap.
    """
    from cu_fleet.cli.root import build_image

    made = build_image(name.removeprefix("cu-fleet/"), output.note, fresh=fresh)
    if as_json:
        output.document(asdict(made))
    else:
        output.say(f"{made.name} is ready: {made.size_bytes >> 20} MiB")
