"""Snapshots: the machine as it stands, disk and memory together, and programs running.

libvirt writes the memory to a file while the machine stands still, and in the same moment gives it a new layer to
write to; so the machine goes on at once, its screen and its wire stay connected, and the layers below are now still.
They are flattened into one disk beside the memory, over the image all machines share. A snapshot has its name only when
all of it is there. Restoring copies that disk and wakes the memory under the names of the desktop that gets it: libvirt
can revert no such snapshot itself, nor any of a machine with UEFI.

libvirt may do what it was asked for after we gave it up, as when it hangs for a while. So every layer has a name of its
own, none is removed that the machine may write to, and what is saved is only taken for whole when the layers are those
that were there before, and rest on each other as they say.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, fromstring, tostring

from cu_fleet.backends.base import Saved
from cu_fleet.backends.libvirt import disks, firmware, machines, saved, warm
from cu_fleet.backends.libvirt.layout import Desk, Layout, drop
from cu_fleet.backends.libvirt.warm import State
from cu_fleet.model.errors import BrokenError, ConflictError, NotFoundError, UnavailableError
from cu_fleet.model.names import NAME

if TYPE_CHECKING:
    from libvirt import virConnect, virDomain

_NEW = ".new"


class Snapshots:
    """All calls block; run them in threads."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._lock = threading.Lock()
        self._saving: set[str] = set()

    def save(self, api: virConnect, desk: Desk, snapshot: str, boot: str) -> Saved:
        place = self.layout.snapshot(snapshot)
        if place.exists():
            raise ConflictError(f"there already is a snapshot {snapshot}", code="snapshot_exists", snapshot=snapshot)
        new = place.with_name(snapshot + _NEW)
        with self._alone(desk):
            domain = machines.must_run(api, desk)
            kind, base, uid = about(desk)
            drop(new)
            self.layout.folder(new)
            try:
                top = _taken(domain, new / "memory", _unused(desk), uid)
                saved.read(new / "memory")
                firmware.keep(desk.dir, new)
                disks.flatten(top, base, new / "disk.qcow2")
                (new / "base").write_text(str(base))
                for name in ("memory", "disk.qcow2"):
                    _settle(new / name)
                warm.write(new, boot, kind)
                new.rename(place)
            except BaseException:
                drop(new)
                raise
        return Saved("memory", sum(path.stat().st_blocks * 512 for path in place.iterdir()))

    @contextmanager
    def _alone(self, desk: Desk) -> Iterator[None]:
        """Nobody else saves this desktop, not even who was given up."""
        with self._lock:
            if desk.id in self._saving:
                raise UnavailableError(
                    f"desktop {desk.id} is still being saved by an attempt that was given up",
                    remedy="try again in a moment",
                    code="still_saving",
                    desktop=desk.id,
                )
            self._saving.add(desk.id)
        try:
            yield
        finally:
            self._saving.discard(desk.id)

    def state(self, snapshot: str) -> tuple[State, Path]:
        """A snapshot, and the disk that its own rests on."""
        place = self.layout.snapshot(snapshot)
        found = warm.read(place)
        if found is None:
            raise NotFoundError(f"there is no snapshot {snapshot}", code="no_snapshot", snapshot=snapshot)
        base = Path((place / "base").read_text())
        if not base.exists():
            raise BrokenError(
                f"snapshot {snapshot} cannot be restored: the image it rests on is gone ({base})", code="damaged"
            )
        return found, base

    def delete(self, snapshot: str) -> None:
        place = self.layout.snapshot(snapshot)
        drop(place.with_name(snapshot + _NEW))
        if place.exists():
            (place / "about.json").unlink(missing_ok=True)  # from here on it is none
            drop(place)

    def saved(self) -> list[str]:
        if not self.layout.snapshots.is_dir():
            return []
        names = {path.name.removesuffix(_NEW) for path in self.layout.snapshots.iterdir()}
        return sorted(name for name in names if NAME.fullmatch(name))


def note(desk: Desk, kind: str, base: Path, uid: int | None, env: dict[str, str]) -> None:
    """What is to be known of a desktop's machine as long as it is there."""
    (desk.dir / "about.json").write_text(json.dumps({"kind": kind, "base": str(base), "uid": uid, "env": env}))


def about(desk: Desk) -> tuple[str, Path, int | None]:
    said = json.loads((desk.dir / "about.json").read_text("utf-8"))
    return said["kind"], Path(said["base"]), said["uid"]


def env_of(desk: Desk) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads((desk.dir / "about.json").read_text("utf-8"))["env"]
    except FileNotFoundError:
        return {}
    return found


def _unused(desk: Desk) -> Path:
    """A name that no layer ever had: the machine may write to what a save of the same name left, which was cut off."""
    return desk.dir / f"disk-{secrets.token_hex(4)}.qcow2"


def _taken(domain: virDomain, memory: Path, above: Path, uid: int | None) -> Path:
    """Save the memory, and have the machine write to a new layer from then on; the one that it wrote to before."""
    from libvirt import libvirtError

    machine = domain.XMLDesc()
    layers = _layers(machine)
    if disks.layers(layers[0]) != layers:
        raise BrokenError(f"the layers of {layers[0]} are not those that its machine has", code="damaged")
    disks.overlay(above, layers[0], uid)
    try:
        domain.snapshotCreateXML(_xml(memory, above, machine), _flags())
    except BaseException:
        with suppress(libvirtError):  # it does not answer, and may still do it: what nobody uses goes with the desktop
            if above not in _layers(domain.XMLDesc()):
                above.unlink()
        raise
    if _layers(domain.XMLDesc()) != [above, *layers]:
        raise BrokenError(f"{layers[0]} was given another layer while it was saved", code="damaged")
    return layers[0]


def _layers(xml: str) -> list[Path]:
    """What the machine's disk consists of at this moment, from the layer that it writes to down."""
    layer = fromstring(xml).find("devices/disk/target[@dev='vda']/..")  # noqa: S314  # libvirt's own
    found = []
    while layer is not None and (source := layer.find("source")) is not None:
        found.append(Path(source.get("file", "")))
        layer = layer.find("backingStore")
    if not found:
        raise BrokenError("the machine has no disk", code="damaged")
    return found


def _xml(memory: Path, above: Path, machine: str) -> str:
    top = Element("domainsnapshot")
    SubElement(top, "memory", snapshot="external", file=str(memory))
    layers = SubElement(top, "disks")
    disk = SubElement(layers, "disk", name="vda", snapshot="external", type="file")
    SubElement(disk, "driver", type="qcow2")
    SubElement(disk, "source", file=str(above))
    if "'vdb'" in machine:  # the seed
        SubElement(layers, "disk", name="vdb", snapshot="no")
    return tostring(top, "unicode")


def _flags() -> int:
    import libvirt

    return int(libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT)


def _settle(path: Path) -> None:
    """On the disk, and nobody's but ours."""
    if os.geteuid() == 0:
        os.chown(path, 0, 0)
    path.chmod(0o400)
    with path.open("rb") as file:
        os.fsync(file.fileno())
