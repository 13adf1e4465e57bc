"""One worker of `cu-fleet run`: a desktop of its own, and what runs in it.

A command inside is begun by a small shell that leaves its process group's number, so that a signal can be passed to it
by a second command. Should we be killed, our connection ends, and the controller ends the command at once; the lease
runs out soon after.
"""

import asyncio
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cu_fleet.cli import connect, cp, output
from cu_fleet.cli.acquire import acquire
from cu_fleet.cli.holding import END_WITHIN, FROM_KEYBOARD, give_back, renew
from cu_fleet.cli.pack import Packed
from cu_fleet.cli.slot import look
from cu_fleet.model.errors import FleetError, LeaseOverError, UnavailableError

TTL = 60.0  # seconds; renewed while this process lives, and soon over should it be killed
LINGER = 1.0  # seconds that what the command left running may hold on to its output
WORK = "work"  # the folder below the desktop's home that what we bring lies in
OUT = "out"  # below ~/Shared: what comes back
_TAKEN_AWAY = ("revoked", "expired", "reassigned", "lost")
_AGAIN, _TRIES = 0.1, 50  # seconds until a command that could not hear is told again, and how often
_LONGEST = 64 << 10  # bytes of a line that waits for its end
_BEGIN = 'f=$1; cd "$HOME/$2" || exit; shift 2; echo $$ >"$f" && exec "$@"'
_SIGNAL = 'kill -s "$1" -- -"$(cat "$2")"'
_UNPACK = f'mkdir -p "$HOME/{WORK}" && exec tar -x -C "$HOME/{WORK}" -f -'


@dataclass(frozen=True)
class Wanted:
    """What every worker is to do."""

    words: Sequence[str]
    profile: str
    agent: str
    patience: float | None
    workers: int = 1
    bring: Sequence[tuple[Path, str]] = ()
    env: dict[str, str] = field(default_factory=dict)
    timeout: float | None = None
    artifacts: Path | None = None
    stdin: bool = False
    to_stderr: bool = False


class Lines:
    """A program's output as it comes; where there are several, whole lines with their worker's number."""

    def __init__(self, wanted: Wanted, number: int) -> None:
        self._prefix = f"[{number}] ".encode() if wanted.workers > 1 else b""
        self._to = {1: sys.stderr if wanted.to_stderr else sys.stdout, 2: sys.stderr}
        self._left = {1: b"", 2: b""}

    def take(self, stream: int, data: bytes) -> None:
        if self._prefix:
            *whole, self._left[stream] = (self._left[stream] + data).split(b"\n")
            if len(self._left[stream]) > _LONGEST:
                whole, self._left[stream] = [*whole, self._left[stream]], b""
            data = b"".join(self._prefix + line + b"\n" for line in whole)
        if data:
            to = self._to[stream]
            to.flush()
            to.buffer.write(data)
            to.buffer.flush()

    def end(self) -> None:
        for stream, left in self._left.items():
            if left:
                self.take(stream, b"\n")


class Worker:
    """From asking for a desktop to giving it back; `work` is what is done with it meanwhile."""

    def __init__(self, wire: connect.Wire, wanted: Wanted, number: int) -> None:
        self.wire, self.wanted, self.number = wire, wanted, number
        self.lines = Lines(wanted, number)
        self.lease: dict[str, Any] = {}
        self.told: dict[str, Any] = {"worker": number, "lease": None, "desktop": None, "exit": None, "state": None}
        self._pid = f"/tmp/.cu-fleet-run-{secrets.token_hex(8)}"  # noqa: S108  # inside
        self._running: asyncio.Task[int] | None = None
        self._task: asyncio.Task[None] | None = None
        self._passing: set[asyncio.Task[None]] = set()
        self._interrupted = 0
        self._signal: int | None = None  # that ended us before the command ran
        self._given_up = self._ending = False
        self._fetching: asyncio.Task[None] | None = None

    async def whole(self, work: "Work") -> None:
        """What goes wrong here is this worker's alone: it is told, and its exit code says so."""
        self._task, began = asyncio.current_task(), time.monotonic()
        try:
            await self._leased(work)
        except FleetError as error:
            output.complain(f"{self._name}{error.what}", error.remedy)
            code = LeaseOverError.exit_code if self.told["state"] in _TAKEN_AWAY else error.exit_code
            self.told |= {"exit": code, "error": error.code, "message": error.what}
        except asyncio.CancelledError:
            if self._signal is None and not self._given_up:
                raise
            self.told["exit"] = 128 + self._signal if self._signal else None
        self.told["seconds"] = round(time.monotonic() - began, 3)

    @property
    def _name(self) -> str:
        return f"[{self.number}] " if self.wanted.workers > 1 else ""

    async def _leased(self, work: "Work") -> None:
        wanted = self.wanted
        agent = f"{wanted.agent}-{self.number}" if wanted.workers > 1 else wanted.agent
        body: dict[str, object] = {"agent": agent, "profile": wanted.profile, "wait": wanted.patience, "ttl": TTL}
        view = self.lease = await acquire(self.wire, body, wanted.patience)
        self.told |= {"lease": view["lease"], "agent": agent, "desktop": view["desktop"], "profile": wanted.profile}
        renewing = asyncio.create_task(renew(self.wire, view["lease"], TTL), name=f"renew {view['lease']}")
        try:
            screen = f"{view['screen_width']}x{view['screen_height']}"
            output.note(f"{self._name}lease {view['lease']}: agent {agent} has desktop {view['desktop']} ({screen})")
            self.told["exit"] = await work(self)
            if wanted.artifacts:
                await self._fetched(wanted.artifacts / str(self.number) if wanted.workers > 1 else wanted.artifacts)
        finally:
            self._ending = True
            renewing.cancel()
            self.told["state"] = await give_back(self.wire, view["lease"], TTL, "it ended")

    def heard(self, number: signal.Signals) -> None:
        """A signal of ours: the command's while it runs; before that our end; afterwards that of what takes long."""
        if self._ending:
            return  # giving back is all that is left
        if self._fetching:
            self.told["exit"] = self.told["exit"] or 128 + number
            self._fetching.cancel()
        elif self._running is None:
            if self._signal is None and self._task:
                self._signal = number
                self._task.cancel()
        elif not self._running.done():
            self._interrupted += number in FROM_KEYBOARD
            if self._interrupted > 1:
                self._running.cancel()
                return
            self._passing.add(asyncio.create_task(self._pass(number), name=f"pass {number.name} on"))

    def give_up(self) -> None:
        """Stand in line no longer: without the others its desktop is of no use."""
        if not self.lease and self._task:
            self._given_up = True
            self._task.cancel()

    async def _pass(self, number: signal.Signals) -> None:
        """Tell the command; a program that stays after it was told to end is ended."""
        words = ["/bin/sh", "-c", _SIGNAL, "cu-fleet run", number.name.removeprefix("SIG"), self._pid]
        with suppress(FleetError):
            for _ in range(_TRIES):
                if not await self._run(words) or not self._running or self._running.done():
                    break
                await asyncio.sleep(_AGAIN)  # it has only just begun, and cannot hear yet
        if number not in FROM_KEYBOARD:
            await asyncio.sleep(END_WITHIN)
            if self._running:
                self._running.cancel()

    # inside

    async def inside(self) -> int:
        """The command from its start to its end, in the desktop."""
        wanted = self.wanted
        if wanted.bring:
            await self._bring()
        place = WORK if wanted.bring else "."
        argv = ["/bin/sh", "-c", _BEGIN, "cu-fleet run", self._pid, place, *wanted.words]
        env = {**wanted.env, "CU_FLEET_WORKER": str(self.number), "CU_FLEET_WORKERS": str(wanted.workers)}
        stdin = _stdin() if wanted.stdin else b""
        command = self._run(argv, self.lines.take, env=env, timeout=wanted.timeout, linger=LINGER, stdin=stdin)
        self._running = asyncio.create_task(command, name=f"worker {self.number}")
        try:
            return await asyncio.shield(self._running)
        except asyncio.CancelledError:
            if not self._running.cancelled():  # we are, by what went wrong elsewhere
                self._running.cancel()
                raise
            return 128 + signal.SIGKILL
        finally:
            self.lines.end()
            for task in self._passing:
                task.cancel()
            await asyncio.gather(self._running, *self._passing, return_exceptions=True)

    async def _bring(self) -> None:
        packed, said = Packed(self.wanted.bring), bytearray()
        code = await self._run(
            ["/bin/sh", "-c", _UNPACK], lambda _, data: said.extend(data[:2000]), stdin=aiter(packed)
        )
        packed.check()
        if code:
            why = said.decode("utf-8", "replace").strip()
            raise UnavailableError(f"the files could not be brought in: {why}", code="not_brought")

    async def _run(
        self,
        argv: list[str],
        take: Callable[[int, bytes], None] = lambda stream, data: None,
        stdin: bytes | AsyncIterator[bytes] = b"",
        **more: Any,
    ) -> int:
        from cu_fleet.client.command import Command
        from cu_fleet.client.http import given

        where = connect.path("desktops", self.lease["desktop"], "exec")
        async with Command(self.wire, where, given(argv=argv, **more), stdin) as command:
            async for stream, data in command:
                take(stream, data)
        assert command.exit_code is not None
        return command.exit_code

    async def _fetched(self, place: Path) -> None:
        self._fetching = asyncio.create_task(self._fetch(place), name=f"artifacts of {self.number}")
        try:
            await asyncio.shield(self._fetching)
        except asyncio.CancelledError:
            if not self._fetching.cancelled():
                self._fetching.cancel()
                raise
            output.note(f"{self._name}the artifacts were not all fetched")

    async def _fetch(self, place: Path) -> None:
        """What lies in ~/Shared/out, if there is such a folder."""
        tally, lease = cp.Tally(), self.lease["lease"]
        found = await look(self.wire, lease, OUT)
        if found and found["kind"] == "dir":
            await cp.folder_out(self.wire, lease, OUT, place, tally)
        self.told["artifacts"] = tally.files


async def _stdin() -> AsyncIterator[bytes]:
    while data := await cp.read_some(0):
        yield data


Work = Callable[[Worker], Awaitable[int | None]]
