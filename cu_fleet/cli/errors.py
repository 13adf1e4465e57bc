"""How a command ends: exit codes, and a refusal in words and as a document.

0 done, 1 failed, 2 wrong usage, 3 denied or in conflict, 4 waited too long, 5 not found, 6 the lease is paused,
revoked or over: `FleetError.exit_code` says which. ^C ends with 130, SIGTERM with 143. Under `--json` a refusal is the
one JSON document on standard output as well, so that a program never has to read sentences.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from cu_fleet.cli import output
from cu_fleet.model.errors import FleetError, InvalidError

INTERRUPTED, TERMINATED = 130, 143


class FleetGroup(TyperGroup):
    """The root of the command tree: whatever a command raises becomes words, a document and an exit code here."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        words = list(sys.argv[1:] if args is None else args)

        def run() -> Any:
            return super(FleetGroup, self).main(words, prog_name, complete_var, False, windows_expand_args, **extra)

        return ended(run, asks_json(words)) if standalone_mode else run()

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            raise typer.Exit(_reader_left()) from None
        return result


def ended(run: Callable[[], Any], as_json: bool) -> NoReturn:
    """Run a command to its end, and leave with its exit code."""
    try:
        code = run()
    except Exception as error:  # noqa: BLE001 -- the one place where everything unforeseen is told
        code = told(error, as_json)
    if code == INTERRUPTED:
        told(InterruptedByUserError(), as_json)
    sys.exit(code if isinstance(code, int) else 0)


class InterruptedByUserError(FleetError):
    exit_code = INTERRUPTED
    default_code = "interrupted"

    def __init__(self) -> None:
        super().__init__("interrupted")


def asks_json(arguments: Sequence[str]) -> bool:
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in own


def told(error: Exception, as_json: bool) -> int:
    """Show a refusal on standard error, and as a document; returns the exit code."""
    if isinstance(error, typer.Abort):
        return INTERRUPTED
    refusal = as_refusal(error)
    output.complain(refusal.what, refusal.remedy)
    if as_json:
        output.document(problem(refusal))
    return refusal.exit_code


def problem(error: FleetError) -> dict[str, object]:
    return {**error.facts, "error": error.code, "message": error.what, "remedy": error.remedy}


def as_refusal(error: Exception) -> FleetError:
    if isinstance(error, FleetError):
        return error
    if (usage := getattr(error, "format_message", None)) is not None:
        return _usage(error, usage())
    traceback.print_exception(error, file=sys.stderr)
    return FleetError(
        f"cu-fleet failed in a way nobody foresaw: {type(error).__name__}: {error}",
        remedy="please report it with the lines above",
        code="internal",
    )


def _usage(error: Exception, message: str) -> FleetError:
    """A wrong option or argument, as Typer found it."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # the help itself is on standard output already
        return InvalidError("", code="usage")
    path = context.command_path if context else "cu-fleet"
    return InvalidError(message, remedy=f"see {path} --help", code="usage")


def _reader_left() -> int:
    """Whoever read our output closed it (`| head`): nothing is wrong, and Python shall not complain at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0
