"""`cu-fleet audit`: the record of who did what."""

import json
import sys
from collections import deque
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import Json, command, given, group
from cu_fleet.model.errors import UnavailableError

app = group("audit", "The record of who did what, chained so that no change of it goes unseen.")

OfLease = Annotated[
    str | None, typer.Option("--lease", help="Only this lease's entries.", autocompletion=complete.leases)
]
OfAgent = Annotated[
    str | None, typer.Option("--agent", "-a", help="Only this agent's entries.", autocompletion=complete.agents)
]
OfDesktop = Annotated[
    str | None, typer.Option("--desktop", help="Only this desktop's entries.", autocompletion=complete.desktops)
]
What = Annotated[str | None, typer.Option("--what", help="Only entries of this kind, as act or lease.granted.")]


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(app, "show", "cu-fleet audit show", "cu-fleet audit show --lease ls_3k9m2c7d1x --limit 200 --json")
def show(
    lease: OfLease = None,
    agent: OfAgent = None,
    desktop: OfDesktop = None,
    what: What = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10000, help="How many of the newest.")] = 50,
    as_json: Json = False,
) -> None:
    """Show the newest entries: who did what, on which desktop, with what result."""
    wanted = given(lease=lease, agent=agent, desktop=desktop, what=what)

    async def work(wire: connect.Wire) -> list[dict[str, Any]]:
        after = 0
        if not wanted:
            status = await connect.ask(wire, "GET", "/v1/status")
            after = max(0, status["audit"]["entries"] - limit)
        newest: deque[dict[str, Any]] = deque(maxlen=limit)
        async for entry in connect.lines(wire, "GET", "/v1/audit", after=after or None, **wanted):
            newest.append(entry)
        return list(newest)

    entries = connect.run(work)
    if as_json:
        return output.document({"entries": entries})
    rows = [_row(entry) for entry in entries]
    empty = "No such entries. All of them: cu-fleet audit export"
    output.table(["seq", "at", "who", "what", "lease", "desktop", "gen", "result", "detail"], rows, empty=empty)
    return None


def _row(entry: dict[str, Any]) -> list[output.Cell]:
    took = f"{entry['seconds'] * 1000:.0f} ms" if entry["seconds"] is not None else None
    result = " ".join(filter(None, [entry["result"], took]))
    what = (
        entry["seq"],
        entry["at_iso"],
        entry["who"],
        entry["what"],
        entry["lease"],
        entry["desktop"],
        entry.get("generation"),
    )
    return [*what, result, _detail(entry)]


def _detail(entry: dict[str, Any]) -> str:
    parts = [json.dumps(entry["action"], ensure_ascii=False)] if entry["action"] else []
    parts += [f"frame: {sha256[:16]}" for sha256 in entry.get("frames") or ()]  # for `frames get`
    parts += [f"why: {entry['intent']}"] if entry["intent"] else []
    parts += [f"{name}={value}" for name, value in (entry["facts"] or {}).items() if value not in (None, [])]
    return " ".join(parts)


@command(app, "verify", "cu-fleet audit verify", "cu-fleet audit verify --json")
def verify(as_json: Json = False) -> None:
    """Prove that no entry was changed, removed, moved or cut off."""
    answer = connect.get("/v1/audit/verify")
    if as_json:
        output.document(answer)
    else:
        output.say(f"the audit record is whole: {answer['entries']} entries, unchanged and in order")


@command(
    app,
    "export",
    "cu-fleet audit export > audit.jsonl",
    "cu-fleet audit export -o audit.jsonl --agent codex-a",
)
def export(
    file: Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write there instead.")] = None,
    lease: OfLease = None,
    agent: OfAgent = None,
    desktop: OfDesktop = None,
    what: What = None,
    as_json: Json = False,
) -> None:
    """Write all entries as JSON lines; with --json, as one document."""
    wanted = given(lease=lease, agent=agent, desktop=desktop, what=what)
    if as_json and file is None:
        return output.document({"entries": connect.run(lambda wire: _all(wire, wanted))})
    count = connect.run(lambda wire: _write(wire, wanted, file))
    if as_json:
        output.document({"file": str(file), "entries": count})
    elif file is not None:
        output.note(f"{count} entries written to {file}")
    return None


async def _all(wire: connect.Wire, wanted: dict[str, object]) -> list[dict[str, Any]]:
    return [entry async for entry in connect.lines(wire, "GET", "/v1/audit", **wanted)]


async def _write(wire: connect.Wire, wanted: dict[str, object], file: Path | None) -> int:
    if file is None:
        return await _copy(wire, wanted, sys.stdout)
    try:
        with file.open("w", encoding="utf-8") as to:
            return await _copy(wire, wanted, to)
    except OSError as error:
        raise UnavailableError(f"{file} cannot be written: {error.strerror}", code="not_writable") from None


async def _copy(wire: connect.Wire, wanted: dict[str, object], to: IO[str]) -> int:
    count = 0
    async for entry in connect.lines(wire, "GET", "/v1/audit", **wanted):
        to.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")
        count += 1
    return count
