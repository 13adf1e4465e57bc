"""Warm states: a golden image booted, its desktop up and quiet, saved with its memory. Clean desktops are forks of it.

A state is used only by exactly what made it: its key covers the image, the seed (and so the profile, and the program
inside), the machine as libvirt is told of it, and the versions of libvirt and QEMU. What changed any of them finds no
state under its key and makes a new one. It lies whole under its name or not at all; one is made at a time, whoever
asks, and the others wait. What is damaged, or wakes as something else, is made anew: a desktop gets none of it. The
machine that is being made into one ends when its maker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from cu_fleet.backends import inside
from cu_fleet.backends.libvirt import domain, images, machines
from cu_fleet.backends.libvirt.acceleration import Acceleration
from cu_fleet.backends.libvirt.disks import overlay
from cu_fleet.backends.libvirt.firmware import NVRAM
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.identity import identity
from cu_fleet.backends.libvirt.layout import Desk, Layout, drop
from cu_fleet.backends.libvirt.options import image
from cu_fleet.backends.libvirt.rest import resting
from cu_fleet.backends.libvirt.seed import seed
from cu_fleet.backends.libvirt.telling import telling
from cu_fleet.backends.libvirt.wire import Wire, give_back, take
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from libvirt import virConnect

log = logging.getLogger(__name__)
_STATES_FAULT = ("wrong_state", "hypervisor_failed", "no_answer")  # or may be
_MOST_SAID = 2000  # bytes of a machine's console that are kept
_SECONDS_TO_REST = 120.0
_REST, _BUSY = 2.0, 0.2  # seconds with no processor more than this share of its time at work
SECONDS_TO_BOOT = 600.0  # under emulation, on a machine that has other things to do


@dataclass(frozen=True)
class State:
    """A saved machine: its disk, its memory, and what it must say of itself when it wakes."""

    dir: Path
    canary: str
    kind: str  # "kvm" or "qemu"

    @property
    def disk(self) -> Path:
        return self.dir / "disk.qcow2"

    @property
    def memory(self) -> Path:
        return self.dir / "memory"


def read(folder: Path) -> State | None:
    """The state, if there is one; refused if any of its files is not as long as it was when it was written."""
    try:
        about = json.loads((folder / "about.json").read_text("utf-8"))
        state = State(folder, about["canary"], about["kind"])
        wrong = {name: size for name, size in about["sizes"].items() if _size(folder / name) != size}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise BrokenError(f"the saved machine in {folder} is damaged: about.json: {e}", code="damaged") from None
    for name, size in wrong.items():
        there = _size(folder / name)
        said = "is gone" if there is None else f"has {there} bytes, not {size}"
        raise BrokenError(f"the saved machine in {folder} is damaged: its {name} {said}", code="damaged")
    return state


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


def write(folder: Path, canary: str, kind: str) -> None:
    """The last that is written of a state."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    about = folder / "about.json"
    about.touch(0o600)
    with about.open("w") as file:
        json.dump({"canary": canary, "kind": kind, "sizes": sizes}, file)
        file.flush()
        os.fsync(file.fileno())


class Warm:
    def __init__(self, layout: Layout, hypervisor: Hypervisor) -> None:
        self.layout, self.hypervisor = layout, hypervisor
        self.acceleration = Acceleration(layout, hypervisor)
        self._making: dict[str, asyncio.Task[None]] = {}  # by key
        self._doubted: set[str] = set()  # canaries of states that a desktop did not wake from

    async def state(self, profile: Profile) -> State:
        """The warm state of this profile, made now if there is none."""
        golden = await asyncio.to_thread(images.need, self.layout, image(profile))
        data = await asyncio.to_thread(self._seed, profile)
        kind = await self.acceleration.kind(profile, golden.dir)
        await self.hypervisor.do(lambda api: self._learn(api, kind))
        facts = self.hypervisor.facts
        machine = domain.Machine.of(profile, kind, facts[kind], golden.dir, Path("seed"))
        key = _key(machine, facts["versions"], golden, data)
        return await self._ready(key, machine, data)

    async def _ready(self, key: str, machine: domain.Machine, data: bytes) -> State:
        while (known := await asyncio.to_thread(self._known, key)) is None:
            await self._made(key, machine, data)
        await asyncio.to_thread(os.utime, known.dir)  # somebody uses it
        return known

    def _known(self, key: str) -> State | None:
        """The state of this key. One that is damaged is none any more, and is made anew beside it."""
        for folder in sorted(self.layout.warm.glob(f"{key}*")):
            try:
                if found := read(folder):
                    return found
            except BrokenError as e:
                log.warning("%s: it is made anew", e)
                _strike(folder)
        return None

    def doubt(self, state: State, error: FleetError) -> None:
        """A desktop did not wake from it: if it woke as something else, or for the second time, the state goes."""
        if error.code not in _STATES_FAULT:
            return
        if error.code == "wrong_state" or state.canary in self._doubted:
            log.warning("the state in %s is made anew: %s", state.dir, error)
            _strike(state.dir)
        self._doubted ^= {state.canary}

    def trust(self, state: State) -> None:
        self._doubted.discard(state.canary)

    async def coming(self, profile: Profile) -> AsyncGenerator[str, None]:
        """What to tell whoever waits until the state is there. It goes on being made when nobody does any more."""

        def words(seconds: float) -> str:
            if not self._making:
                return ""
            slow = "" if self.acceleration.known() else " (emulated: a minute or more)"
            what = f'the first machine of profile "{profile.name}" boots, for all that come after it'
            return f"{what}, for {seconds:.0f} s so far{slow}"

        async with contextlib.aclosing(telling(self.state(profile), words)) as told:
            async for said in told:
                yield said

    def beforehand(self, profile: Profile) -> str:
        """What would have spared whoever has to wait."""
        return f"; done beforehand by cu-fleet image build {image(profile)}"

    async def _made(self, key: str, machine: domain.Machine, data: bytes) -> None:
        """Whoever gives up waiting does not stop it: the next who asks finds it further."""
        if (task := self._making.get(key)) is None:
            task = self._making[key] = asyncio.create_task(self._make_alone(key, machine, data), name=f"warm {key}")
            task.add_done_callback(lambda one: self._forget(key, one))
        await asyncio.shield(task)

    def _forget(self, key: str, task: asyncio.Task[None]) -> None:
        del self._making[key]
        if not task.cancelled() and (error := task.exception()):
            log.warning("no warm state could be made: %s", error)

    async def _make_alone(self, key: str, machine: domain.Machine, data: bytes) -> None:
        async with self._alone(key):
            if await asyncio.to_thread(self._known, key) is None:
                await self._make(key, machine, data)

    def _learn(self, api: virConnect, kind: str) -> None:
        """The board's exact name, which a saved state needs when QEMU has become newer; and the versions."""
        facts = self.hypervisor.facts
        if kind not in facts:
            said = ElementTree.fromstring(api.getDomainCapabilities(None, "x86_64", "q35", kind))  # noqa: S314  # its own
            facts[kind] = said.findtext("machine") or "q35"
        facts.setdefault("versions", f"{api.getLibVersion()} {api.getVersion()}")

    def _seed(self, profile: Profile) -> bytes:
        return seed(profile, inside.template(profile, self.layout.profile_dirs))

    @contextlib.asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """One maker at a time, in all processes; the kernel gives the lock back when one dies."""
        self.layout.folder(self.layout.warm)
        fd = os.open(self.layout.warm / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            async with asyncio.timeout(SECONDS_TO_BOOT):
                while True:
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.2)
            yield
        finally:
            os.close(fd)

    async def _make(self, key: str, machine: domain.Machine, data: bytes) -> None:
        folder = self.layout.warm / f".{key}.new"
        desk = self.layout.warming(key, folder)
        await self.hypervisor.do(lambda api: machines.end(api, desk))
        await asyncio.to_thread(drop, folder)
        uid = await asyncio.to_thread(self.layout.uids.take, desk.id)
        try:
            await asyncio.to_thread(self._furnish, desk, uid, machine, data)
            canary = secrets.token_hex(16)
            await self._boot(desk, uid, machine, canary)
            await self.hypervisor.do(lambda api: machines.save(machines.must_run(api, desk), desk.dir / "memory"))
            await asyncio.to_thread(_finish, folder, canary, machine.kind)
            folder.rename(self.layout.warm / f"{key}-{secrets.token_hex(4)}")
        finally:
            await self.hypervisor.do(lambda api: machines.end(api, desk))
            await asyncio.to_thread(drop, folder)
            await asyncio.to_thread(self.layout.uids.free, desk.id)

    def _furnish(self, desk: Desk, uid: int | None, machine: domain.Machine, data: bytes) -> None:
        self.layout.make(desk, uid)
        seed_of(desk.dir).write_bytes(data)
        seed_of(desk.dir).chmod(0o444)
        overlay(desk.disk, machine.image / "disk.qcow2", uid)

    async def _boot(self, desk: Desk, uid: int | None, machine: domain.Machine, canary: str) -> None:
        own = domain.xml(machine.at(seed_of(desk.dir)), desk, "warming", self.layout.fleet, uid)
        await self.hypervisor.do(lambda api: machines.begin(api, own, desk, uid))
        async with _Console(desk) as console:
            try:
                async with asyncio.timeout(SECONDS_TO_BOOT):
                    await self._come_up(desk, canary)
            except (TimeoutError, UnavailableError) as e:
                late = isinstance(e, TimeoutError)
                why = f"was not up within {SECONDS_TO_BOOT:.0f} s" if late else f"failed: {e}"
                anew = f"build its image anew: cu-fleet image build {machine.image.name} --fresh"
                raise UnavailableError(
                    f"a machine of {machine.image.name} {why}; its console said: {console.said() or 'nothing'}",
                    remedy=f"try again while this machine has less to do; else {anew}" if late else anew,
                    code="start_failed",
                ) from None

    async def _come_up(self, desk: Desk, canary: str) -> None:
        one = await self._answering(desk)
        try:
            while not str(one.state.get("stage")).startswith("ready "):
                await one.told()
            await self._quiet(desk)
            await one.ask("b", identity(canary, "desktop"))
        finally:
            give_back(desk.port, one)

    async def _quiet(self, desk: Desk) -> None:
        """What a program still had to do when it was saved, it would do again in every desktop that wakes from it."""
        try:
            rests = resting(self.hypervisor, desk, _BUSY)
            async with asyncio.timeout(_SECONDS_TO_REST), contextlib.aclosing(rests):
                async for rested in rests:
                    if rested >= _REST:
                        return
        except TimeoutError:
            log.warning("the machine %s did not come to rest within %.0f s", desk.name, _SECONDS_TO_REST)

    async def _answering(self, desk: Desk) -> Wire:
        """The wire, once the machine is so far that it answers."""
        while True:
            try:
                return await take(desk.port, desk.id)
            except UnavailableError as e:
                if e.code != "no_answer":
                    raise
            await self.hypervisor.do(lambda api: machines.must_run(api, desk))
            await asyncio.sleep(0.2)


class _Console:
    """The last words of a machine that boots, in case it does not come up."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self._said = b""

    async def __aenter__(self) -> _Console:
        reader, self._writer = await asyncio.open_unix_connection(str(self.desk.console))
        self._reading = asyncio.create_task(self._read(reader), name=f"console of {self.desk.id}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                self._said = (self._said + data)[-_MOST_SAID:]

    def said(self) -> str:
        return "".join(c for c in self._said.decode("utf-8", "replace") if c.isprintable() or c == "\n").strip()


def _strike(folder: Path) -> None:
    """It is a state no more; its disk stays for desktops and snapshots that rest on it, as long as there are any."""
    for name in ("about.json", "memory"):
        (folder / name).unlink(missing_ok=True)


def seed_of(folder: Path) -> Path:
    return folder / "seed"


def _key(machine: domain.Machine, versions: str, golden: images.Golden, data: bytes) -> str:
    nobody = Desk("warm", Path("/"), "warm", "00000000-0000-4000-8000-000000000000")
    parts = [domain.xml(machine, nobody, "", "", None), golden.recipe, golden.created, versions, os.uname().machine]
    return hashlib.sha256("\0".join(parts).encode() + data).hexdigest()[:16]


def _finish(folder: Path, canary: str, kind: str) -> None:
    drop(folder / "run")
    for name in ("disk.qcow2", "memory", *([NVRAM] if (folder / NVRAM).exists() else [])):
        path = folder / name
        if os.geteuid() == 0:
            os.chown(path, 0, 0)
        path.chmod(0o444 if name == "disk.qcow2" else 0o400)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    write(folder, canary, kind)
