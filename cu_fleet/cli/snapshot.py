"""`cu-fleet snapshot`: saved states of desktops."""

from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import DesktopId, Json, command, given, group

app = group("snapshot", "Save desktops as they are, and put them back.")

SnapshotId = Annotated[
    str, typer.Argument(metavar="SNAPSHOT", help="A snapshot's id.", autocompletion=complete.snapshots)
]
OfDesktop = Annotated[
    str | None,
    typer.Option("--desktop", metavar="ID", help="Only this desktop's.", autocompletion=complete.desktops),
]
OntoDesktop = Annotated[
    str | None,
    typer.Option(
        "--desktop", metavar="ID", help="Onto this one; none: the one it was made of.", autocompletion=complete.desktops
    ),
]


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(app, "save", "cu-fleet snapshot save dk_3k9m2c7d1x --note 'logged in'", "cu-fleet snapshot save finance")
def save(
    desktop: DesktopId,
    note: Annotated[str | None, typer.Option("--note", help="What it is, for the list.")] = None,
    as_json: Json = False,
) -> None:
    """Save a desktop's files and state, and of a machine all that runs; it stands still only for that moment."""

    async def work(wire: connect.Wire) -> dict[str, Any]:
        path = connect.path("desktops", await connect.desktop_id(wire, desktop), "snapshots")
        return dict(await connect.ask(wire, "POST", path, given(note=note)))

    saved = connect.run(work)
    if as_json:
        output.document(saved)
    else:
        size = output.size(saved["size_bytes"])
        output.say(f"snapshot {saved['id']} of desktop {saved['desktop']} is saved ({saved['kind']}, {size})")


@command(app, "list", "cu-fleet snapshot list", "cu-fleet snapshot list --desktop finance --json")
def list_(desktop: OfDesktop = None, as_json: Json = False) -> None:
    """Show all snapshots, or those of one desktop."""

    async def work(wire: connect.Wire) -> dict[str, Any]:
        of = await connect.desktop_id(wire, desktop) if desktop else None
        return dict(await connect.ask(wire, "GET", "/v1/snapshots", desktop=of))

    answer = connect.run(work)
    if as_json:
        return output.document(answer)
    rows = [_row(snapshot) for snapshot in answer["snapshots"]]
    empty = "There are no snapshots. Make one: cu-fleet snapshot save DESKTOP"
    output.table(["snapshot", "desktop", "profile", "kind", "size", "made", "by", "purpose", "note"], rows, empty=empty)
    if len(rows) > 1:
        output.say(f"together {output.size(sum(one['size_bytes'] for one in answer['snapshots']))}")
    return None


def _row(s: dict[str, Any]) -> list[output.Cell]:
    from cu_fleet.model.view import iso

    size, made = output.size(s["size_bytes"]), iso(s["created_at"])
    return [s["id"], s["desktop"], s["profile"], s["kind"], size, made, s["by"], s["purpose"], s["note"]]


@command(
    app,
    "restore",
    "cu-fleet snapshot restore sn_3k9m2c7d1x",
    "cu-fleet snapshot restore sn_3k9m2c7d1x --desktop finance",
)
def restore(snapshot: SnapshotId, desktop: OntoDesktop = None, as_json: Json = False) -> None:
    """Put a desktop back to a snapshot: all that runs on it ends, and its files return.

    Its screen starts afresh; a machine's is as it was, with all that ran on it running on.

    The lease that holds it keeps its token and goes on under a new generation.
    """

    async def work(wire: connect.Wire) -> dict[str, Any]:
        of = await connect.desktop_id(wire, desktop) if desktop else None
        return dict(await connect.ask(wire, "POST", connect.path("snapshots", snapshot, "restore"), given(desktop=of)))

    answer = connect.run(work)
    if as_json:
        output.document(answer)
    else:
        view = answer["desktop"]
        output.say(f"desktop {view['desktop']} is as snapshot {snapshot} saved it (generation {view['generation']})")


@command(app, "delete", "cu-fleet snapshot delete sn_3k9m2c7d1x")
def delete(snapshot: SnapshotId, as_json: Json = False) -> None:
    """Delete a snapshot for good."""
    connect.run(lambda wire: connect.ask(wire, "DELETE", connect.path("snapshots", snapshot)))
    if as_json:
        output.document({"snapshot": snapshot, "deleted": True})
    else:
        output.say(f"snapshot {snapshot} is deleted")
