"""`cu-fleet run`: a command with desktops of its own, in place of xvfb-run.

Each worker asks for its desktop by itself and begins when it has one, so two runs that want more than there is never
wait for each other. Beside them, with `--beside`, the command runs once on this machine, when all desktops are there.
Whatever the end is, every desktop is given back; killed ourselves, the command goes with us and the leases run out
within a minute.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Annotated, Any

import typer

from cu_fleet.cli import complete, connect, output
from cu_fleet.cli.common import Profile, Wait, command, seconds
from cu_fleet.cli.holding import END_WITHIN, FROM_KEYBOARD, heeding, in_foreground
from cu_fleet.cli.pack import to_bring
from cu_fleet.cli.running import Wanted, Work, Worker
from cu_fleet.model.errors import InvalidError, NotFoundError, UnavailableError

MOST = 256  # desktops of one run
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def register(root: typer.Typer) -> None:
    command(
        root,
        "run",
        "cu-fleet run -- pytest tests/gui",
        "cu-fleet run --profile docker --desktops 4 --keep-artifacts out -- ./suite.sh",
        "cu-fleet run --beside --desktops 4 -- pytest -n 4 tests/gui",
        rich_help_panel="Look and do",
    )(run)


def run(
    words: Annotated[list[str], typer.Argument(metavar="CMD", help="The command and its arguments.")],
    profile: Profile = "local",
    desktops: Annotated[
        int, typer.Option("--desktops", "-n", min=1, max=MOST, help="How many, each with a worker.")
    ] = 1,
    beside: Annotated[
        bool, typer.Option("--beside", help="Run it once, on this machine, with the leases in CU_FLEET_LEASES.")
    ] = False,
    put: Annotated[
        list[str] | None,
        typer.Option("--put", metavar="PATH", help="What to bring in. Repeatable; else the current folder."),
    ] = None,
    bare: Annotated[bool, typer.Option("--bare", help="Bring nothing in.")] = False,
    artifacts: Annotated[
        Path | None, typer.Option("--keep-artifacts", metavar="DIR", help="Where ~/Shared/out of each desktop goes.")
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="For the command inside; NAME: as it is here. Repeatable."),
    ] = None,
    timeout: Annotated[str | None, typer.Option("--timeout", metavar="TIME", help="End it after 90s, 5m…")] = None,
    agent: Annotated[
        str, typer.Option("--agent", "-a", help="Who it is. Of several, A-0, A-1, …", autocompletion=complete.agents)
    ] = "run",
    wait: Wait = "60s",
    stdin: Annotated[
        bool,
        typer.Option("--stdin/--no-stdin", help="Pass standard input on to a single one, unless it is a terminal."),
    ] = True,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON document at the end; what the command prints goes to stderr."),
    ] = False,
) -> None:
    """Run a command inside a desktop of its own, or once inside each of several.

    The current folder (or what --put says) is brought into ~/work of each desktop, where the command runs as the
    desktop's user, with DISPLAY set, its worker's number in CU_FLEET_WORKER and how many there are in
    CU_FLEET_WORKERS. What it leaves in ~/Shared/out is kept. Of several, each line of output begins with the worker's
    number.

    The exit code is 0 if all ended so, else that of the first worker, by number, that did not: its command's, 128 and
    the signal's number if that was ended by one, or ours where there was no desktop for it. Signals go to the commands;
    a second ^C ends them at once.
    """
    if beside and (put or bare or env or timeout):
        raise InvalidError("--put, --bare, --env and --timeout are for commands inside, not --beside", code="usage")
    if put and bare:
        raise InvalidError("--put and --bare: say one of them", code="usage")
    wanted = Wanted(
        words=words,
        profile=profile,
        agent=agent,
        patience=seconds("--wait", wait, forever=None),
        workers=desktops,
        bring=() if bare or beside else to_bring([Path(path) for path in put or ["."]]),
        env=_variables(env or []),
        timeout=seconds("--timeout", timeout),
        artifacts=artifacts,
        stdin=stdin and desktops == 1 and _has_stdin(),
        to_stderr=as_json,
    )
    told = connect.run(lambda wire: _whole(wire, wanted, beside=beside))
    if as_json:
        output.document(told)
    raise typer.Exit(told["exit"])


async def _whole(wire: connect.Wire, wanted: Wanted, *, beside: bool) -> dict[str, Any]:
    await connect.ask(wire, "GET", connect.path("profiles", wanted.profile))  # refused once, not by each worker
    return await _Team(wire, wanted).whole(beside=beside)


def _variables(given: list[str]) -> dict[str, str]:
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not _VARIABLE.fullmatch(name):
            raise InvalidError(f"--env: expected NAME or NAME=VALUE, found {one!r}", code="usage")
        if equals or name in os.environ:
            found[name] = value if equals else os.environ[name]
    return found


def _has_stdin() -> bool:
    try:
        return not os.isatty(0) and os.fstat(0) is not None
    except OSError:
        return False


class _Team:
    """All workers of one run, and the program beside them, if that is wanted."""

    def __init__(self, wire: connect.Wire, wanted: Wanted) -> None:
        self._wanted = wanted
        self._workers = [Worker(wire, wanted, number) for number in range(wanted.workers)]
        self._ready = 0
        self._settled = asyncio.Event()  # all have their desktops, or one will not get it
        self._over = asyncio.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._killing: asyncio.TimerHandle | None = None

    async def whole(self, *, beside: bool) -> dict[str, Any]:
        work: Work = self._held if beside else Worker.inside
        with heeding(self._heard):
            try:
                async with asyncio.TaskGroup() as group:
                    for worker in self._workers:
                        group.create_task(self._whole(worker, work), name=f"worker {worker.number}")
                    code = await self._beside() if beside else 0
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
        told = [worker.told for worker in self._workers]
        failed = (one["exit"] for one in told if one["exit"])
        return {"exit": code or next(failed, 0), "command": list(self._wanted.words), "workers": told}

    async def _whole(self, worker: Worker, work: Work) -> None:
        try:
            await worker.whole(work)
        finally:
            self._settled.set()

    def _heard(self, number: signal.Signals) -> None:
        if self._process is None or self._over.is_set():
            for worker in self._workers:
                worker.heard(number)
        elif self._process.poll() is None and not (number in FROM_KEYBOARD and in_foreground()):
            self._process.send_signal(number)
            if number not in FROM_KEYBOARD and self._killing is None:
                self._killing = asyncio.get_running_loop().call_later(END_WITHIN, self._process.kill)

    # beside

    async def _held(self, worker: Worker) -> None:
        """A worker's part while the program runs beside: its desktop."""
        self._ready += 1
        if self._ready == self._wanted.workers:
            self._settled.set()
        await self._over.wait()

    async def _beside(self) -> int:
        """The program from its start to its end, or none if a desktop is lacking."""
        try:
            await self._settled.wait()
            if self._ready < self._wanted.workers:
                for worker in self._workers:
                    worker.give_up()
                return 0
            process = self._process = self._start()
            try:
                code = await asyncio.to_thread(process.wait)
            finally:
                if self._killing:
                    self._killing.cancel()
            return 128 - code if code < 0 else code
        finally:
            self._over.set()

    def _start(self) -> "subprocess.Popen[bytes]":
        words = list(self._wanted.words)
        if shutil.which(words[0]) is None:
            raise NotFoundError(f"{words[0]} is not on PATH", code="no_program")
        if setpriv := shutil.which("setpriv"):  # it ends with us, however we do
            words = [setpriv, "--pdeathsig", "TERM", "--", *words]
        try:
            return subprocess.Popen(words, env=self._environment(), stdout=2 if self._wanted.to_stderr else None)
        except OSError as error:
            raise UnavailableError(f"{words[0]} cannot be started: {error.strerror}", code="not_started") from None

    def _environment(self) -> dict[str, str]:
        keys = ("worker", "lease", "desktop", "token")
        leases = [{key: {**worker.lease, **worker.told}[key] for key in keys} for worker in self._workers]
        return {**os.environ, "CU_FLEET_LEASES": json.dumps(leases), "CU_FLEET_WORKERS": str(self._wanted.workers)}
