"""`cu-fleet approval`: what agents ask a person, and the answers."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import Json, Reason, command, given, group
from cu_fleet.cli.screen import write
from cu_fleet.model.errors import ConflictError, InvalidError

app = group("approval", "What agents ask a person before they act, and the answers.")

ApprovalId = Annotated[
    str, typer.Argument(metavar="APPROVAL", help="An approval's id.", autocompletion=complete.approvals)
]
OfLease = Annotated[
    str | None,
    typer.Option("--lease", metavar="LEASE", help="Only this lease's.", autocompletion=complete.leases),
]


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(app, "list", "cu-fleet approval list", "cu-fleet approval list --watch", "cu-fleet approval list --all --json")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are answered or over.")] = False,
    lease: OfLease = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Then go on, and say what is asked and answered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what waits for a person's answer, the oldest first."""
    if watch and as_json:
        raise InvalidError("--watch has no end, and --json is one document", remedy="leave one out", code="usage")

    async def work(wire: connect.Wire) -> dict[str, Any]:
        of = await connect.lease_id(wire, lease) if lease else None
        start = (await connect.ask(wire, "GET", "/v1/status"))["audit"]["entries"] if watch else 0
        answer = await connect.ask(wire, "GET", "/v1/approvals", all=1 if everything else None, lease=of)
        if not as_json:
            _table(answer["approvals"])
        if watch:
            await _follow(wire, start, of)
        return dict(answer)

    answer = connect.run(work)
    if as_json:
        output.document(answer)


def _table(views: list[dict[str, Any]]) -> None:
    columns = ["approval", "kind", "agent", "lease", "state", "left", "asks"]
    rows: list[list[output.Cell]] = [
        [v["approval"], v["kind"], v["agent"], v["lease"], v["state"], output.span(v["remaining"]), _question(v)]
        for v in views
    ]
    output.table(columns, rows, empty="Nothing waits for an answer.")


async def _follow(wire: connect.Wire, after: int, lease: str | None) -> None:
    """A line for all that happens to approvals, from after this entry of the record."""
    output.flush()
    async for entry in connect.events(wire, after):
        if entry["what"].startswith("approval.") and lease in (None, entry["lease"]):
            facts = entry["facts"]
            about = (
                f"{entry['at_iso']}  {facts['approval']}  {entry['what'].removeprefix('approval.')} by {entry['who']}"
            )
            output.say("  ".join(filter(None, [about, facts.get("reason")])))
            output.flush()


@command(app, "show", "cu-fleet approval show ap_3k9m2c7d1x", "cu-fleet approval show ap_3k9m2c7d1x -o then.png")
def show(
    approval: ApprovalId,
    file: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Write the screen as it was when it was asked.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show one in full: who asks for what and why, the very actions, and the answer.

    What the actions would type is shown while it is open, and only its length afterwards. Points are pixels of the
    whole screen, as in the picture.
    """

    async def work(wire: connect.Wire) -> dict[str, Any]:
        view = dict(await connect.ask(wire, "GET", connect.path("approvals", approval)))
        if file is not None:
            if view["frame"] is None:
                raise ConflictError(f"of approval {approval} there is no picture", code="no_picture")
            write(file, (await connect.kept(wire, view["frame"]))[1])
        return view

    view = connect.run(work)
    if as_json:
        output.document(view)
    else:
        _tell(view)


def _tell(view: dict[str, Any]) -> None:
    facts = {key: value for key, value in view["facts"].items() if "\n" not in str(value)}
    output.facts({**_known(view), **{key: _plain(value) for key, value in facts.items()}})
    for number, action in enumerate(view["actions"], 1):
        rest = {key: value for key, value in action.items() if key != "type"}
        output.say(f"{number:3}. {action['type']} {json.dumps(rest, ensure_ascii=False)}")
    for key, value in view["facts"].items():
        if key not in facts:
            output.say(f"\n{value}")
    if view["state"] == "waiting":
        output.note(f"cu-fleet approval approve {view['approval']}, or deny {view['approval']} --reason '…'")


def _known(view: dict[str, Any]) -> dict[str, output.Cell]:
    shown = f"cu-fleet frames get {view['frame'][:16]} -o then.png" if view["frame"] else ""
    return {
        "approval": view["approval"],
        "kind": view["kind"],
        "state": view["state"],
        "left": output.span(view["remaining"]),
        "lease": view["lease"],
        "agent": view["agent"],
        "desktop": view["desktop"],
        "asked": f"{view['asked_at']} by {view['asked_by']}",
        "why": view["reason"],
        **{f"check {number}": text for number, text in enumerate(_checks(view), 1)},
        "screen": shown,
        "answered": view["answered_at"],
        "by": view["by"],
        "answer": view["answer"],
        "result": _result(view),
    }


def _checks(view: dict[str, Any]) -> Iterator[str]:
    for check in view["checks"]:
        yield str(check["message"] or check["code"] or check["id"])


def _question(view: dict[str, Any]) -> str:
    return "; ".join(filter(None, [view["reason"], *_checks(view)])) or f"{len(view['actions'])} actions"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _result(view: dict[str, Any]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in (view["result"] or {}).items())


@command(
    app, "approve", "cu-fleet approval approve ap_3k9m2c7d1x", "cu-fleet approval approve ap_3k9m2c7d1x --reason ok"
)
def approve(approval: ApprovalId, reason: Reason = None, as_json: Json = False) -> None:
    """Say yes, for once: the agent may do these very actions now. A merge is made at once."""
    _answer(approval, "approve", reason, as_json)


@command(app, "deny", "cu-fleet approval deny ap_3k9m2c7d1x --reason 'that is the wrong account'")
def deny(approval: ApprovalId, reason: Reason = None, as_json: Json = False) -> None:
    """Say no, and why: the agent reads the reason."""
    _answer(approval, "deny", reason, as_json)


def _answer(approval: str, verb: str, reason: str | None, as_json: bool) -> None:
    view = connect.post(connect.path("approvals", approval, verb), given(reason=reason))
    if as_json:
        return output.document(view)
    if view["result"]:
        return output.say(f"approval {approval} is done: {_result(view)}")
    once = f": agent {view['agent']} may do it once, within {output.span(view['remaining'])}"
    output.say(f"approval {approval} is {view['state']}{once if verb == 'approve' else ''}")
    return None
