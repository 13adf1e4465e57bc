"""`cu-fleet screenshot`, `act` and `cp`: what an agent does with its desktop, by hand."""

import base64
import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cu_fleet.cli import connect, output
from cu_fleet.cli.common import Json, LeaseId, command, given
from cu_fleet.model.errors import InvalidError, UnavailableError

PANEL = "Look and do"
LONGEST = 4 << 20  # bytes of JSON that `act -` reads


class Format(StrEnum):
    png = "png"
    jpeg = "jpeg"
    webp = "webp"


SUFFIXES = {".png": Format.png, ".jpg": Format.jpeg, ".jpeg": Format.jpeg, ".webp": Format.webp}

Region = Annotated[
    str | None,
    typer.Option("--region", metavar="X,Y,W,H", help="Only this part, in pixels of what the lease is shown."),
]
MaxEdge = Annotated[
    int | None, typer.Option("--max-edge", metavar="N", min=16, help="Neither edge longer; none: the lease's scale.")
]
Changed = Annotated[
    str | None,
    typer.Option("--if-changed-since", metavar="FRAME", help="Write nothing if this frame is what it would show."),
]
SettleMs = Annotated[
    int | None,
    typer.Option("--settle-ms", metavar="N", min=0, help="Wait until the screen has kept still for so long."),
]
Intent = Annotated[str | None, typer.Option("--intent", help="Why; it goes on record.")]


def register(root: typer.Typer) -> None:
    command(
        root,
        "screenshot",
        "cu-fleet screenshot ls_3k9m2c7d1x -o screen.png",
        "cu-fleet screenshot ls_3k9m2c7d1x -o zoom.png --region 0,0,400,300 --max-edge 1600",
        "cu-fleet screenshot ls_3k9m2c7d1x -o now.png --if-changed-since fr_8h4k2m9x1c",
        "cu-fleet screenshot ls_3k9m2c7d1x -o - | display",
        rich_help_panel=PANEL,
    )(screenshot)
    command(
        root,
        "act",
        """cu-fleet act ls_3k9m2c7d1x '{"type": "click", "x": 640, "y": 400}' '{"type": "type", "text": "hello"}'""",
        """cu-fleet act ls_3k9m2c7d1x '[{"type": "key", "keys": "ctrl+s"}]' --screenshot after.png --intent saving""",
        "cu-fleet act ls_3k9m2c7d1x - < actions.json",
        rich_help_panel=PANEL,
    )(act)


def screenshot(
    lease: LeaseId,
    file: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="Where to write it; - is standard output.")
    ],
    region: Region = None,
    frame: Annotated[
        str | None, typer.Option("--frame", metavar="FRAME", help="--region is in pixels of this frame.")
    ] = None,
    max_edge: MaxEdge = None,
    format: Annotated[Format | None, typer.Option("--format", help="Default: as FILE ends, else png.")] = None,  # noqa: A002 -- the option's name
    quality: Annotated[int | None, typer.Option("--quality", min=1, max=100, help="Of jpeg and webp (80).")] = None,
    max_bytes: Annotated[
        int | None, typer.Option("--max-bytes", min=10_000, help="Lower the quality until it fits; never the scale.")
    ] = None,
    pointer: Annotated[bool, typer.Option("--pointer", help="Draw the mouse pointer.")] = False,
    changed: Changed = None,
    settle_ms: SettleMs = None,
    settle_timeout_ms: Annotated[
        int | None, typer.Option("--settle-timeout-ms", metavar="N", min=1, help="Look after so long anyway (2000).")
    ] = None,
    allow_blank: Annotated[
        bool, typer.Option("--allow-blank", help="Also a screen of one colour, or of another size than it should be.")
    ] = False,
    intent: Intent = None,
    as_json: Json = False,
) -> None:
    """Take a picture of a lease's screen. Looking goes on record too."""
    if as_json and file == "-":
        raise InvalidError("--json and -o - both want standard output", remedy="give -o a file", code="usage")
    wanted = given(
        region=_region(region),
        frame=frame,
        max_edge=max_edge,
        format=picked(format, file).value,
        quality=quality,
        max_bytes=max_bytes,
        pointer="true" if pointer else None,
        if_changed_since=changed,
        settle_ms=settle_ms,
        settle_timeout_ms=settle_timeout_ms,
        allow_blank="true" if allow_blank else None,
        intent=intent,
    )

    async def work(wire: connect.Wire) -> tuple[dict[str, Any], bytes]:
        return await connect.picture(wire, await connect.lease_id(wire, lease), wanted)

    about, data = connect.run(work)
    unchanged = about["unchanged"]
    if not unchanged:
        write(file, data)
    about = {"format": wanted["format"], **about}
    if as_json:
        output.document({"file": None if unchanged else file, "bytes": len(data), **about})
    elif unchanged:
        output.note(f"unchanged since frame {about['frame']}: nothing is written")
    elif file != "-":
        output.say(f"{file}: {about['format']}, {output.size(len(data))}, frame {about['frame']}")


def picked(format: Format | None, file: str) -> Format:  # noqa: A002
    return format or SUFFIXES.get(Path(file).suffix.lower(), Format.png)


def _region(text: str | None) -> str | None:
    if text is not None and [part.strip().isdigit() for part in text.split(",")] != [True] * 4:
        raise InvalidError(f"--region: expected X,Y,W,H in whole pixels, found {text!r}", code="usage")
    return text


def write(file: str, data: bytes) -> None:
    try:
        if file == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            Path(file).write_bytes(data)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UnavailableError(f"{file} cannot be written: {error.strerror}", code="not_writable") from None


def act(
    lease: LeaseId,
    actions: Annotated[
        list[str],
        typer.Argument(metavar="JSON", help="Actions, each one JSON object or a list of them; - reads standard input."),
    ],
    picture: Annotated[
        str | None, typer.Option("--screenshot", metavar="FILE", help="Write the settled screen afterwards there.")
    ] = None,
    changed: Changed = None,
    settle_ms: SettleMs = None,
    intent: Intent = None,
    frame: Annotated[
        str | None, typer.Option("--frame", metavar="FRAME", help="Coordinates are pixels of this frame.")
    ] = None,
    approval: Annotated[
        str | None, typer.Option("--approval", metavar="APPROVAL", help="A person's answer to these very actions.")
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="Asking again with the same id does nothing twice.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Click, type and drag on a lease's desktop. Nothing is sent unless all actions are well formed.

    Actions: click, move, press, release, drag, scroll, key, key_down, key_up, hold_key, type, paste, wait, wait_stable
    and wait_change.
    """
    shot = None
    if picture:
        shot = given(format=picked(None, picture).value, if_changed_since=changed, settle_ms=settle_ms)
    words = given(screenshot=shot, intent=intent, frame=frame, approval=approval, request_id=request_id)
    body = {"actions": parsed(actions), **words}

    async def work(wire: connect.Wire) -> dict[str, Any]:
        path = connect.path("leases", await connect.lease_id(wire, lease), "actions")
        return dict(await connect.ask(wire, "POST", path, body))

    answer = connect.run(work)
    shown = answer.get("screenshot")
    if picture and shown:
        if "data" in shown:
            write(picture, base64.b64decode(shown.pop("data")))
        shown["file"] = None if shown.get("unchanged") else picture
    _report(answer, parsed_names(body), as_json)


def parsed(texts: list[str]) -> list[object]:
    """All actions in the order given; what is no JSON is refused by its place."""
    actions: list[object] = []
    for number, text in enumerate(texts, 1):
        if text == "-":
            text = sys.stdin.read(LONGEST)  # noqa: PLW2901 -- this text stands for that one
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidError(
                f"argument {number} is not JSON: {error}",
                remedy="""write an action as '{"type": "click", "x": 1, "y": 2}', in single quotes""",
                code="usage",
            ) from None
        actions += value if isinstance(value, list) else [value]
    return actions


def parsed_names(body: dict[str, Any]) -> list[str]:
    return [str(action.get("type")) if isinstance(action, dict) else "?" for action in body["actions"]]


def _report(answer: dict[str, Any], names: list[str], as_json: bool) -> None:
    if as_json:
        output.document(answer)
    else:
        for name, done in zip(names, answer["done"], strict=False):
            output.say(f"{name}: done" if done["ok"] else f"{name}: not done, {done['detail']} ({done['code']})")
        for name in names[len(answer["done"]) :]:
            output.say(f"{name}: not tried")
        if (answer["screenshot"] or {}).get("unchanged"):
            output.note(f"unchanged since frame {answer['screenshot']['frame']}: nothing is written")
    why = answer.get("not_shown")
    if why:
        output.complain(f"there is no picture of it: {why['detail']} ({why['code']})")
    failed = [done for done in (*answer["done"], *([why] if why else [])) if not done["ok"]]
    if failed:
        raise typer.Exit(6 if str(failed[0]["code"]).startswith("lease_") else 1)
