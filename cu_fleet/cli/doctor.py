"""`cu-fleet doctor`: what this machine has and lacks, and mending it. Works before anything else does."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from cu_fleet.cli import output
from cu_fleet.cli.common import Json, command
from cu_fleet.model.errors import FleetError, UnavailableError

MINUTES = 20 * 60.0  # how long one command that mends something may take


def register(root: typer.Typer) -> None:
    examples = ("cu-fleet doctor", "cu-fleet doctor --fix", "cu-fleet doctor --json")
    command(root, "doctor", *examples, rich_help_panel="The controller")(doctor)


def doctor(
    fix: Annotated[bool, typer.Option("--fix", help="Run the commands that mend what is missing, as root.")] = False,
    as_json: Json = False,
) -> None:
    """Say what is missing on this machine and which command mends it; with --fix, run them.

    Ends with 1 if something that desktops need is missing. What is optional is told with what is lost without it.
    """
    from cu_fleet.cli.root import checks
    from cu_fleet.settings import read_settings

    settings = read_settings()
    found = checks(settings)
    tried: list[object] = []
    while fix and (commands := _mending(found)) and commands not in tried:  # what is mended lets more be seen
        mend(commands)
        tried.append(commands)
        found = checks(settings)
    missing = [check.name for check in found if check.needed and not check.ok]
    if as_json:
        output.document({"ok": not missing, "checks": [_json(check) for check in found]})
    else:
        output.table(
            ["check", "state", "detail"], [[c.name, _state(c), c.detail] for c in found], empty="Nothing to check."
        )
        _advise(found, missing)
    if missing:
        raise typer.Exit(1)


def _mending(found: Sequence[Any]) -> list[tuple[str, ...]]:
    return [command for check in found if not check.ok for command in check.fix]


def _state(check: Any) -> str:
    return "ok" if check.ok else "missing" if check.needed else "optional"


def _json(check: Any) -> dict[str, Any]:
    return {**asdict(check), "state": _state(check), "fix": [shlex.join(as_root(command)) for command in check.fix]}


def _advise(found: Sequence[Any], missing: list[str]) -> None:
    commands = unique(_mending(found))
    if commands:
        output.say("\ncu-fleet doctor --fix would run:")
        for words in commands:
            output.say(f"  {shlex.join(as_root(words))}")
    if missing:
        output.note(f"missing: {', '.join(missing)}")


def unique(commands: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(commands))


def as_root(words: Sequence[str]) -> list[str]:
    return list(words) if os.geteuid() == 0 else ["sudo", *words]


def mend(commands: list[tuple[str, ...]]) -> None:
    """Run each command once, in the open; one that fails is told and does not stop the others."""
    if os.geteuid() != 0 and not shutil.which("sudo"):
        raise UnavailableError(
            "mending needs root, and there is no sudo here", remedy="run as root: cu-fleet doctor --fix", code="no_root"
        )
    for words in unique(commands):
        output.note(f"+ {shlex.join(as_root(words))}")
        try:
            _run(words)
        except FleetError as error:
            output.complain(error.what, error.remedy)


def _run(words: Sequence[str]) -> None:
    quiet = as_root(["env", "DEBIAN_FRONTEND=noninteractive", *words])
    sys.stderr.flush()
    try:
        ended = subprocess.run(quiet, stdout=2, timeout=MINUTES, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(f"{shlex.join(words)} could not be run: {error}", code="fix_failed") from None
    if ended.returncode:
        raise UnavailableError(f"{shlex.join(words)} ended with {ended.returncode}", code="fix_failed")
