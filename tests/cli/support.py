"""Calling `cu-fleet` as people and programs do: in this process for speed, or as a process of its own."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cu_fleet.cli import app

STARTED: list["subprocess.Popen[bytes]"] = []
TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str
    raw: bytes = b""

    @property
    def json(self) -> Any:
        """Standard output, which must be exactly one JSON document."""
        return json.loads(self.out)


def cli(*words: str, env: dict[str, str | None] | None = None, stdin: bytes | None = None) -> Ended:
    """A command in this process."""
    result = CliRunner().invoke(app, list(words), env=env, input=stdin, prog_name="cu-fleet")
    return Ended(result.exit_code, result.stdout, result.stderr, result.stdout_bytes)


def start(*words: str, env: dict[str, str] | None = None, **more: Any) -> "subprocess.Popen[bytes]":
    """A command as a process of its own, with nothing of this one's CU_FLEET_* settings but `env`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("CU_FLEET_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cu_fleet", *words],
        cwd=TOP,
        env={**clean, **(env or {})},
        preexec_fn=_hear_interrupts,  # noqa: PLW1509 -- it does nothing that threads could disturb
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **more},
    )
    STARTED.append(process)
    return process


def _hear_interrupts() -> None:
    """A shell that runs the tests in the background has told its children to ignore ^C, and nohup a hang-up."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def end_all() -> None:
    """What a test that failed left running."""
    while STARTED:
        process = STARTED.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()


def finished(process: "subprocess.Popen[bytes]", timeout: float = 30.0) -> Ended:
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
        STARTED.remove(process)
    return Ended(process.returncode, out.decode("utf-8", "replace"), err.decode(), out)
