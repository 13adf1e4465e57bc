"""The machine, as libvirt is told of it: what a desktop needs of virtual hardware, and nothing more.

Nothing of the host is shared with it but its disk, its seed and three sockets. It runs as a user of its own where we
are root, confined by QEMU's own filter and libvirt's control groups. A reset ends it like a power-off, so that no
machine goes on under an identity that was given to another start of it.
"""

import os
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from cu_fleet.backends.libvirt import firmware, network
from cu_fleet.backends.libvirt.firmware import Firmware
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.backends.libvirt.options import ForeignOptions, options
from cu_fleet.model.profile import Profile

NAMESPACE = "urn:cu-fleet:desktop:1"
PORT = "cu-fleet"
AGENT = "org.qemu.guest_agent.0"  # whom an image that is not ours may have inside
_KINDS = ("disk", "input", "video")
_PERIOD = 100_000  # microseconds
_COMMAND_LINE = "root=LABEL=cu-fleet rw quiet console=tty1 console=ttyS0 systemd.show_status=0 mitigations=off"
_OF_NETWORK = "net.ifnames=0"  # the card's name is known without waiting for anybody to give it one
ElementTree.register_namespace("cu-fleet", NAMESPACE)
ElementTree.register_namespace("qemu", network.QEMU)


@dataclass(frozen=True)
class Machine:
    """All that makes one kind of machine; two with the same are alike but for names."""

    kind: str  # "kvm", or "qemu" for emulation
    type: str  # QEMU's name of the board
    image: Path  # the golden image's folder, or the user's image
    seed: Path | None  # None: nothing of ours is inside
    memory: int
    cpus: float
    width: int
    height: int
    uefi: Firmware | None = None  # None: BIOS
    tpm: bool = False
    plain: bool = False  # of hardware that every system can drive
    network: bool = False

    @classmethod
    def of(cls, profile: Profile, kind: str, board: str, image: Path, seed: Path | None) -> "Machine":
        limits, screen, wanted = profile.limits, profile.screen, options(profile)
        uefi = firmware.find(secure=wanted.secure_boot) if wanted.firmware == "uefi" else None
        size = (screen.width, screen.height)
        plain = isinstance(wanted, ForeignOptions) and wanted.hardware == "plain"
        reaches = profile.network == "full"
        return cls(kind, board, image, seed, limits.memory, limits.cpus, *size, uefi, wanted.tpm, plain, reaches)

    def at(self, seed: Path) -> "Machine":
        return replace(self, seed=seed)


def xml(machine: Machine, desk: Desk, label: str, fleet: str, uid: int | None) -> str:
    top = Element("domain", type=machine.kind)
    _text(top, "name", desk.name)
    _text(top, "uuid", desk.uuid)
    _text(top, "title", label)
    SubElement(SubElement(top, "metadata"), f"{{{NAMESPACE}}}desktop", id=desk.id, fleet=fleet)
    _text(top, "memory", str(machine.memory >> 10), unit="KiB")
    _text(top, "vcpu", str(ceil(machine.cpus)))
    if os.geteuid() == 0:  # a user's own libvirt has no control groups, and refuses this
        tune = SubElement(top, "cputune")
        _text(tune, "global_period", str(_PERIOD))
        _text(tune, "global_quota", str(int(machine.cpus * _PERIOD)))
    _boot(top, machine, desk)
    features = SubElement(top, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    SubElement(features, "vmport", state="off")
    if machine.uefi and machine.uefi.secure:
        SubElement(features, "smm", state="on")
    if machine.kind == "kvm":
        SubElement(top, "cpu", mode="host-model")
    else:
        _text(SubElement(top, "cpu", mode="custom", match="exact", check="none"), "model", "Nehalem")
    SubElement(top, "clock", offset="utc")
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(top, event, "destroy")
    _devices(SubElement(top, "devices"), machine, desk)
    if uid is not None:  # libvirt would give what machines share to whichever of them starts last
        _text(SubElement(top, "seclabel", type="static", model="dac", relabel="no"), "label", f"+{uid}:+{uid}")
    if machine.network:
        network.add_card(top, "e1000e" if machine.plain else "virtio-net-pci", desk)
    return ElementTree.tostring(top, "unicode")


def _boot(top: Element, machine: Machine, desk: Desk) -> None:
    """UEFI starts programs made for it, as the packed kernel is one; without it QEMU starts the kernel proper."""
    system = SubElement(top, "os")
    _text(system, "type", "hvm", arch="x86_64", machine=machine.type)
    if uefi := machine.uefi:
        secure = "yes" if uefi.secure else "no"
        _text(system, "loader", str(uefi.code), readonly="yes", secure=secure, type="pflash")
        _text(system, "nvram", str(desk.nvram), template=str(uefi.settings))
    if machine.seed is not None:
        _text(system, "kernel", str(machine.image / ("vmlinuz" if machine.uefi else "vmlinux")))
        _text(system, "initrd", str(machine.image / "initrd"))
        _text(system, "cmdline", f"{_COMMAND_LINE} {_OF_NETWORK}" if machine.network else _COMMAND_LINE)


def _devices(devices: Element, machine: Machine, desk: Desk) -> None:
    bus = {"disk": "sata", "input": "usb", "video": "vga"} if machine.plain else dict.fromkeys(_KINDS, "virtio")
    _disk(devices, "vda", "qcow2", desk.disk, bus["disk"], discard="unmap")
    if machine.seed is not None:
        seed = _disk(devices, "vdb", "raw", machine.seed, "virtio")
        SubElement(seed, "readonly")
        _text(seed, "serial", PORT)
    SubElement(devices, "controller", type="usb", model="qemu-xhci" if machine.plain else "none")
    SubElement(devices, "controller", type="virtio-serial")
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "source", mode="bind", path=str(desk.port))
    SubElement(channel, "target", type="virtio", name=AGENT if machine.seed is None else PORT)
    console = SubElement(devices, "serial", type="unix")
    SubElement(console, "source", mode="bind", path=str(desk.console))
    for kind in ("tablet",) if machine.plain else ("tablet", "keyboard"):  # a board has a PS/2 keyboard anyway
        SubElement(devices, "input", type=kind, bus=bus["input"])
    SubElement(devices, "graphics", type="vnc", socket=str(desk.screen), sharePolicy="ignore")
    model = SubElement(SubElement(devices, "video"), "model", type=bus["video"], heads="1", primary="yes")
    SubElement(model, "resolution", x=str(machine.width), y=str(machine.height))
    if machine.tpm:
        backend = SubElement(SubElement(devices, "tpm", model="tpm-crb"), "backend", type="external")
        SubElement(backend, "source", type="unix", mode="connect", path=str(desk.tpm))
    _text(SubElement(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    SubElement(devices, "memballoon", model="none")


def _disk(devices: Element, name: str, kind: str, path: Path, bus: str, **driver: str) -> Element:
    disk = SubElement(devices, "disk", type="file", device="disk")
    SubElement(disk, "driver", {"name": "qemu", "type": kind, **driver})
    SubElement(disk, "source", file=str(path))
    SubElement(disk, "target", dev=name, bus=bus)
    return disk


def _text(parent: Element, name: str, text: str, **attributes: str) -> Element:
    made = SubElement(parent, name, attributes)
    made.text = text
    return made
