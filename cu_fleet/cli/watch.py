"""`cu-fleet lease watch`: let a VNC viewer or a browser in, once."""

import os
import shutil
import subprocess
from typing import Annotated, Any

import typer

from cu_fleet.cli import connect, lease, output
from cu_fleet.cli.common import Json, LeaseId, command, given, seconds
from cu_fleet.model.errors import InvalidError, UnavailableError

_VIEWERS = ("xtigervncviewer", "vncviewer")
_NO_PAGE = "apt-get install --no-install-recommends novnc, on the controller's machine"


def register(_: typer.Typer) -> None:
    command(
        lease.app,
        "watch",
        "cu-fleet lease watch ls_3k9m2c7d1x",
        "cu-fleet lease watch ls_3k9m2c7d1x --control --open",
        "cu-fleet lease watch ls_3k9m2c7d1x --web --for 5m",
    )(watch)


def watch(
    lease: LeaseId,
    control: Annotated[
        bool, typer.Option("--control", help="Pointer, keys and clipboard too, on record under your name.")
    ] = False,
    web: Annotated[bool, typer.Option("--web", help="Print a link for a browser; needs the package novnc.")] = False,
    open_it: Annotated[
        bool, typer.Option("--open", help="Start the VNC viewer that is installed, and wait for its end.")
    ] = False,
    within: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long the ticket waits for its viewer, up to 10m.")
    ] = "60s",
    as_json: Json = False,
) -> None:
    """Let one VNC viewer watch a desktop: its address, and a password that opens it once.

    Any viewer will do: on the controller's machine by a port of loopback or a unix socket, in a browser by the link of
    --web. Any number may watch; each needs a ticket of its own. Without --control a viewer only looks: what it sends is
    dropped, and it gets no clipboard.

    With --control you act beside the agent, by turns; after cu-fleet lease take only you do. A pause stops your input
    too. When the lease ends or changes hands, viewers are closed at once.
    """
    if web and open_it:
        raise InvalidError("--web prints a link and --open starts a viewer; choose one", code="usage")
    viewer = _viewer() if open_it else ""
    body = given(control=control or None, ttl=seconds("--for", within))
    ticket = connect.run(lambda wire: _ticket(wire, lease, body))
    if web and not ticket["web_url"]:
        raise UnavailableError("there is no page for a browser", remedy=_NO_PAGE, code="no_novnc")
    if as_json:
        output.document(ticket)
    elif web:
        output.say(ticket["web_url"])
    elif not open_it:
        _introduce(ticket)
    if open_it:
        code = _run(viewer, ticket)
        _tell_the_end(connect.run_if_up(lambda wire: connect.lease(wire, ticket["lease"])))
        raise typer.Exit(code)


async def _ticket(wire: connect.Wire, name: str, body: dict[str, object]) -> dict[str, Any]:
    found = await connect.lease_id(wire, name)
    return dict(await connect.ask(wire, "POST", connect.path("leases", found, "watch"), body))


def _introduce(ticket: dict[str, Any]) -> None:
    may = "look and act" if ticket["control"] else "look"
    output.say(
        f"one viewer may {may} at lease {ticket['lease']}, if it comes before {output.clock(ticket['expires_at'])}"
    )
    address = f"{ticket['host']}::{ticket['port']}"
    output.facts(
        {
            "address": address,
            "password": ticket["ticket"],
            "socket": ticket["socket"],
            "websocket": ticket["ws_url"],
            "for example": f"VNC_PASSWORD={ticket['ticket']} {_VIEWERS[0]} {address}",
        }
    )


def _tell_the_end(view: dict[str, Any] | None) -> None:
    """A VNC viewer cannot say why it was closed."""
    if view is None:
        output.note("the controller has stopped")
    elif view["state"] != "active":
        why = ": ".join(filter(None, (f"by {view['by']}" if view["by"] else "", view["reason"])))
        output.note(f"lease {view['lease']} was {view['state']} {why}".rstrip())


def _viewer() -> str:
    found = next(filter(None, map(shutil.which, _VIEWERS)), None)
    if found is None:
        raise UnavailableError(
            f"no VNC viewer is installed: neither {' nor '.join(_VIEWERS)}",
            remedy="apt-get install tigervnc-viewer, or use another viewer, or --web",
            code="no_viewer",
        )
    return found


def _run(viewer: str, ticket: dict[str, Any]) -> int:
    """The password goes by the environment, which others on this machine cannot read as they can a command line."""
    words = [viewer, *([] if ticket["control"] else ["-ViewOnly"]), f"{ticket['host']}::{ticket['port']}"]
    output.note(f"the ticket, should the viewer ask for a password: {ticket['ticket']}")
    return subprocess.run(words, env={**os.environ, "VNC_PASSWORD": ticket["ticket"]}, check=False).returncode
