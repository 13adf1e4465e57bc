"""`cu-fleet lease`: ask for desktops, see who holds what, and supervise."""

from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import Json, LeaseId, Profile, Reason, Ttl, Wait, command, given, group, seconds
from cu_fleet.model.errors import InvalidError

app = group("lease", "Ask for desktops, see who holds what, and supervise.")


def register(root: typer.Typer) -> None:
    root.add_typer(app)


@command(
    app,
    "acquire",
    "cu-fleet lease acquire --agent codex-a --profile local",
    "cu-fleet lease acquire -a codex-a -p local --desktop finance --resource browser:bank --ttl 30m --wait 5m",
    "cu-fleet lease acquire -a codex-a -p local --view 1024 --no-wait --json",
)
def acquire(
    profile: Profile,
    agent: Annotated[
        str | None,
        typer.Option(
            "--agent", "-a", help="Who it is for; an agent's own token knows.", autocompletion=complete.agents
        ),
    ] = None,
    desktop: Annotated[
        str | None,
        typer.Option(
            "--desktop",
            metavar="NAME",
            help="One particular, lasting desktop; without it any clean one.",
            autocompletion=complete.desktop_names,
        ),
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option("--resource", metavar="R", help="A named thing nobody else may hold meanwhile; repeatable."),
    ] = None,
    ttl: Ttl = None,
    wait: Wait = "60s",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Be refused at once if somebody else holds it.")] = False,
    view: Annotated[
        int | None,
        typer.Option(
            "--view", metavar="N", min=16, help="Longest edge of the pictures it is shown; none: the profile's."
        ),
    ] = None,
    request_id: Annotated[
        str | None, typer.Option("--request-id", help="Asking again with the same id returns the same lease.")
    ] = None,
    show_token: Annotated[
        bool, typer.Option("--show-token", help="Print the lease's token too; --json always has it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Get a desktop for an agent, waiting in line for it if need be.

    While it waits, its place in line and who holds the desktop are shown on standard error. When the time is up, or on
    ^C, the request is withdrawn. The lease lives for its time, and every action renews it.
    """
    patience = 0.0 if no_wait else seconds("--wait", wait, forever=None)
    body = given(
        agent=agent,
        profile=profile,
        desktop=desktop,
        resources=resource or None,
        ttl=seconds("--ttl", ttl),
        view=view,
        request_id=request_id,
    )
    granted = connect.run(lambda wire: _acquire(wire, {**body, "wait": patience}, patience))
    if as_json:
        output.document(granted)
    else:
        _introduce(granted, show_token)


async def _acquire(wire: connect.Wire, body: dict[str, object], wait: float | None) -> dict[str, Any]:
    from cu_fleet.cli.acquire import acquire as ask_and_wait

    return await ask_and_wait(wire, body, wait)


def _introduce(view: dict[str, Any], show_token: bool) -> None:
    lease, until = view["lease"], output.clock(view["expires_at"])
    where = f'"{view["desktop_name"]}" ({view["desktop"]})' if view["desktop_name"] else view["desktop"]
    output.say(f"lease {lease}: agent {view['agent']} has desktop {where} until {until}, longer with every action")
    click = f'{{"type": "click", "x": {view["width"] // 2}, "y": {view["height"] // 2}}}'
    lines = {
        "screen": f"{_screen(view)}, profile {view['profile']}, generation {view['generation']}",
        "with it": ", ".join(view["resources"]),
        "look": f"cu-fleet screenshot {lease} -o screen.png",
        "act": f"cu-fleet act {lease} '{click}'",
        "end": f"cu-fleet lease release {lease}",
        "token": "" if show_token else "add --show-token, or read it from --json",
    }
    output.facts(lines)
    if show_token:
        output.say(f"export CU_FLEET_URL={view['url']}\nexport CU_FLEET_TOKEN={view['token']}")


@command(app, "list", "cu-fleet lease list", "cu-fleet lease list --all --agent codex-a --json")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", help="Only this agent's.", autocompletion=complete.agents)
    ] = None,
    as_json: Json = False,
) -> None:
    """Show who holds which desktop, until when, and who waits."""
    answer = connect.get("/v1/leases", all=1 if everything else None, agent=agent)
    if as_json:
        return output.document(answer)
    rows = [_row(view) for view in answer["leases"]]
    empty = "No agent holds or waits for a desktop. Try: cu-fleet lease acquire --agent a --profile local"
    output.table(["lease", "agent", "desktop", "profile", "state", "left", "waiters", "reason"], rows, empty=empty)
    return None


def _row(view: dict[str, Any]) -> list[output.Cell]:
    waiting, asks = view["state"] == "waiting", view.get("approvals")
    control = view["control"] if view["state"] == "active" and view["control"] != "agent" else "asking" if asks else ""
    return [
        view["lease"],
        view["agent"],
        view["desktop_name"] or view["desktop"],
        view["profile"],
        f"{view['state']}/{control}" if control else view["state"],
        output.span(view["remaining"]),
        view["waiters"] or "",
        (view.get("message") if waiting else None) or view["reason"] or _asks(view),
    ]


def _asks(view: dict[str, Any]) -> str:
    asks = view.get("approvals") or ()
    return f"waits for a person's answer: cu-fleet approval show {asks[0]}" if asks else ""


@command(app, "show", "cu-fleet lease show ls_3k9m2c7d1x", "cu-fleet lease show ls_3k9m2c7d1x --json")
def show(lease: LeaseId, as_json: Json = False) -> None:
    """Show one lease: its state, its clock, its desktop, and why it ended."""
    view = connect.run(lambda wire: connect.lease(wire, lease))
    _answer(view, as_json)


@command(app, "renew", "cu-fleet lease renew ls_3k9m2c7d1x", "cu-fleet lease renew ls_3k9m2c7d1x --ttl 2h")
def renew(lease: LeaseId, ttl: Ttl = None, as_json: Json = False) -> None:
    """Give a lease its full time again, from now on."""
    view = _tell(lease, "renew", given(ttl=seconds("--ttl", ttl)))
    _answer(view, as_json, f"lease {view['lease']} lives until {output.clock(view['expires_at'])}")


@command(app, "release", "cu-fleet lease release ls_3k9m2c7d1x")
def release(lease: LeaseId, as_json: Json = False) -> None:
    """Give a desktop back, or leave the line. It is rolled back before anyone else gets it."""
    view = _tell(lease, "release", {})
    _answer(view, as_json, f"lease {view['lease']} of agent {view['agent']} is {view['state']}")


@command(app, "pause", "cu-fleet lease pause ls_3k9m2c7d1x --reason 'wait for the invoice'")
def pause(
    lease: LeaseId,
    reason: Reason = None,
    no_looking: Annotated[
        bool, typer.Option("--no-looking", help="The agent may not take screenshots either.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Hold an agent's input back at once; its screen and its programs go on, its clock stands still."""
    view = _tell(lease, "pause", given(reason=reason, looking=False if no_looking else None))
    _answer(view, as_json, f"lease {view['lease']} is paused; go on with: cu-fleet lease resume {view['lease']}")


@command(app, "resume", "cu-fleet lease resume ls_3k9m2c7d1x")
def resume(lease: LeaseId, as_json: Json = False) -> None:
    """Let a paused agent go on, or hand it back a desktop a person had taken over."""
    view = _tell(lease, "resume", {})
    _answer(view, as_json, f"lease {view['lease']} goes on until {output.clock(view['expires_at'])}")


@command(app, "take", "cu-fleet lease take ls_3k9m2c7d1x --reason 'I will solve the captcha'")
def take(lease: LeaseId, reason: Reason = None, as_json: Json = False) -> None:
    """Take a desktop over yourself: the agent is told and waits, until you resume its lease."""
    view = _tell(lease, "take", given(reason=reason))
    _answer(view, as_json, f"lease {view['lease']} is yours; hand it back with: cu-fleet lease resume {view['lease']}")


@command(
    app,
    "revoke",
    "cu-fleet lease revoke ls_3k9m2c7d1x --reason 'wrong account'",
    "cu-fleet lease revoke ls_3k9m2c7d1x --bar forever --snapshot",
)
def revoke(
    lease: LeaseId,
    reason: Reason = None,
    bar: Annotated[
        str,
        typer.Option("--bar", metavar="TIME", help="How long the agent may not lease again: 10m, none or forever."),
    ] = "10m",
    snapshot: Annotated[bool, typer.Option("--snapshot", help="Save the desktop as it is, as evidence.")] = False,
    as_json: Json = False,
) -> None:
    """End a lease now: nothing more reaches the screen, its token only hears why, the desktop is rolled back."""
    if bar not in ("none", "forever"):
        seconds("--bar", bar, none=None, forever=None)
    view = _tell(lease, "revoke", given(reason=reason, bar=bar, snapshot=snapshot or None))
    barred = "" if bar == "none" else f", who may not lease {'again' if bar == 'forever' else f'for {bar}'}"
    _answer(view, as_json, f"lease {view['lease']} is revoked from agent {view['agent']}{barred}")


@command(
    app,
    "reassign",
    "cu-fleet lease reassign ls_3k9m2c7d1x --to codex-b --clean",
    "cu-fleet lease reassign ls_3k9m2c7d1x --to codex-b --as-is --reason 'carries on with the form'",
)
def reassign(
    lease: LeaseId,
    to: Annotated[str, typer.Option("--to", help="The agent who gets it.", autocompletion=complete.agents)],
    clean: Annotated[bool, typer.Option("--clean", help="Roll the desktop back first.")] = False,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Hand it over as it stands, with its files and resources.")
    ] = False,
    reason: Reason = None,
    ttl: Ttl = None,
    as_json: Json = False,
) -> None:
    """Hand a desktop to another agent, under a new lease, generation and token. Say in which state."""
    if clean == as_is:
        raise InvalidError(
            "reassign needs one of --clean and --as-is",
            remedy="--clean rolls the desktop back first; --as-is hands over the first agent's files and logins",
            code="usage",
        )
    body = given(to=to, mode="clean" if clean else "as-is", reason=reason, ttl=seconds("--ttl", ttl))
    view = _tell(lease, "reassign", body)
    state = "rolled back to clean" if clean else "as it stood, files and logins included"
    _answer(view, as_json, f"lease {view['lease']}: agent {view['agent']} has the desktop, {state}")


def _tell(lease: str, verb: str, body: dict[str, object]) -> dict[str, Any]:
    async def work(wire: connect.Wire) -> dict[str, Any]:
        name = await connect.lease_id(wire, lease)
        return dict(await connect.ask(wire, "POST", connect.path("leases", name, verb), body))

    return connect.run(work)


def _answer(view: dict[str, Any], as_json: bool, sentence: str = "") -> None:
    if as_json:
        output.document(view)
    elif sentence:
        output.say(sentence)
    else:
        output.facts(_known(view))


def _screen(view: dict[str, Any]) -> str:
    """The size that coordinates are of, and the whole one if it is shown smaller."""
    if not view["width"]:
        return ""
    whole = f" (of {view['screen_width']}x{view['screen_height']})" if view.get("scale", 1) != 1 else ""
    return f"{view['width']}x{view['height']}{whole}"


def _known(view: dict[str, Any]) -> dict[str, output.Cell]:
    return {
        "lease": view["lease"],
        "agent": view["agent"],
        "state": view["state"],
        "control": view["control"],
        "reason": view["reason"],
        "by": view["by"],
        "desktop": view["desktop"],
        "name": view["desktop_name"],
        "profile": f"{view['profile']} ({view['backend']})",
        "screen": _screen(view),
        "generation": view["generation"],
        "resources": ", ".join(view["resources"]),
        "asked": view["asked_at"],
        "granted": view["granted_at"],
        "expires": view["expires_at"],
        "left": output.span(view["remaining"]),
        "ended": view["ended_at"],
        "place": view.get("place"),
        "waits for": view.get("message"),
        "asks": ", ".join(view.get("approvals") or ()),
        "waiters": view["waiters"] or None,
        "watched by": "; ".join(map(_watcher, view.get("watchers") or ())),
    }


def _watcher(watcher: dict[str, Any]) -> str:
    may = "in control" if watcher["control"] else "looking"
    return f"{watcher['who']} since {output.clock(watcher['since'])}, {may} ({watcher['way']})"
