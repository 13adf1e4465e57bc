"""Asking for a lease, and waiting for it in the open.

The request is put down at once and then watched, so that its id is known whatever happens next: a person who gives up
(^C), a caller that is ended, or a deadline that passes withdraws it, and nobody is granted a desktop they no longer
want. If the controller goes away meanwhile the request is safe with it; we ask again until the deadline.
"""

import asyncio
import contextlib
import time
from typing import Any

from cu_fleet.cli import connect, output
from cu_fleet.model.errors import ConflictError, FleetError, LeaseOverError, TooLongError, UnavailableError
from cu_fleet.model.names import new_id

WATCH = 5.0  # how long one look at the queue may block; then the line shown is brought up to date
LATE = 10.0  # how much later than the controller we give up ourselves
GRACE = 10.0  # how long withdrawing may take
AWAY = 60.0  # how long a controller that does not answer is asked again


async def acquire(wire: connect.Wire, body: dict[str, object], wait: float | None) -> dict[str, Any]:
    """The granted lease, or the refusal in words."""
    line = output.Live()
    body = {"request_id": new_id("rq"), **body}
    view = await _put_down(wire, body)
    try:
        view = await _granted(wire, view, wait, line)
    except BaseException as error:  # also when cancelled: the request must not outlive the wish
        if not isinstance(error, LeaseOverError):
            await withdraw(wire, view["lease"])
        raise
    finally:
        line.clear()
    return view


async def _put_down(wire: connect.Wire, body: dict[str, object]) -> dict[str, Any]:
    """POST the request; given up meanwhile, asking again with its request id tells which lease to withdraw."""
    try:
        return dict(await connect.ask(wire, "POST", "/v1/leases", body, hold=0))
    except asyncio.CancelledError:
        with contextlib.suppress(FleetError, TimeoutError):
            async with asyncio.timeout(GRACE):
                again = await connect.ask(wire, "POST", "/v1/leases", {**body, "wait": GRACE}, hold=0)
                await withdraw(wire, again["lease"])
        raise


async def _granted(wire: connect.Wire, view: dict[str, Any], wait: float | None, line: output.Live) -> dict[str, Any]:
    deadline = None if wait is None else time.monotonic() + wait + LATE
    heard = time.monotonic()
    while view["state"] == "waiting":
        line.show(place_in_line(view))
        now = time.monotonic()
        if deadline is not None and now > deadline:
            raise _too_long(view)
        try:
            path = connect.path("leases", view["lease"])
            view, heard = await connect.ask(wire, "GET", path, hold=WATCH, **{"while": "waiting"}), time.monotonic()
        except UnavailableError:
            if now - heard > AWAY:
                raise
            line.show("the controller does not answer; asking again")
            await asyncio.sleep(0.5)
    if view["state"] != "active":
        raise _ended(view)
    return view


async def withdraw(wire: connect.Wire, lease: str) -> None:
    """Leave the queue, or give back what was granted at the last moment; told if that fails."""
    with contextlib.suppress(LeaseOverError, ConflictError):
        try:
            async with asyncio.timeout(GRACE):
                await connect.ask(wire, "POST", connect.path("leases", lease, "release"), {})
        except (UnavailableError, TimeoutError):
            output.note(f"lease {lease} could not be withdrawn: the controller does not answer")
            output.note(f"  later: cu-fleet lease release {lease}")


def place_in_line(view: dict[str, Any]) -> str:
    """`number 2 in line; agent a holds it until 12:00:00Z`"""
    place, holder = view.get("place"), view.get("holder")
    if not holder:
        return str(view.get("message") or (f"number {place} in line" if place else "the desktop is being made ready"))
    until = f" until {output.clock(holder['until'])}" if holder.get("until") else ""
    return f"number {place} in line; agent {holder.get('agent')} holds it{until}"


def _ended(view: dict[str, Any]) -> FleetError:
    """Why the request is no longer waiting, though nothing was granted."""
    if view["state"] == "cancelled":
        return _too_long(view)
    why = f": {view['reason']}" if view.get("reason") else ""
    by = f" by {view['by']}" if view.get("by") else ""
    return LeaseOverError(
        f"lease {view['lease']} was {view['state']}{by} before it could be used{why}",
        code=f"lease_{view['state']}",
        lease=view["lease"],
        state=view["state"],
    )


def _too_long(view: dict[str, Any]) -> TooLongError:
    named = (
        f'desktop "{view["desktop_name"]}"' if view.get("desktop_name") else f"a desktop of profile {view['profile']}"
    )
    held = f" ({place_in_line(view)})" if view.get("holder") else ""
    return TooLongError(
        f"agent {view['agent']} waited too long for {named}{held}: the request is withdrawn",
        remedy="wait longer with --wait, or ask who holds what: cu-fleet lease list",
        lease=view["lease"],
        agent=view["agent"],
        holder=view.get("holder"),
    )
