"""Snapshots: the machine as it stands, disk and memory together, and programs running.

libvirt writes the memory to a file while the machine stands still, and in the same moment gives it a new layer to
write to; so the machine goes on at once, its screen and its wire stay connected, and the layers below are now still.
They are flattened into one disk beside the memory, over the image all machines share. A snapshot has its name only when
all of it is there. Restoring copies that disk and wakes the memory under the names of the desktop that gets it: libvirt
can revert no such snapshot itself, nor any of a machine with UEFI.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, tostring

from cu_fleet.backends.base import Saved
from cu_fleet.backends.libvirt import disks, firmware, machines, saved, warm
from cu_fleet.backends.libvirt.layout import Desk, Layout, drop
from cu_fleet.backends.libvirt.warm import State
from cu_fleet.model.errors import BrokenError, ConflictError, NotFoundError
from cu_fleet.model.names import NAME

if TYPE_CHECKING:
    from libvirt import virConnect

_NEW = ".new"


class Snapshots:
    """All calls block; run them in threads."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def save(self, api: virConnect, desk: Desk, snapshot: str, boot: str) -> Saved:
        place = self.layout.snapshot(snapshot)
        if place.exists():
            raise ConflictError(f"there already is a snapshot {snapshot}", code="snapshot_exists", snapshot=snapshot)
        domain = machines.must_run(api, desk)
        kind, base, uid = about(desk)
        new = place.with_name(snapshot + _NEW)
        drop(new)
        self.layout.folder(new)
        try:
            top = _top(domain.XMLDesc())
            above = desk.dir / f"disk-{len(list(desk.dir.glob('disk*.qcow2')))}.qcow2"
            disks.overlay(above, top, uid)
            try:
                domain.snapshotCreateXML(_xml(new / "memory", above, domain.XMLDesc()), _flags())
            except BaseException:
                above.unlink(missing_ok=True)
                raise
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


def _top(xml: str) -> Path:
    """The layer that the machine writes to at this moment."""
    from xml.etree import ElementTree

    for disk in ElementTree.fromstring(xml).iterfind("devices/disk"):  # noqa: S314  # libvirt's own
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None and target.get("dev") == "vda":
            return Path(source.get("file", ""))
    raise BrokenError("the machine has no disk", code="damaged")


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
