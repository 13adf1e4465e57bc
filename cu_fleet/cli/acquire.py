"""Asking for a lease, and waiting for it in the open.

The request is put down at once and then watched, so that its id is known whatever happens next: a person who gives up
(^C), a caller that is ended, or a deadline that passes withdraws it, and nobody is granted a desktop they no longer
want. If the controller goes away meanwhile the request is safe with it: we go on asking for a while, but start none,
since whoever stopped it meant it.
"""

import asyncio
import contextlib
import math
import time
from typing import Any

from cu_fleet.cli import connect, output
from cu_fleet.model.errors import ConflictError, FleetError, LeaseOverError, TooLongError, UnavailableError
from cu_fleet.model.names import new_id

WATCH = 5.0  # how long one look at the queue may block; then the line shown is brought up to date
SHORT = 1.0  # a desktop that is made within this time is not worth a word
EARLY = 0.5  # how much earlier the controller's clock may say that the time is up
LATE = 10.0  # how much later than the controller we give up ourselves
GRACE = 10.0  # how long withdrawing may take
AWAY = 30.0  # how long a controller that does not answer is asked again


async def acquire(wire: connect.Wire, body: dict[str, object], wait: float | None) -> dict[str, Any]:
    """The granted lease, or the refusal in words."""
    line = output.Live()
    body = {"request_id": new_id("rq"), **body}
    view = await _put_down(wire, body)
    try:
        return await _granted(wire, view, wait, line)
    except BaseException as error:  # also when cancelled: the request must not outlive the wish
        line.clear()
        over = isinstance(error, LeaseOverError) or getattr(error, "code", "") == "not_granted"
        if not over:
            await withdraw(wire, view["lease"])
        raise
    finally:
        line.clear()


async def _put_down(wire: connect.Wire, body: dict[str, object]) -> dict[str, Any]:
    """POST the request; given up meanwhile, asking again with its request id tells which lease to withdraw."""
    try:
        return dict(await connect.ask(wire, "POST", "/v1/leases", body, hold=0))
    except asyncio.CancelledError:
        with contextlib.suppress(FleetError, TimeoutError):
            async with asyncio.timeout(GRACE):
                asked = {**body, "wait": GRACE}
                again = await connect.ask(wire, "POST", "/v1/leases", asked, start=False, hold=0)
                await withdraw(wire, again["lease"])
        raise


async def _granted(wire: connect.Wire, view: dict[str, Any], wait: float | None, line: output.Live) -> dict[str, Any]:
    began = heard = time.monotonic()
    before: dict[str, Any] = {}
    up = math.inf if wait is None else began + wait
    while view["state"] == "waiting":
        held = bool(view["holder"])
        before = {"place": view["place"], "holder": view["holder"]}
        if held or time.monotonic() > began + SHORT:
            line.show(place_in_line(view))
        if time.monotonic() > up + LATE:
            raise _too_long(view)
        try:
            view = await _look(wire, view["lease"], WATCH if held else SHORT)
            heard = time.monotonic()
        except UnavailableError:
            if time.monotonic() - heard > AWAY:
                raise
            line.show("the controller does not answer; asking again")
            await asyncio.sleep(0.5)
    if view["state"] != "active":
        raise _ended({**view, **before}, time.monotonic() > up - EARLY)
    return view


async def _look(wire: connect.Wire, lease: str, hold: float) -> dict[str, Any]:
    query = {"hold": hold, "while": "waiting"}
    return dict(await connect.ask(wire, "GET", connect.path("leases", lease), start=False, **query))


async def withdraw(wire: connect.Wire, lease: str) -> None:
    """Leave the queue, or give back what was granted at the last moment; told if that fails."""
    with contextlib.suppress(LeaseOverError, ConflictError):
        try:
            async with asyncio.timeout(GRACE):
                await connect.ask(wire, "POST", connect.path("leases", lease, "release"), {}, start=False)
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


def _ended(view: dict[str, Any], time_is_up: bool) -> FleetError:
    """Why the request is no longer waiting, though nothing was granted."""
    facts = {"lease": view["lease"], "state": view["state"], "reason": view["reason"], "by": view["by"]}
    if view["state"] == "cancelled" and view["by"] == "controller":
        if time_is_up:
            return _too_long(view)
        why = view["reason"] or "the controller gave it up"
        return UnavailableError(f"lease {view['lease']} was not granted: {why}", code="not_granted", **facts)
    why = f": {view['reason']}" if view["reason"] else ""
    by = f" by {view['by']}" if view["by"] else ""
    words = f"lease {view['lease']} was {view['state']}{by} before it could be used{why}"
    return LeaseOverError(words, code=f"lease_{view['state']}", **facts)


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
