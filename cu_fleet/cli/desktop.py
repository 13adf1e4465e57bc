"""`cu-fleet desktop`: the desktops themselves, for operators."""

import base64
import sys
from typing import Annotated, Any

import typer

from cu_fleet.cli import connect, output
from cu_fleet.cli.common import DesktopId, Json, command, given, group, seconds
from cu_fleet.model.errors import InvalidError

STDIN_LIMIT = 8 << 20  # bytes of standard input a command may be given
KEPT = 16 << 20  # bytes of a command's output that --json keeps

app = group("desktop", "See desktops, run commands in them, freeze them, and take them away.")


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(app, "list", "cu-fleet desktop list", "cu-fleet desktop list --json")
def list_(as_json: Json = False) -> None:
    """Show all desktops, what each is doing, and who holds it."""
    answer = connect.get("/v1/desktops")
    if as_json:
        return output.document(answer)
    rows = [_row(view) for view in answer["desktops"]]
    empty = "There are no desktops. One is made for: cu-fleet lease acquire --agent a --profile local"
    output.table(
        ["desktop", "name", "profile", "stage", "screen", "agent", "lease", "control", "note"], rows, empty=empty
    )
    return None


def _row(view: dict[str, Any]) -> list[output.Cell]:
    stage = f"{view['stage']}/frozen" if view["frozen"] else view["stage"]
    screen = f"{view['width']}x{view['height']}" + (" emulated" if view["emulated"] else "")
    control = view["control"] if view["lease"] else None
    keys = (view["desktop"], view["name"], view["profile"], stage, screen, view["agent"], view["lease"])
    return [*keys, control, view["note"]]


@command(app, "show", "cu-fleet desktop show finance", "cu-fleet desktop show dk_3k9m2c7d1x --json")
def show(desktop: DesktopId, as_json: Json = False) -> None:
    """Show one desktop."""

    async def work(wire: connect.Wire) -> dict[str, Any]:
        path = connect.path("desktops", await connect.desktop_id(wire, desktop))
        return dict(await connect.ask(wire, "GET", path))

    view = connect.run(work)
    if as_json:
        output.document(view)
    else:
        output.facts({name.replace("_", " "): str(value) for name, value in view.items() if value is not None})


@command(
    app,
    "exec",
    "cu-fleet desktop exec dk_3k9m2c7d1x -- ls -la",
    "cu-fleet desktop exec finance --cwd Shared -- tar x < files.tar",
)
def exec_(
    desktop: DesktopId,
    words: Annotated[list[str], typer.Argument(metavar="CMD", help="The command and its arguments.")],
    cwd: Annotated[str | None, typer.Option("--cwd", help="Directory inside the desktop to run it in.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Repeatable.")] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="End it after 90s, 5m…")] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin/--no-stdin", help="Pass standard input on, unless it is a terminal.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Run a command inside a desktop; its output comes as it is made, and its exit code becomes ours."""
    body = given(
        argv=words,
        cwd=cwd,
        env=_variables(env or []) or None,
        stdin=_stdin() if stdin else None,
        timeout=seconds("--timeout", timeout),
    )
    sink = _Kept() if as_json else _Through()

    async def work(wire: connect.Wire) -> int:
        path = connect.path("desktops", await connect.desktop_id(wire, desktop), "exec")
        return await _follow(wire, path, body, sink)

    code = connect.run(work)
    if isinstance(sink, _Kept):
        output.document({"exit": code, **sink.document()})
    raise typer.Exit(code)


def _variables(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise InvalidError(f"--env: expected NAME=VALUE, found {pair!r}", code="usage")
    return dict(pair.split("=", 1) for pair in pairs)


def _stdin() -> str | None:
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        return None
    with output.patience("reading standard input to its end (--no-stdin if there is none)"):
        data = sys.stdin.buffer.read(STDIN_LIMIT + 1)
    if len(data) > STDIN_LIMIT:
        raise InvalidError(
            f"standard input is longer than {STDIN_LIMIT >> 20} MiB",
            remedy="copy it in first: cu-fleet cp FILE LEASE:FILE",
            code="usage",
        )
    return base64.b64encode(data).decode() if data else None


class _Through:
    """Output that goes on as it comes."""

    def take(self, stream: int, data: bytes) -> None:
        to = sys.stdout.buffer if stream == 1 else sys.stderr.buffer
        to.write(data)
        to.flush()


class _Kept:
    """Output that waits to become part of one document."""

    def __init__(self) -> None:
        self._kept = {1: bytearray(), 2: bytearray()}
        self._cut = False

    def take(self, stream: int, data: bytes) -> None:
        room = KEPT - len(self._kept[stream])
        self._kept[stream] += data[:room]
        self._cut = self._cut or len(data) > room

    def document(self) -> dict[str, object]:
        out, err = (self._kept[stream].decode("utf-8", "replace") for stream in (1, 2))
        return {"stdout": out, "stderr": err, "cut": self._cut}


async def _follow(wire: connect.Wire, path: str, body: dict[str, object], sink: _Through | _Kept) -> int:
    async for line in connect.lines(wire, "POST", path, body):
        if "exit" in line:
            return int(line["exit"])
        sink.take(line["stream"], base64.b64decode(line["data"]))
    raise connect.broken_off("the command's output")


@command(app, "logs", "cu-fleet desktop logs dk_3k9m2c7d1x")
def logs(desktop: DesktopId, as_json: Json = False) -> None:
    """Show what a desktop's own programs have written: X server, window manager, session bus."""

    async def work(wire: connect.Wire) -> tuple[str, str]:
        name = await connect.desktop_id(wire, desktop)
        return name, await connect.text(wire, connect.path("desktops", name, "logs"))

    name, text = connect.run(work)
    if as_json:
        output.document({"desktop": name, "logs": text})
    else:
        output.say(text.rstrip() or f"desktop {name} has written nothing yet")


@command(app, "freeze", "cu-fleet desktop freeze dk_3k9m2c7d1x")
def freeze(desktop: DesktopId, as_json: Json = False) -> None:
    """Stop all processes of a desktop where they are."""
    _tell(desktop, "freeze", as_json, "is frozen; go on with: cu-fleet desktop thaw")


@command(app, "thaw", "cu-fleet desktop thaw dk_3k9m2c7d1x")
def thaw(desktop: DesktopId, as_json: Json = False) -> None:
    """Let a frozen desktop go on."""
    _tell(desktop, "thaw", as_json, "goes on")


def _tell(desktop: str, verb: str, as_json: bool, words: str) -> None:
    async def work(wire: connect.Wire) -> dict[str, Any]:
        path = connect.path("desktops", await connect.desktop_id(wire, desktop), verb)
        return dict(await connect.ask(wire, "POST", path, {}))

    view = connect.run(work)
    if as_json:
        output.document(view)
    else:
        output.say(f"desktop {view['desktop']} {words}")


@command(app, "remove", "cu-fleet desktop remove dk_3k9m2c7d1x", "cu-fleet desktop remove finance --json")
def remove(desktop: DesktopId, as_json: Json = False) -> None:
    """Take a desktop away, with its files. Not while an agent holds it."""

    async def work(wire: connect.Wire) -> str:
        name = await connect.desktop_id(wire, desktop)
        await connect.ask(wire, "DELETE", connect.path("desktops", name))
        return name

    name = connect.run(work)
    if as_json:
        output.document({"desktop": name, "removed": True})
    else:
        output.say(f"desktop {name} is being taken away")
