"""Whether machines run on the processor itself (KVM) or are emulated: found out by booting something small.

A device file proves nothing: there are hosts where it opens, and the first real kernel hangs on it. So the image's own
kernel is begun without a disk; it panics, resets, and is gone within a second or two. What was found is kept until the
host is booted again, or its device file becomes another.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cu_fleet.backends.libvirt.hypervisor import Hypervisor, domain_of, missing_is_fine
from cu_fleet.backends.libvirt.layout import Layout
from cu_fleet.backends.libvirt.options import options
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from libvirt import virConnect

DEVICE = Path("/dev/kvm")
_SECONDS = 15.0
_PROBE = """<domain type='kvm'><name>cu-fleet-probe-{name}</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>{kernel}</kernel><cmdline>panic=-1 quiet</cmdline></os>
<features><acpi/><apic/></features><cpu mode='host-model'/><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
<devices><memballoon model='none'/><controller type='usb' model='none'/></devices></domain>"""


class Acceleration:
    def __init__(self, layout: Layout, hypervisor: Hypervisor) -> None:
        self.layout, self.hypervisor = layout, hypervisor
        self._asking = asyncio.Lock()

    async def kind(self, profile: Profile, image: Path) -> str:
        """What libvirt calls it: "kvm", or "qemu" for emulation."""
        wanted = options(profile).acceleration
        if wanted == "none":
            return "qemu"
        works = await self.works(image)
        if wanted == "kvm" and not works:
            raise UnavailableError(
                f'profile "{profile.name}" insists on KVM, and no machine boots with it here',
                remedy="leave out options.acceleration: machines are then emulated, which is several times slower",
                code="no_kvm",
            )
        return "kvm" if works else "qemu"

    def known(self) -> bool | None:
        """What was found since the host was booted; None if nobody has asked."""
        with suppress(FileNotFoundError, ValueError, KeyError):
            found = json.loads(self._notes.read_text("utf-8"))
            if found["booted"] == _booted() and found["uri"] == self.hypervisor.uri:
                return bool(found["kvm"])
        return None

    @property
    def _notes(self) -> Path:
        return self.layout.own / "acceleration.json"

    async def works(self, image: Path) -> bool:
        async with self._asking:
            if (known := self.known()) is None:
                known = await self.hypervisor.do(lambda api: _boots(api, image / "vmlinux"))
                self.layout.own.mkdir(mode=0o700, parents=True, exist_ok=True)
                said = {"booted": _booted(), "uri": self.hypervisor.uri, "kvm": known}
                new = self._notes.with_suffix(f".{secrets.token_hex(4)}")
                new.write_text(json.dumps(said))
                new.rename(self._notes)
            return known


def _booted() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {DEVICE.stat().st_ctime_ns if DEVICE.exists() else 'without'}"


def _boots(api: virConnect, kernel: Path) -> bool:
    """Whether the kernel ran so far that it panicked, and so ended its machine, in time."""
    from libvirt import VIR_DOMAIN_START_AUTODESTROY, libvirtError

    try:
        domain = api.createXML(_PROBE.format(name=secrets.token_hex(4), kernel=kernel), VIR_DOMAIN_START_AUTODESTROY)
    except libvirtError:
        return False
    until = time.monotonic() + _SECONDS
    try:
        while domain_of(api, domain.UUIDString()) is not None:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True
    finally:
        with missing_is_fine():
            domain.destroy()


def said(works: bool | None) -> str:
    """In words, for whoever looks at a list."""
    if works is None:
        return "not tried yet whether KVM works: the first machine tells"
    return (
        "machines run with KVM" if works else "no machine boots with KVM here: they are emulated, several times slower"
    )
