"""What `doctor` says of the hypervisor and of the images profiles need. Who uses no machines lacks nothing."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from cu_fleet.backends.base import Check
from cu_fleet.backends.libvirt import firmware, images, network, tpm
from cu_fleet.backends.libvirt.acceleration import DEVICE, said
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Layout
from cu_fleet.backends.libvirt.options import image, options
from cu_fleet.model.errors import FleetError
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from libvirt import virConnect

_DECEIVES = (
    f"{DEVICE} is there and no machine boots with it, so libvirt examines QEMU anew before most calls, a second or two "
    f"each: have the host above this one nest properly, or hide the device (rm {DEVICE}, until the next boot)"
)


async def all_checks(layout: Layout, hypervisor: Hypervisor, kvm: bool | None, profile: Profile | None) -> list[Check]:
    """`kvm` is what has been found out about it, if anybody has asked."""
    try:
        answer = await _answer(layout, hypervisor, kvm)
    except FleetError as e:
        return [Check("libvirt", False, f"no desktops in virtual machines: {e}", needed=False)]
    found = [Check("libvirt", True, answer, needed=False)]
    if kvm is False and DEVICE.exists():
        found.append(Check("kvm", False, _DECEIVES, needed=False))
    if shutil.which("qemu-img") is None:
        fix = ("apt-get", "install", "-y", "qemu-utils")
        found.append(Check("qemu-img", False, "missing: machines' disks are made by it", needed=False, fix=(fix,)))
    found.append(_network(profile))
    if profile is not None:
        found.append(_image(layout, profile))
    return found


def _network(profile: Profile | None) -> Check:
    name, needed = "network of machines", profile is not None and profile.network == "full"
    try:
        network.need()
    except FleetError as e:
        apt = ("apt-get", "install", "-y", "--no-install-recommends", *network.PACKAGES.values())
        tun = (("modprobe", "tun"), ("chmod", "0666", str(network.TUN)))
        return Check(name, False, str(e), needed, tun if e.code == "no_tun" else (("apt-get", "update"), apt))
    return Check(name, True, "those whose profile says `network: full` get one of their own", needed=False)


async def _answer(layout: Layout, hypervisor: Hypervisor, kvm: bool | None) -> str:
    if hypervisor.is_session and not layout.used:
        await hypervisor.wait(hypervisor.binding)
        return "yours is left alone until you have a machine, which starts it"
    return f"a hypervisor answers: {await hypervisor.do(_system)}; {said(kvm)}"


def _system(api: virConnect) -> str:
    versions = (_dotted(api.getLibVersion()), _dotted(api.getVersion()))
    return f"libvirt {versions[0]}, QEMU {versions[1]} ({api.getURI()})"


def _dotted(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def equipment(profile: Profile) -> None:
    """Refuse a profile that asks for what this host has not."""
    wanted = options(profile)
    if wanted.firmware == "uefi":
        firmware.find(secure=wanted.secure_boot)
    if wanted.tpm:
        tpm.need()
    if profile.network == "full":
        network.need()


def _image(layout: Layout, profile: Profile) -> Check:
    name = f"image of {profile.name}"
    try:
        equipment(profile)
        golden = images.need(layout, image(profile))
    except FleetError as e:
        return Check(name, False, str(e), needed=False)
    return Check(name, True, f"{golden.dir}, {golden.size_bytes >> 20} MiB", needed=False)
