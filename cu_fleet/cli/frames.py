"""`cu-fleet frames`: pictures that were kept, as the profile says, and evidence."""

from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import Json, command, given, group, seconds
from cu_fleet.cli.screen import write
from cu_fleet.model.errors import InvalidError

app = group("frames", "Pictures that were kept: around actions, all that were handed out, and evidence.")

OfLease = Annotated[
    str | None,
    typer.Option("--lease", metavar="LEASE", help="Only this lease's.", autocompletion=complete.leases),
]


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(app, "list", "cu-fleet frames list", "cu-fleet frames list --lease ls_3k9m2c7d1x --limit 1000 --json")
def list_(
    lease: OfLease = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10000, help="How many of the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """Show which pictures are kept, the newest first. A profile's `frames` says what is: none, actions or all."""

    async def work(wire: connect.Wire) -> dict[str, Any]:
        of = await connect.lease_id(wire, lease) if lease else None
        return dict(await connect.ask(wire, "GET", "/v1/frames", lease=of, limit=limit))

    answer = connect.run(work)
    if as_json:
        return output.document(answer)
    rows = [_row(frame) for frame in answer["frames"]]
    empty = "No frames are kept. A profile says which are: frames: none, actions or all"
    output.table(["frame", "at", "why", "lease", "agent", "picture", "bytes"], rows, empty=empty)
    return None


def _row(f: dict[str, Any]) -> list[output.Cell]:
    picture = f"{f['width']}x{f['height']} {f['format']}"
    return [f["sha256"][:16], f["at_iso"], f["why"], f["lease"], f["agent"], picture, output.size(f["size"])]


@command(
    app,
    "get",
    "cu-fleet frames get 9f86d081884c7d65 -o then.png",
    "cu-fleet frames get 9f86d081884c7d65 -o - | display",
)
def get(
    sha256: Annotated[str, typer.Argument(metavar="FRAME", help="A frame's sha256, or at least 8 digits of it.")],
    file: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; - is standard output.")
    ],
    as_json: Json = False,
) -> None:
    """Write a kept picture to a file: the one that the record names by this hash."""
    if as_json and file == "-":
        raise InvalidError("--json and -o - both want standard output", remedy="give -o a file", code="usage")
    about, data = connect.run(lambda wire: connect.kept(wire, sha256))
    write(file, data)
    if as_json:
        output.document({"file": file, "bytes": len(data), **about})
    elif file != "-":
        output.say(f"{file}: {about['why']} at {about['at']}, lease {about['lease']}, {output.size(len(data))}")


@command(
    app,
    "prune",
    "cu-fleet frames prune",
    "cu-fleet frames prune --older 2d",
    "cu-fleet frames prune --lease ls_3k9m2c7d1x --json",
)
def prune(
    older: Annotated[
        str | None, typer.Option("--older", metavar="TIME", help="Only what was last seen before 12h, 2d…")
    ] = None,
    lease: OfLease = None,
    as_json: Json = False,
) -> None:
    """Remove kept pictures: the older ones, those of a lease, or else what the settings let go.

    Those of a lease under way, and evidence, stay unless the lease is named.
    """
    body = given(older=seconds("--older", older))

    async def work(wire: connect.Wire) -> dict[str, Any]:
        of = await connect.lease_id(wire, lease) if lease else None
        return dict(await connect.ask(wire, "POST", "/v1/frames/prune", body | given(lease=of)))

    done = connect.run(work)
    if as_json:
        output.document(done)
    else:
        left = f"{done['left']} are left ({output.size(done['left_bytes'])})"
        output.say(f"{done['removed']} frames are removed ({output.size(done['bytes'])}); {left}")
