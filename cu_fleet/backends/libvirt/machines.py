"""Machines under libvirt, by calls that block: begun, woken from a saved state, held still, ended, found."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from cu_fleet.backends.libvirt import firmware, network, processes, saved, tpm
from cu_fleet.backends.libvirt.domain import NAMESPACE
from cu_fleet.backends.libvirt.hypervisor import domain_of, missing_is_fine
from cu_fleet.backends.libvirt.layout import Desk, Layout
from cu_fleet.model.errors import BrokenError, ConflictError, UnavailableError

if TYPE_CHECKING:
    from libvirt import virConnect, virDomain

_SECONDS_TO_END = 20.0
_GLANCE = 0.001
_ROOM = 1 << 20  # bytes of a pipe


@dataclass(frozen=True)
class Names:
    """What a woken machine is told, besides where its files are."""

    label: str
    seed: Path
    uid: int | None
    network: bool = False  # whether it is to have one


def begin(api: virConnect, xml: str, desk: Desk, uid: int | None) -> None:
    """Boot a machine that ends when whoever began it does: libvirt sees to that when the connection breaks."""
    from libvirt import VIR_DOMAIN_START_AUTODESTROY

    top = ElementTree.fromstring(xml)  # noqa: S314  # our own
    nvram = top.find("os/nvram")
    _equip(top, desk, None if nvram is None else Path(nvram.get("template", "")), uid)
    api.createXML(xml, VIR_DOMAIN_START_AUTODESTROY)
    if network.cards(top):
        network.prove(desk)


def _equip(top: ElementTree.Element, desk: Desk, settings: Path | None, uid: int | None) -> None:
    """What a machine needs beside it before it begins, and libvirt does not give."""
    if settings is not None:
        firmware.own(desk.nvram, settings, uid)
    if top.find("devices/tpm") is not None:
        tpm.begin(desk, uid)
    if network.cards(top):
        network.begin(desk, uid)


def wake(api: virConnect, desk: Desk, memory: Path, names: Names) -> None:
    """Begin a machine from a saved state, under its own names; returns when it runs."""
    state = saved.read(memory)
    xml = _asked_little(renamed(state.xml, desk, names))
    top = ElementTree.fromstring(xml)  # noqa: S314  # from a file that only we write
    network.must_be(top, names.network, desk)
    settings = None if top.find("os/nvram") is None else memory.with_name(firmware.NVRAM)
    _equip(top, desk, settings, names.uid)
    pipe = desk.dir / "wake"
    pipe.unlink(missing_ok=True)
    os.mkfifo(pipe, 0o600)
    over = threading.Event()
    troubles: list[OSError] = []

    def pour() -> None:
        try:
            if (into := _opened(pipe, over)) is not None:
                saved.pour(state, memory, xml, into)
        except OSError as e:
            troubles.append(e)

    pouring = threading.Thread(target=pour, name=f"wake {desk.id}", daemon=True)
    pouring.start()
    try:
        api.restoreFlags(str(pipe), None, _running())
    finally:
        over.set()
        pipe.unlink()
        pouring.join()
    if troubles:
        end(api, desk)
        raise UnavailableError(f"desktop {desk.id} did not wake: {troubles[0].strerror}", code="start_failed")
    if names.network:
        network.prove(desk)


def _running() -> int:
    import libvirt

    return int(libvirt.VIR_DOMAIN_SAVE_RUNNING)


def _opened(pipe: Path, over: threading.Event) -> int | None:
    """The end to write to, once somebody reads; None if nobody is going to any more."""
    while not over.wait(_GLANCE):
        with suppress(OSError):
            fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with suppress(OSError):  # with little room the two would wake each other for every page
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _ROOM)
            os.set_blocking(fd, True)
            return fd
    return None


def renamed(xml: str, desk: Desk, names: Names) -> str:
    """The same machine under other names: all of it that QEMU's stream knows stays."""
    top = ElementTree.fromstring(xml)  # noqa: S314  # libvirt wrote it, into a file that only we write
    for name, text in {"name": desk.name, "uuid": desk.uuid, "title": names.label}.items():
        found = top.find(name)
        assert found is not None
        found.text = text
    for mark in top.iterfind(f"metadata/{{{NAMESPACE}}}desktop"):
        mark.set("id", desk.id)
    for disk in top.iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        assert target is not None
        assert source is not None
        source.set("file", str(desk.disk if target.get("dev") == "vda" else names.seed))
        source.attrib.pop("index", None)
        for chain in disk.findall("backingStore"):
            disk.remove(chain)  # libvirt looks for itself
    for settings in top.iterfind("os/nvram"):
        settings.text = str(desk.nvram)
    network.rename(top, desk)
    _place(top, "devices/tpm/backend/source", desk.tpm)
    _place(top, "devices/channel/source", desk.port)
    _place(top, "devices/serial/source", desk.console)
    _place(top, "devices/console/source", desk.console)
    for one in (*top.iterfind("devices/graphics"), *top.iterfind("devices/graphics/listen")):
        if one.get("socket"):
            one.set("socket", str(desk.screen))
    if names.uid is not None:
        for one in (*top.iterfind("seclabel/label"), *top.iterfind("seclabel/imagelabel")):
            one.text = f"+{names.uid}:+{names.uid}"
    return ElementTree.tostring(top, "unicode")


def _asked_little(xml: str) -> str:
    """Spare libvirt some 300 questions to QEMU, one for each feature of a processor that is emulated and known: which
    takes as long as all the rest. It asks for all at once where QEMU is said to lack this ability.
    """
    top = ElementTree.fromstring(xml)  # noqa: S314  # our own
    if top.get("type") == "qemu" and top.find(f"{{{network.QEMU}}}capabilities") is None:
        abilities = ElementTree.SubElement(top, f"{{{network.QEMU}}}capabilities")
        ElementTree.SubElement(abilities, f"{{{network.QEMU}}}del", capability="cpu-unavailable-features")
    return ElementTree.tostring(top, "unicode")


def _place(top: ElementTree.Element, path: str, where: Path) -> None:
    for one in top.iterfind(path):
        if one.get("path"):
            one.set("path", str(where))


def running(api: virConnect, desk: Desk) -> virDomain | None:
    """The desktop's machine, if it runs; one that is held still does, too."""
    domain = domain_of(api, desk.uuid)
    with missing_is_fine():
        return domain if domain and domain.isActive() else None
    return None


def must_run(api: virConnect, desk: Desk) -> virDomain:
    if (domain := running(api, desk)) is None:
        raise UnavailableError(f"the machine of desktop {desk.id} has ended", code="not_running", desktop=desk.id)
    return domain


def refuse_foreign(api: virConnect, desk: Desk) -> None:
    """A machine of this name that is not ours is left alone."""
    for domain in api.listAllDomains():
        with missing_is_fine():
            if domain.name() == desk.name and domain.UUIDString() != desk.uuid:
                raise ConflictError(
                    f"libvirt has a machine {desk.name} that is not ours, and it is left alone",
                    remedy=f"see whose it is: virsh dominfo {desk.name}",
                    code="foreign_name",
                    name=desk.name,
                )


def end(api: virConnect, desk: Desk, uid: int | None = None) -> None:
    """End the desktop's machine, and return when it is no more."""
    until = time.monotonic() + _SECONDS_TO_END
    if uid is not None:  # which is this machine's alone; libvirt looks but every fifth of a second
        processes.kill(os.fsencode(desk.dir) + b"/", uid)
    while (domain := domain_of(api, desk.uuid)) is not None:
        with missing_is_fine():
            domain.destroy()
        with missing_is_fine():
            if domain.isPersistent():
                domain.undefine()
        if time.monotonic() > until:
            raise UnavailableError(f"the machine of desktop {desk.id} does not end", code="not_removed")
    tpm.end(desk)
    network.end(desk)


def found(api: virConnect, layout: Layout) -> set[str]:
    """The desktops whose machines libvirt has, which bear a UUID that only this home can give."""
    desktops = set()
    for domain in api.listAllDomains():
        with missing_is_fine():
            name, prefix = domain.name(), f"cu-fleet-{layout.fleet}-"
            if name.startswith(prefix) and domain.UUIDString() == layout.uuid(name):
                desktops.add(name.removeprefix(prefix))
    return {one for one in desktops if not one.startswith("warm-")}


def is_paused(domain: virDomain) -> bool:
    import libvirt

    return bool(domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED)


def save(domain: virDomain, memory: Path) -> None:
    """Save a machine's memory, which ends the machine. The file is there whole, or an error is raised."""
    domain.save(str(memory))
    saved.read(memory)
    if memory.stat().st_size < 1 << 20:
        raise BrokenError(f"{memory} holds no memory", code="damaged")


def usage(domain: virDomain) -> tuple[int | None, float]:
    """Bytes of this host's memory that the machine's process has, and seconds it has run."""
    memory = domain.memoryStats().get("rss")
    return memory and memory << 10, domain.info()[4] / 1e9


def wanted(api: virConnect, domain: virDomain) -> list[float]:
    """Seconds that each of its processors has run, or would have if it had been its turn."""
    import libvirt

    [(_, said)] = api.domainListGetStats([domain], libvirt.VIR_DOMAIN_STATS_VCPU)
    each = [
        said.get(f"vcpu.{number}.time", 0) + said.get(f"vcpu.{number}.delay", 0)
        for number in range(said["vcpu.maximum"])
    ]
    return [one / 1e9 for one in each] if any(each) else [float(domain.info()[4]) / 1e9]
