"""Backends that betray their controller: they die, hang, lie, or lose the desktop, exactly where a test says.

    backend = Saboteur(MemoryBackend(place, world))
    backend.at("start", DIE, after_yields=1)      # raise after the first handle was given
    backend.at("snapshots.save", LIE)             # say it was saved, and do nothing
    backend.at("stop", HANG, call=2)              # the second call never returns, until it is cancelled
    backend.at("endpoint", LIE)                   # another screen, of another size

Checkpoints are the verbs (`start`, `stop`, `endpoint`, `found`, `check`) and the abilities' methods, such as
`exec.exec` or `files.put`. A trap is sprung once unless `times` says otherwise; `sprung` lists what happened. `DIE`
before, or `after` the work is done; `VANISH` takes the desktop away first and then goes on as if nothing was.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from cu_fleet.backends.base import Backend, Check, Endpoint, Found, Saved, Spec
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile

DIE, HANG, LIE, VANISH = "die", "hang", "lie", "vanish"
CHECKPOINTS = (
    "start",
    "stop",
    "endpoint",
    "found",
    "check",
    "snapshots.save",
    "snapshots.restore",
    "snapshots.delete",
    "snapshots.saved",
    "exec.exec",
    "freeze.freeze",
    "freeze.thaw",
    "files.put",
    "files.get",
    "files.listing",
    "files.remove",
    "logs.logs",
    "meter.usage",
)
_ITERATE = {"start", "snapshots.restore", "files.get"}


@dataclass
class Trap:
    checkpoint: str
    how: str
    call: int  # sprung at the n-th call, counted from now
    after_yields: int | None  # of iterators: after this many values; None: at the start
    after: bool  # of others: when the work is done
    times: int
    calls: int = 0


class Saboteur:
    """A backend around another one. Without traps it is that other one."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.name = backend.name
        self.traps: list[Trap] = []
        self.sprung: list[tuple[str, str]] = []
        watched: dict[str, Any] = {
            name: _AbilityOf(self, name, ability)
            for name, ability in vars(backend.abilities).items()
            if ability and name not in ("network", "helper", "lacking")
        }
        self.abilities = replace(backend.abilities, **watched)

    def at(
        self,
        checkpoint: str,
        how: str,
        *,
        call: int = 1,
        after_yields: int | None = None,
        after: bool = False,
        times: int = 1,
    ) -> None:
        """Lay a trap."""
        if checkpoint not in CHECKPOINTS or how not in (DIE, HANG, LIE, VANISH):
            raise ValueError(f"no trap {how!r} at {checkpoint!r}; checkpoints are {', '.join(CHECKPOINTS)}")
        if how == LIE and checkpoint in ("exec.exec", "meter.usage"):
            raise ValueError(f"there is nothing to lie about in {checkpoint}")
        self.traps.append(Trap(checkpoint, how, call, after_yields, after, times))

    def disarm(self) -> None:
        self.traps.clear()

    # verbs

    def start(self, spec: Spec) -> AsyncIterator[Handle]:
        return self.iterate("start", lambda: self.backend.start(spec), {"desktop": spec.desktop})

    async def stop(self, handle: Handle) -> None:
        await self.run("stop", lambda: self.backend.stop(handle), handle, lie=None)

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        true: Endpoint | None = await self.run("endpoint", lambda: self.backend.endpoint(handle), handle, lie=_LIES)
        return true

    async def found(self) -> list[Found]:
        found: list[Found] = await self.run("found", self.backend.found, {}, lie=_LIES)
        return found

    async def check(self, profile: Profile | None = None) -> list[Check]:
        checks: list[Check] = await self.run("check", lambda: self.backend.check(profile), {}, lie=[])
        return checks

    # traps

    def due(self, checkpoint: str) -> Trap | None:
        """The trap that this call springs."""
        for trap in [t for t in self.traps if t.checkpoint == checkpoint]:
            trap.calls += 1
            if trap.calls >= trap.call:
                trap.times -= 1
                if trap.times <= 0:
                    self.traps.remove(trap)
                return trap
        return None

    async def spring(self, trap: Trap, handle: Handle) -> None:
        self.sprung.append((trap.checkpoint, trap.how))
        if trap.how == DIE:
            raise UnavailableError(f"sabotage: {trap.checkpoint} died", code="sabotage")
        if trap.how == HANG:
            await asyncio.Event().wait()
        if trap.how == VANISH and handle:
            await self.backend.stop(handle)

    async def run(self, checkpoint: str, work: Callable[[], Any], handle: Handle, lie: object) -> Any:
        trap = self.due(checkpoint)
        if trap is None:
            return await work()
        if trap.after:
            result = await work()
            await self.spring(trap, handle)
            return result
        await self.spring(trap, handle)
        if trap.how != LIE:
            return await work()
        return lie if lie is not _LIES else _lie_about(await work())

    async def iterate(
        self, checkpoint: str, work: Callable[[], AsyncIterator[Any]], handle: Handle
    ) -> AsyncIterator[Any]:
        trap = self.due(checkpoint)
        if trap and trap.how == LIE:
            await self.spring(trap, handle)
            if checkpoint != "files.get":
                yield handle  # and nothing is done
            return
        if trap and not trap.after_yields:
            await self.spring(trap, handle)
        count = 0
        async for value in work():
            yield value
            count += 1
            if trap and trap.after_yields == count:
                await self.spring(trap, handle)


class _AbilityOf:
    """One ability with traps at each of its methods; whatever else it has is passed on."""

    def __init__(self, saboteur: Saboteur, name: str, ability: object) -> None:
        self._saboteur = saboteur
        self._name = name
        self._ability = ability

    def __getattr__(self, method: str) -> Any:
        real = getattr(self._ability, method)
        checkpoint = f"{self._name}.{method}"
        if checkpoint not in CHECKPOINTS:
            return real

        def call(*args: Any, **options: Any) -> Any:
            handle = args[0] if args and isinstance(args[0], dict) else {}
            if checkpoint in _ITERATE:
                return self._saboteur.iterate(checkpoint, lambda: real(*args, **options), handle)
            return self._saboteur.run(checkpoint, lambda: real(*args, **options), handle, _LIES_OF.get(checkpoint))

        return call


_LIES = object()
_LIES_OF: dict[str, object] = {
    "snapshots.save": Saved("disk", 1),
    "snapshots.saved": [],
    "files.put": 0,
    "files.listing": [],
    "logs.logs": "",
}


def _lie_about(truth: Endpoint | list[Found] | None) -> Endpoint | list[Found] | None:
    if isinstance(truth, list):
        invented = new_id("dk")
        return [*truth[1:], Found(invented, {"desktop": invented}, "invented")]
    return replace(truth or Endpoint(_wrong_screen, ""), connect=_wrong_screen, where="a screen of another size")


async def _wrong_screen() -> socket.socket:
    """A screen of 640x37 that greets and then says no more."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    native = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
    greeting = b"RFB 003.008\n" + b"\x01\x01" + bytes(4) + struct.pack(">HH", 640, 37) + native + struct.pack(">I", 0)
    asyncio.get_running_loop().call_soon(_say_and_wait, ours, greeting)
    return theirs


def _say_and_wait(sock: socket.socket, greeting: bytes) -> None:
    """Say all at once, and close when the other side does."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(BrokenPipeError):  # it has closed already, which is heard below
        sock.send(greeting)

    def hear() -> None:
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            heard = sock.recv(65536)
        if not heard:
            loop.remove_reader(sock)
            sock.close()

    loop.add_reader(sock, hear)
