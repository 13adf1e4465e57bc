"""The scenes of the `libvirt` backend, on the hypervisor that it would use, with the shipped profile `vm`.

What waking a machine costs at the very least is QEMU alone, reading the same saved state (`incoming`). Forks and
rollbacks wake from the profile's warm state, which is made first if there is none, and is left, as `image build` leaves
it; a restore wakes from a snapshot. Each is timed through the controller, with all that is proved of a desktop.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from cu_fleet.app import place_of, profile_dirs
from cu_fleet.backends.libvirt import LibvirtBackend
from cu_fleet.backends.libvirt.layout import drop
from cu_fleet.backends.libvirt.options import image
from cu_fleet.backends.libvirt.warm import State
from cu_fleet.bench.figures import Figure, Series, megabytes, milliseconds
from cu_fleet.bench.house import House, house
from cu_fleet.bench.incoming import first_frame
from cu_fleet.bench.scenes import rolled_back
from cu_fleet.bench.stage import AGENT, REST, Stage, timed
from cu_fleet.client import Desktop
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.profile import Profile, read_profile
from cu_fleet.settings import Settings, read_settings

PROFILE = "vm"
AT_ONCE = 4
_AIM = 2.0  # times a bare QEMU
_MOST_ROUNDS = 5  # of what takes seconds each


@dataclass(frozen=True)
class Host:
    """A controller, and a backend of our own that finds what that one makes."""

    at: House
    backend: LibvirtBackend
    profile: Profile
    warm: State

    @property
    def facts(self) -> dict[str, str]:
        return {"machines run": "on KVM" if self.warm.kind == "kvm" else "emulated, for KVM does not work here"}

    async def lease(self, agent: str = AGENT) -> Desktop:
        return await self.at.fleet.acquire(agent=agent, profile=PROFILE, wait=300)


@asynccontextmanager
async def _host(stage: Stage, most: int) -> AsyncIterator[Host]:
    own = read_settings()  # where machines lie is the caller's affair, and theirs alone can be woken
    settings = {"start_timeout": 300, **({"machines": str(own.machines)} if own.machines else {})}
    async with house(stage.top, {}, most, settings) as at:
        known = read_settings(at.home, env={})
        backend = LibvirtBackend(place_of(known, at.label))
        profile = await _profile(backend, known)
        stage.tell("machines: the first is booted and saved, if it never was, which may take minutes")
        yield Host(at, backend, profile, await backend.warm.state(profile))


async def _profile(backend: LibvirtBackend, settings: Settings) -> Profile:
    """The shipped one, where there is all that it needs."""
    profile = read_profile(profile_dirs(settings)[0] / f"{PROFILE}.yaml")
    lacking = [check for check in await backend.check(profile) if not check.ok]
    if lacking:
        raise UnavailableError("; ".join(check.detail for check in lacking), remedy="cu-fleet doctor", code="lacking")
    return profile


async def waking(stage: Stage) -> AsyncGenerator[Figure, None]:
    """Forks, snapshots, restores and rollbacks, beside bare QEMUs that read the same states."""
    fork, fork_bare, back = list[float](), list[float](), list[float]()
    save, restore, restore_bare = list[float](), list[float](), list[float]()
    rounds = min(stage.plan.rounds, _MOST_ROUNDS)
    async with _host(stage, most=2) as host:
        for number in range(rounds + 1):
            stage.tell(f"machines: {number} of {rounds}")
            fork_bare.append(await first_frame(host.backend, host.warm, host.warm.disk, stage.top))
            await asyncio.sleep(REST)
            seconds, desktop = await timed(host.lease())
            fork.append(seconds)
            name = str(desktop.lease.desktop)
            await asyncio.sleep(REST)
            seconds, snapshot = await timed(host.at.fleet.save(name))
            save.append(seconds)
            state, base = await asyncio.to_thread(host.backend.snapshots.state, snapshot.id)
            restore_bare.append(await first_frame(host.backend, state, base, stage.top))
            await asyncio.to_thread(_unread, state)
            await asyncio.sleep(REST)
            restore.append((await timed(host.at.fleet.restore(snapshot.id)))[0])
            await asyncio.sleep(REST)
            back.append(await rolled_back(host.at, desktop.lease))
            await host.at.fleet.remove_desktop(name)
            await host.at.fleet.delete_snapshot(snapshot.id)
        facts = host.facts
    bare = milliseconds(fork_bare[1:], "a bare QEMU that reads the same state, until its first frame")
    bare_snapshot = milliseconds(restore_bare[1:], "a bare QEMU that reads the snapshot, until its first frame")
    what = "a lease of a machine that does not exist yet, a fork of a warm one, until its first frame is seen"
    yield Figure("libvirt-fork", milliseconds(fork[1:], what), bare, most=_AIM, facts=facts)
    what = "from a lease's release until its machine is a new fork, proved clean and ready"
    yield Figure("libvirt-rollback", milliseconds(back[1:], what), bare, most=_AIM)
    what = "back to a snapshot, with its memory and running programs, until its frame is seen"
    yield Figure("libvirt-restore", milliseconds(restore[1:], what), bare_snapshot, most=_AIM)
    yield Figure("libvirt-save", milliseconds(save[1:], "a snapshot of a running machine: disk and memory"))


def _unread(state: State) -> None:
    """As for the one before: libvirt writes past this machine's cache, and a first restore reads from the disk."""
    with state.memory.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


async def booting(stage: Stage) -> AsyncGenerator[Figure, None]:
    """Once, in a store of its own, which is gone afterwards."""
    async with _host(stage, most=1) as host:
        stage.tell("machines: one is booted")
        layout = host.backend.layout
        trial = layout.folder(layout.store / f".bench.{secrets.token_hex(4)}")
        try:
            (trial / "images").mkdir(mode=0o711)
            (trial / "images" / image(host.profile)).symlink_to(layout.images / image(host.profile))
            backend = LibvirtBackend(place_of(read_settings(host.at.home, env={}), f"{host.at.label}b"), store=trial)
            seconds, _ = await timed(backend.warm.state(host.profile))
        finally:
            await asyncio.to_thread(drop, trial)
        fork, desktop = await timed(host.lease())
        await host.at.fleet.release(desktop.id)
        facts = host.facts
    what = "a machine booted until its desktop is up, and saved with its memory: once for each kind of profile"
    forked = Series("s", (fork,), "a lease of a fork of it")
    yield Figure("libvirt-boot", Series("s", (seconds,), what), forked, facts=facts)


async def several(stage: Stage) -> AsyncGenerator[Figure, None]:
    """As many at once as there is room for, and what each has for itself."""
    async with _host(stage, most=AT_ONCE) as host:
        memory = int((await host.at.fleet.status())["capacity"]["memory_bytes"])
        count = max(1, min(AT_ONCE, memory // host.profile.reserve))
        stage.tell(f"{count} machines at once")
        work = asyncio.gather(*(host.lease(f"{AGENT}-{number}") for number in range(count)))
        seconds, held = await timed(work)
        await host.at.settled()
        backend = host.backend
        assert backend.abilities.meter
        assert backend.abilities.disk
        handles: list[Handle] = [{"desktop": str(one.lease.desktop)} for one in held]
        used = [(await backend.abilities.meter.usage(one)).memory_bytes or 0 for one in handles]
        disks = [await backend.abilities.disk.used(one) for one in handles]
        facts = host.facts
    what = f"{count} leases of machines asked for at once, until all are granted"
    yield Figure("libvirt-many-start", Series("s", (seconds,), what), facts=facts)
    yield Figure("libvirt-memory", megabytes(used, "of this machine's memory that an idle fork holds"))
    yield Figure("libvirt-disk", megabytes(disks, "that an idle fork has written to a disk of its own"))
