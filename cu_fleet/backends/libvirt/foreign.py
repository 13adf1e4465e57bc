"""Machines of images that are not ours: whatever begins from a disk, seen and driven by QEMU's own VNC.

Nobody of ours is inside, so there are no windows and clipboard. The rest is as with our own: a machine is booted once
and saved when it has come to rest, and desktops are forks of that, each with its own disk, firmware settings and TPM.
That a fork is the right one rests on what is outside: its memory and its disk lie in one folder, written together and
never again; libvirt says which of them the machine has; and its screen is of the profile's size. What it calls itself
inside, its forks share.

Where the image has a guest agent, and its profile says so, that adds commands and files, sets the clock whenever a
machine goes on after it stood, and must say the secret that was left in its memory: see `agent`.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

from cu_fleet.backends.base import Abilities, Check, Endpoint, Place, Process, Saved, Spec, Usage
from cu_fleet.backends.libvirt import carried, checks, domain, given, machines
from cu_fleet.backends.libvirt.agent import Agent
from cu_fleet.backends.libvirt.agent_exec import Command, words
from cu_fleet.backends.libvirt.agent_files import AgentFiles
from cu_fleet.backends.libvirt.agent_files import argv as shell_on_files
from cu_fleet.backends.libvirt.backend import (
    LibvirtBackend,
    _Ability,
    _Disk,
    _Freeze,
    _Network,
    _Snapshots,
    _still,
    _Tidy,
)
from cu_fleet.backends.libvirt.disks import overlay
from cu_fleet.backends.libvirt.images import NAMES
from cu_fleet.backends.libvirt.layout import Desk, Layout
from cu_fleet.backends.libvirt.options import FOREIGN, foreign_options
from cu_fleet.backends.libvirt.rest import Rest
from cu_fleet.backends.libvirt.snapshots import Snapshots, about, env_of
from cu_fleet.backends.libvirt.tidying import Tidy
from cu_fleet.backends.libvirt.warm import SECONDS_TO_BOOT, State, Warm
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, FleetError, UnavailableError, UnsupportedError
from cu_fleet.model.profile import Profile


class ForeignWarm(Warm):
    async def state(self, profile: Profile) -> State:
        image = await asyncio.to_thread(given.need, profile)
        kind = await self._kind(profile)
        await self.hypervisor.do(lambda api: self._learn(api, kind))
        facts = self.hypervisor.facts
        machine = domain.Machine.of(profile, kind, facts[kind], image.path, None)
        data = given.note(image, foreign_options(profile))
        key = _key(machine, facts["versions"], data.decode())
        return await self._ready(key, machine, data)

    def beforehand(self, profile: Profile) -> str:
        return ""

    async def _kind(self, profile: Profile) -> str:
        """What KVM is tried with is a kernel of ours; without one machines are emulated, unless the profile insists."""
        ours = [self.layout.images / name for name in NAMES if (self.layout.images / name / "vmlinux").exists()]
        wanted = foreign_options(profile).acceleration
        if ours or wanted == "none" or self.acceleration.known() is not None:
            return await self.acceleration.kind(profile, ours[0] if ours else Path())
        return "kvm" if wanted == "kvm" else "qemu"

    def _furnish(self, desk: Desk, uid: int | None, machine: domain.Machine, data: bytes) -> None:
        self.layout.make(desk, uid)
        (desk.dir / given.NOTE).write_bytes(data)
        overlay(desk.disk, machine.image, uid, given.as_it_was(desk.dir).kind)

    async def _boot(self, desk: Desk, uid: int | None, machine: domain.Machine, canary: str) -> None:
        own = domain.xml(machine, desk, "warming", self.layout.fleet, uid)
        noted = await asyncio.to_thread(given.as_it_was, desk.dir)
        wait = noted.up_after
        await self.hypervisor.do(lambda api: machines.begin(api, own, desk, uid))
        rest = Rest(self.hypervisor, desk, (machine.width, machine.height), os.geteuid() if uid is None else uid)
        try:
            async with asyncio.timeout(SECONDS_TO_BOOT + (wait or 0)):
                await rest.reached(wait)
                if noted.agent:
                    agent = Agent(self.hypervisor, desk)
                    await agent.come(noted.path)
                    await agent.leave(canary)
            await asyncio.to_thread(given.as_it_was, desk.dir)
        except TimeoutError:
            raise UnavailableError(
                f"a machine of {machine.image} did not come to rest within {SECONDS_TO_BOOT:.0f} s: {rest.said}",
                remedy="say how long it takes until it is up: options: {up_after: 3m}",
                code="start_failed",
            ) from None


def _key(machine: domain.Machine, *facts: str) -> str:
    nobody = Desk("warm", Path("/"), "warm", "00000000-0000-4000-8000-000000000000")
    parts = [domain.xml(machine, nobody, "", "", None), *facts]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


class ForeignSnapshots(Snapshots):
    def state(self, snapshot: str) -> tuple[State, Path]:
        """Nobody changes a base of ours; but what that rests on is the user's."""
        found, base = super().state(snapshot)
        given.as_it_was(base.parent)
        return found, base


class ForeignTidy(Tidy):
    def _images(self) -> Iterator[Path]:
        """The user's are the user's, and of ours the other backend knows which are needed."""
        return iter(())


class LibvirtVncBackend(LibvirtBackend):
    name = FOREIGN
    # GTK 3 would take the tablet, for its name, for a touch screen, on which a drag selects nothing:
    env: ClassVar[Mapping[str, str]] = {"GDK_CORE_DEVICE_EVENTS": "1"}

    def __init__(self, place: Place, uri: str | None = None, store: Path | None = None) -> None:
        super().__init__(place, uri, store)
        self.layout = Layout(place, store, FOREIGN)
        self.warm = ForeignWarm(self.layout, self.hypervisor)
        self.snapshots = ForeignSnapshots(self.layout)
        self.tidying = ForeignTidy(self.layout)
        self.abilities = Abilities(
            snapshots=_ForeignSnapshots(self),
            exec=_AgentExec(self),
            freeze=_ForeignFreeze(self),
            files=AgentFiles(self._on_files),
            network=_Network(),
            meter=_ForeignMeter(self),
            disk=_Disk(self),
            tidy=_Tidy(self),
            helper=False,
            lacking=_lacking,
        )

    def agent(self, desk: Desk) -> Agent | None:
        """Who can be asked inside, as was said when the machine was booted that this one is a fork of."""
        return Agent(self.hypervisor, desk) if _noted(desk).agent else None

    async def command(self, handle: Handle, argv: Sequence[str], *, fed: bool = False, **more: Any) -> Command:
        """What is to be run inside; it runs as soon as somebody waits for it, or its input is closed."""
        desk = self.desk(handle)
        noted = await asyncio.to_thread(_noted, desk)
        if not noted.agent:
            raise UnsupportedError(f"desktop {desk.id} was made without a guest agent", code="no_exec")
        return Command(Agent(self.hypervisor, desk), argv, user=noted.user, fed=fed, **more)

    async def _on_files(self, handle: Handle, argv: list[str]) -> Process:
        return await self.command(handle, shell_on_files(argv), fed=argv[0] == "put")

    async def _become(self, desk: Desk, spec: Spec, state: State) -> None:
        """It runs, on its own disk over that state's; and it knows what was left in that, if somebody can say so."""
        xml = await self.hypervisor.do(lambda api: machines.must_run(api, desk).XMLDesc())
        layers = [one.get("file") for one in ElementTree.fromstring(xml).iterfind("devices/disk//source")]  # noqa: S314  # libvirt's own
        base = str(state.disk) if spec.snapshot is None else None
        if layers[:1] != [str(desk.disk)] or (base and base not in layers):
            raise BrokenError(
                f"desktop {desk.id} woke with the disks {layers}, not with its own over what was saved in {state.dir}",
                code="wrong_state",
            )
        if agent := await asyncio.to_thread(self.agent, desk):
            await agent.become(state.canary, spec.boot)

    async def _settle(self, handle: Handle, spec: Spec) -> None:
        """A snapshot never contains the slot; and what comes with a clean desktop, which nobody watches over."""
        agent = await asyncio.to_thread(self.agent, desk := self.desk(handle))
        if agent is None:
            return
        if spec.snapshot is not None:
            assert self.abilities.files
            await self.abilities.files.remove(handle, "")
            return
        user = (await asyncio.to_thread(_noted, desk)).user
        for argv in spec.profile.autostart:
            await agent.begin(words("", argv, user, None, spec.profile.env))

    async def endpoint(self, handle: Handle) -> Endpoint | None:
        found = await super().endpoint(handle)
        return found and replace(found, helped=False)

    async def check(self, profile: Profile | None = None) -> list[Check]:
        if profile is None:
            return []  # of the hypervisor itself the other backend tells
        name = f"image of {profile.name}"
        try:
            checks.equipment(profile)
            found = await asyncio.to_thread(given.need, profile)
        except FleetError as e:
            return [Check(name, False, str(e), needed=False)]
        lacking = "; nothing of ours is inside: no exec, launch, windows, files and clipboard"
        if foreign_options(profile).agent:
            lacking = "; by its guest agent: exec, launch and files; no windows and clipboard"
        return [Check(name, True, f"{found.path} ({found.kind}), {found.size_bytes >> 20} MiB{lacking}", needed=False)]


def _lacking(profile: Profile) -> frozenset[str]:
    return frozenset() if foreign_options(profile).agent else frozenset({"exec", "files"})


def _noted(desk: Desk) -> given.Note:
    """What was noted of the image when the state was made that the desktop's disk rests on."""
    try:
        _, base, _ = about(desk)
    except FileNotFoundError:
        raise UnavailableError(f"the machine of desktop {desk.id} has ended", code="not_running") from None
    return given.noted(base.parent)


class _Foreign(_Ability):
    backend: LibvirtVncBackend

    async def awake(self, desk: Desk) -> Agent | None:
        """Who inside can be asked at this moment."""
        if await self.do(lambda api: machines.is_paused(machines.must_run(api, desk))):
            return None
        return await asyncio.to_thread(self.backend.agent, desk)


class _AgentExec(_Foreign):
    async def exec(
        self, handle: Handle, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Process:
        desk = self.backend.desk(handle)
        own = await asyncio.to_thread(env_of, desk)
        command = await self.backend.command(handle, argv, env={**own, **(env or {})}, cwd=cwd)
        await command.agent.ask("ping", lambda _: None)  # who cannot be asked at all says so at once
        return command


class _FedExec(_Foreign):
    async def exec(
        self, handle: Handle, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | None = None
    ) -> Process:
        """A command that has its whole input when it begins, even if it is listened to before."""
        return await self.backend.command(handle, argv, fed=True, env=env, cwd=cwd)


class _ForeignSnapshots(_Foreign, _Snapshots):
    async def save(self, handle: Handle, snapshot: str) -> Saved:
        desk, boot = self.backend.desk(handle), str(handle.get("boot"))
        agent = await self.awake(desk)
        if agent:
            await agent.leave(boot)  # whoever is inside may have removed it
        made = await self.do(lambda api: self.backend.snapshots.save(api, desk, snapshot, boot))
        if agent:
            await agent.set_clock()
        return made

    def _slot(self, desk: Desk, most: int) -> carried.Carried:
        return carried.Carried(desk, self.backend.abilities, most, _FedExec(self.backend))


class _ForeignFreeze(_Foreign, _Freeze):
    async def thaw(self, handle: Handle) -> None:
        desk = self.backend.desk(handle)
        stood = await self.do(lambda api: _still(machines.must_run(api, desk), False))
        if stood and (agent := await self.awake(desk)):
            await agent.set_clock()


class _ForeignMeter(_Ability):
    async def usage(self, handle: Handle) -> Usage:
        desk = self.backend.desk(handle)
        memory, seconds = await self.do(lambda api: machines.usage(machines.must_run(api, desk)))
        return Usage(memory, None, seconds)
