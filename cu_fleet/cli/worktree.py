"""`cu-fleet worktree`: what runs with a worktree of their own have left behind."""

import sys
from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import Json, Reason, command, given, group, seconds

app = group("worktree", "What runs of Codex with a worktree of their own left behind: look, merge, discard.")

WorktreeId = Annotated[
    str, typer.Argument(metavar="WORKTREE", help="A worktree's id.", autocompletion=complete.worktrees)
]


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(app, "list", "cu-fleet worktree list", "cu-fleet worktree list --all --json")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are gone.")] = False,
    as_json: Json = False,
) -> None:
    """Show worktrees: those in use, those that wait for a person, and what they take of the disk."""
    answer = connect.get("/v1/worktrees", all=1 if everything else None)
    if as_json:
        return output.document(answer)
    columns = ["worktree", "agent", "state", "changes", "review", "into", "size", "until", "approval", "note"]
    empty = "There are no worktrees. Begin one: cu-fleet codex --worktree BASE -- exec …"
    output.table(columns, [_row(view) for view in answer["worktrees"]], empty=empty)
    if answer["worktrees"]:
        output.note(f"{output.size(answer['size_bytes'])} on the disk")
    return None


def _row(v: dict[str, Any]) -> list[output.Cell]:
    state = v["outcome"] if v["state"] == "gone" else v["state"]
    size = output.size(v["size_bytes"]) if v["size_bytes"] else ""
    changes = changed(v) if v["tree"] else ""
    return [
        v["worktree"],
        v["agent"],
        state,
        changes,
        v["verdict"],
        v["into"],
        size,
        v["until"],
        v["approval"],
        v["problem"],
    ]


def changed(view: dict[str, Any]) -> str:
    return f"{view['files']} files +{view['insertions']} -{view['deletions']}"


@command(app, "show", "cu-fleet worktree show wt_3k9m2c7d1x", "cu-fleet worktree show wt_3k9m2c7d1x --json")
def show(worktree: WorktreeId, as_json: Json = False) -> None:
    """Show one: who changed what for which end, what the checks said, and the diff, as Markdown."""

    async def work(wire: connect.Wire) -> tuple[dict[str, Any], str]:
        view = dict(await connect.ask(wire, "GET", connect.path("worktrees", worktree)))
        has = view["tree"] and view["state"] != "gone" and not as_json
        return view, await connect.text(wire, connect.path("worktrees", worktree, "summary")) if has else ""

    view, text = connect.run(work)
    if as_json:
        output.document(view)
    elif text:
        plain(text)
        output.note(f"it lies in {view['path']}, until {view['until']}")
    else:
        output.facts({name: value for name, value in view.items() if not isinstance(value, list | dict)})


@command(app, "diff", "cu-fleet worktree diff wt_3k9m2c7d1x | less", "cu-fleet worktree diff wt_3k9m2c7d1x --json")
def diff(worktree: WorktreeId, as_json: Json = False) -> None:
    """Show all that would be merged."""
    text = connect.run(lambda wire: connect.text(wire, connect.path("worktrees", worktree, "diff")))
    if as_json:
        output.document({"worktree": worktree, "diff": text})
    else:
        plain(text)


def plain(text: str) -> None:
    """A terminal obeys nothing of it; a program has it as it is."""
    if sys.stdout.isatty():
        output.say(text.expandtabs(4))
    else:
        sys.stdout.write(text)


@command(
    app, "merge", "cu-fleet worktree merge wt_3k9m2c7d1x", "cu-fleet worktree merge wt_3k9m2c7d1x --reason 'reads well'"
)
def merge(worktree: WorktreeId, reason: Reason = None, as_json: Json = False) -> None:
    """Approve it: what was staged is committed in the agent's name and merged.

    It is merged as it was when its lease ended, and as `show` and `diff` show it. Nothing is changed if it conflicts,
    if its target is checked out with changes that are not committed, or if the target is protected: then the work is
    committed on its own branch, to open a pull request from.
    """
    view = connect.post(connect.path("worktrees", worktree, "merge"), given(reason=reason))
    if as_json:
        output.document(view)
    else:
        output.say(f"worktree {worktree} is merged into {view['into']}, which is at {view['merged'][:12]} now")


@command(app, "discard", "cu-fleet worktree discard wt_3k9m2c7d1x", "cu-fleet worktree discard wt_3k9m2c7d1x --json")
def discard(worktree: WorktreeId, as_json: Json = False) -> None:
    """Give it up: its folder and its branch go. A branch that somebody has gone on with stays."""

    async def work(wire: connect.Wire) -> Any:
        return (await wire.call("DELETE", connect.path("worktrees", worktree), patience=connect.LONG)).json()

    view = connect.run(work)
    if as_json:
        output.document(view)
    else:
        output.say(f"worktree {worktree} is discarded")


@command(app, "prune", "cu-fleet worktree prune --older 7d", "cu-fleet worktree prune --older 0s --json")
def prune(
    older: Annotated[str, typer.Option("--older", metavar="TIME", help="What has waited for so long, as 12h or 7d.")],
    as_json: Json = False,
) -> None:
    """Discard all that have waited for a person for so long."""
    answer = connect.post("/v1/worktrees/prune", {"older": seconds("--older", older)})
    if as_json:
        output.document(answer)
    else:
        count = len(answer["worktrees"])
        output.say(f"{count} worktrees are discarded, {output.size(answer['size_bytes'])} freed")
