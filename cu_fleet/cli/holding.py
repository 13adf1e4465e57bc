"""Holding a lease for as long as something else runs: renewed meanwhile, given back at its end, and its signals.

The term is short, so that a lease whose holder was killed is soon over. Whatever ends us, the release is tried for a
while, also while the controller is just coming back, and what cannot be given back is told.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cu_fleet.cli import connect, output
from cu_fleet.cli.acquire import GRACE
from cu_fleet.model.errors import FleetError, LeaseOverError, UnavailableError

END_WITHIN = 10.0  # seconds that a program has after SIGTERM or SIGHUP
FROM_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, *FROM_KEYBOARD)


@contextmanager
def heeding(heard: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Signals that would end us go to `heard`, but for those we were started to ignore, as nohup has it."""
    loop = asyncio.get_running_loop()
    heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    for number in heeded:
        loop.add_signal_handler(number, heard, number)
    try:
        yield
    finally:
        for number in heeded:
            loop.remove_signal_handler(number)


def in_foreground() -> bool:
    """Whether a terminal has us in its foreground: then its ^C reached our children as well."""
    with suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False


async def renew(wire: connect.Wire, lease: str, ttl: float) -> None:
    """For as long as there is something to renew: a controller may be away, a lease paused, and come back."""
    while True:
        await asyncio.sleep(ttl / 3)
        try:
            await connect.ask(wire, "POST", connect.path("leases", lease, "renew"), {}, start=False)
        except LeaseOverError:
            return
        except FleetError:
            continue  # nothing may be printed between a program's own words; the end tells what became of the lease


async def give_back(wire: connect.Wire, lease: str, ttl: float, before: str) -> str:
    """The state it ends in, told if we did not end it, as one from before this. Asked again while it is refused."""
    why = "the controller does not answer"
    with suppress(TimeoutError):
        async with asyncio.timeout(GRACE):
            while True:
                try:
                    view = await connect.ask(wire, "POST", connect.path("leases", lease, "release"), {}, start=False)
                    if view["state"] != "released":
                        output.note(_why_over(view, before))
                    return str(view["state"])
                except LeaseOverError as error:
                    output.note(error.what)
                    return error.code.removeprefix("lease_")
                except UnavailableError:
                    await asyncio.sleep(0.5)
                except FleetError as error:
                    why = error.what
                    break
    within = output.span(ttl)
    output.note(f"lease {lease} could not be given back: {why}. It runs out within {within} of its last use")
    output.note(f"  sooner: cu-fleet lease release {lease}")
    return "unknown"


def _why_over(view: dict[str, Any], before: str) -> str:
    by, why = f" by {view['by']}" if view["by"] else "", f": {view['reason']}" if view["reason"] else ""
    return f"lease {view['lease']} was {view['state']}{by} before {before}{why}"
