"""UEFI for machines that ask for it: which of this host's files it is, and each machine's own memory of settings.

Distributions say in small files what firmware they have, for which boards and with which features; libvirt reads the
same. What the firmware writes down (boot entries, the keys of Secure Boot) lies in a file of the machine's, begun as a
copy of the distribution's and copied with every state that is saved. A saved memory holds it too, and QEMU writes it
back when that wakes: so disk, memory and settings are always of one moment, with BIOS and UEFI alike.
"""

import json
import os
import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cu_fleet.model.errors import UnavailableError

_DESCRIBED = tuple(map(Path, ("/etc/qemu/firmware", "/usr/share/qemu/firmware")))  # the first wins, name by name
_BOARD = "pc-q35-7.2"
NVRAM = "nvram.fd"


@dataclass(frozen=True)
class Firmware:
    code: Path  # shared by all, and never written
    settings: Path  # how each machine's own begin
    secure: bool  # Secure Boot, with the keys that Windows and the shims of distributions are signed with


def find(*, secure: bool, folders: tuple[Path, ...] = _DESCRIBED) -> Firmware:
    """The first in the order their files are named that does this, and no more that would change how it boots."""
    named = {path.name: path for folder in reversed(folders) for path in folder.glob("*.json")}
    for name in sorted(named):
        said = json.loads(named[name].read_text("utf-8"))
        if _fits(said, secure):
            mapping = said["mapping"]
            return Firmware(
                Path(mapping["executable"]["filename"]), Path(mapping["nvram-template"]["filename"]), secure
            )
    what = "UEFI with Secure Boot" if secure else "UEFI"
    raise UnavailableError(
        f"there is no firmware with {what} for machines here", remedy="apt-get install ovmf", code="no_firmware"
    )


def _fits(said: dict[str, Any], secure: bool) -> bool:
    mapping, features = said.get("mapping", {}), set(said.get("features", ()))
    boards = [
        board
        for target in said.get("targets", ())
        if target.get("architecture") == "x86_64"
        for board in target["machines"]
    ]
    return (
        "uefi" in said.get("interface-types", ())
        and mapping.get("device") == "flash"
        and mapping.get("mode", "split") == "split"
        and mapping.get("executable", {}).get("format") == "raw"
        and any(fnmatch(_BOARD, board) for board in boards)
        and {"secure-boot", "enrolled-keys"} & features == ({"secure-boot", "enrolled-keys"} if secure else set())
        and "sev" not in " ".join(features - {"amd-sev", "amd-sev-es"})
    )


def own(settings: Path, source: Path, uid: int | None) -> None:
    """A machine's own settings, as they were in `source`."""
    shutil.copyfile(source, settings)
    settings.chmod(0o600)
    if uid is not None:
        os.chown(settings, uid, uid)


def keep(folder: Path, saved: Path) -> None:
    """Put the settings of the machine in `folder`, if it has any, beside a state of it."""
    if (folder / NVRAM).exists():
        shutil.copyfile(folder / NVRAM, saved / NVRAM)
        with (saved / NVRAM).open("rb+") as file:
            os.fchmod(file.fileno(), 0o400)
            os.fsync(file.fileno())
