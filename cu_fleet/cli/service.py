"""`cu-fleet up`, `down` and `status`: the controller itself."""

import contextlib
import os
import time
from typing import Annotated, Any

import typer

from cu_fleet.cli import connect, output
from cu_fleet.cli.common import Json, command
from cu_fleet.model.errors import FleetError, TooLongError, UnavailableError

PANEL = "The controller"
DOWN = 180.0  # how long ending all desktops may take


def register(root: typer.Typer) -> None:
    command(root, "up", "cu-fleet up", "cu-fleet up --port 9000", rich_help_panel=PANEL)(up)
    command(root, "down", "cu-fleet down", "cu-fleet down --json", rich_help_panel=PANEL)(down)
    command(root, "status", "cu-fleet status", "cu-fleet status --json", rich_help_panel=PANEL)(status)


def up(
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on (default 127.0.0.1).")] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port to listen on (default 8700; 0: any free one).")
    ] = None,
    on_demand: Annotated[bool, typer.Option("--on-demand", hidden=True)] = False,
    as_json: Json = False,
) -> None:
    """Run the controller here, in the foreground.

    Not needed as a rule: the first command that needs a controller starts one, and it stays. ^C stops serving; desktops
    and leases live on, and the next start finds them again. To end them too: cu-fleet down.
    """
    from cu_fleet.cli import root
    from cu_fleet.settings import read_settings

    settings = read_settings(host=host, port=port)

    def ready(url: str) -> None:
        if as_json:
            output.document({"running": True, "url": url, "home": str(settings.home), "pid": os.getpid()})
        else:
            output.say(f"cu-fleet serves at {url}\nhome {settings.home}")
            output.note("^C stops serving, and desktops live on; to end them too: cu-fleet down")
        output.flush()

    root.serve(settings, on_demand=on_demand, ready=ready)
    output.note("the controller has stopped")


def down(as_json: Json = False) -> None:
    """Stop the controller and everything it made: leases, desktops, and what they left behind."""
    told = connect.run_if_up(_shut_down)
    if told is not None:
        wait_for_end(told["pid"])
        _all_ended()
        ended = {"stopped": True, "desktops": told["desktops"], "leases": told["leases"]}
        words = f"stopped: {_counted(told['desktops'], 'desktop')}, {_counted(told['leases'], 'lease')}"
    else:
        ended = {"stopped": _leftovers(), "desktops": None, "leases": None}
        words = "stopped what a controller had left behind" if ended["stopped"] else "nothing is running"
    if as_json:
        output.document(ended)
    else:
        output.say(words)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


async def _shut_down(wire: connect.Wire) -> dict[str, Any]:
    status = await connect.ask(wire, "GET", "/v1/status")
    output.note("stopping the controller and its desktops")
    await connect.ask(wire, "POST", "/v1/shutdown", {})
    leases, desktops = status["leases"], sum(status["desktops"].values())
    return {"pid": status["pid"], "desktops": desktops, "leases": leases["active"] + leases["waiting"]}


def wait_for_end(pid: int) -> None:
    """Until the controller has let go of the home, which it does when nothing of its own is left, and has ended."""
    if os.environ.get("CU_FLEET_URL"):
        return
    import fcntl

    from cu_fleet.settings import default_home

    until = time.monotonic() + DOWN
    with (default_home() / "controller.lock").open() as lock:
        while time.monotonic() < until:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                _ended(pid)
                return
            time.sleep(0.05)
    raise TooLongError(
        f"the controller (process {pid}) still runs {DOWN:.0f} s after it was told to stop",
        remedy=f"its log is in {default_home()}",
        pid=pid,
    )


def _all_ended() -> None:
    """The controller leaves word of what it could not end."""
    from cu_fleet.settings import default_home

    if os.environ.get("CU_FLEET_URL"):
        return
    with contextlib.suppress(FileNotFoundError):
        said, remedy = (default_home() / "not-ended").read_text().split("\n", 1)
        raise UnavailableError(said, remedy=remedy.strip(), code="not_ended")


def _ended(pid: int) -> None:
    """Until the process is gone, or a moment has passed: it has nothing left to do but to end."""
    import select

    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            select.select([process], [], [], 5.0)
        finally:
            os.close(process)


def _leftovers() -> bool:
    """No controller runs; desktops of a killed one may."""
    from cu_fleet.cli import root
    from cu_fleet.settings import read_settings

    return root.clean_up(read_settings())


def status(as_json: Json = False) -> None:
    """Show whether a controller runs, where, and how full it is."""
    answer = connect.run_if_up(lambda wire: connect.ask(wire, "GET", "/v1/status"))
    if answer is None:
        raise _not_running(as_json)
    if as_json:
        return output.document({"running": True, **answer})
    output.facts(_words(answer))
    return None


def _not_running(as_json: bool) -> BaseException:
    from cu_fleet.settings import default_home

    if as_json:
        output.document({"running": False, "home": str(default_home())})
        return typer.Exit(1)
    return FleetError(f"no controller runs for {default_home()}", remedy="start one: cu-fleet up", code="not_running")


def _words(answer: dict[str, Any]) -> dict[str, output.Cell]:
    room, leases, desktops = answer["capacity"], answer["leases"], answer["desktops"]
    asked = answer.get("approvals", {}).get("waiting")
    stages = ", ".join(f"{count} {stage}" for stage, count in desktops.items() if count)
    reserved = f"{output.size(room['reserved_bytes'])} of {output.size(room['memory_bytes'])} reserved"
    return {
        "controller": f"{answer['url']} (pid {answer['pid']}, version {answer['version']})",
        "since": _moment(answer["started_at"]),
        "home": answer["home"],
        "database": answer["database"],
        "desktops": f"{bar(room['used'], room['desktops'])} {room['used']} of {room['desktops']}",
        "": stages,
        "memory": f"{bar(room['reserved_bytes'], room['memory_bytes'])} {reserved}",
        "leases": f"{leases['active']} active, {leases['waiting']} waiting",
        "approvals": f"{asked} wait for an answer: cu-fleet approval list" if asked else "",
        "audit": f"{answer['audit']['entries']} entries",
        "ALARM": answer["audit"]["alarm"],
    }


def _moment(at: object) -> str:
    from cu_fleet.model.view import iso

    return str(iso(at) if isinstance(at, int | float) else at)


def bar(used: float, total: float, width: int = 20) -> str:
    full = min(width, round(width * used / total)) if total else 0
    return f"[{'#' * full}{'.' * (width - full)}]"
