"""Images of the user's: looked at, and never written.

What a profile names is the base of every desktop's disk, so it must stay as it is: its place, size and time of change
are part of what a warm state is found by. It must be one whole image, which machines, that may run as users of their
own, can read; and something on it must be able to begin. All of that is said before a machine is booted for nothing.
"""

import json
import os
import stat
import struct
from dataclasses import asdict, dataclass
from pathlib import Path

from cu_fleet.backends.libvirt import disks
from cu_fleet.backends.libvirt.options import ForeignOptions, foreign_options
from cu_fleet.model.errors import BrokenError, InvalidError, NotFoundError, UnsupportedError
from cu_fleet.model.profile import Profile

NOTE = "image.json"
_SECTOR = 512
_TABLE = 64 * _SECTOR  # the master boot record, and a partition table as most are
_MARK = b"\x55\xaa"
_EFI = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")  # what a GPT calls the EFI system partition
_MBR_EFI = 0xEF
_BY_AGENT = ("launch", "autostart", "env")


@dataclass(frozen=True)
class Given:
    """An image of the user's, as it is now."""

    path: Path
    kind: str  # qcow2 or raw
    size_bytes: int  # of the file
    lacks: str = ""  # why nothing on it can begin; empty: something may


@dataclass(frozen=True)
class Note:
    """What lies beside a warm state of an image that is not ours."""

    path: str
    kind: str
    mark: str
    up_after: float | None
    agent: bool = False
    user: str = ""


def note(image: Given, wanted: ForeignOptions) -> bytes:
    said = Note(str(image.path), image.kind, _mark(image.path), wanted.up_after, wanted.agent, wanted.user)
    return json.dumps(asdict(said)).encode()


def as_it_was(folder: Path) -> Note:
    """The note of a warm state, whose image must not have been changed since: all that rests on it would be broken."""
    found = noted(folder)
    try:
        now = _mark(Path(found.path))
    except FileNotFoundError:
        now = "gone"
    if now != found.mark:
        raise BrokenError(
            f"{found.path} is {'gone' if now == 'gone' else 'not as it was'}, and machines were made of it",
            remedy="put it back as it was, or make new desktops and snapshots; give a changed image a new name",
            code="image_changed",
        )
    return found


def noted(folder: Path) -> Note:
    said = json.loads((folder / NOTE).read_text("utf-8"))
    return Note(*said) if isinstance(said, list) else Note(**said)  # a list: of before there were agents


def _mark(path: Path) -> str:
    """Changes when the image does."""
    found = path.stat()
    return f"{found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns}"


def need(profile: Profile) -> Given:
    """The image of a profile, or in words why it cannot be had. Blocks."""
    wanted = foreign_options(profile)
    for key in ("home", *(() if wanted.agent else _BY_AGENT)):
        if getattr(profile, key):
            agent = " or say options: {agent: true}, if the image has qemu-guest-agent," if key != "home" else ""
            raise UnsupportedError(
                f'profile "{profile.name}": {key}: needs a program of ours inside, and {profile.image} has none',
                remedy=f"leave out {key},{agent} or use our image: cu-fleet image build vm-desktop",
                code=f"no_{key}",
            )
    found = look(Path(profile.image or ""), uefi=wanted.firmware == "uefi")
    if found.lacks:
        raise InvalidError(f"no machine can begin from {found.path}: {found.lacks}", code="not_bootable")
    return found


def look(path: Path, *, uefi: bool) -> Given:
    if not path.is_absolute():
        raise InvalidError(
            f"{str(path)!r} is no absolute path to an image", remedy="say image: /path/to/disk.qcow2", code="no_image"
        )
    if not path.is_file():
        raise NotFoundError(f"there is no image {path}", code="no_image", image=str(path))
    _refuse_unreadable(path)
    said = disks.info(path)
    kind = str(said["format"])
    if kind not in ("qcow2", "raw"):
        raise UnsupportedError(
            f"{path} is an image of kind {kind}; only qcow2 and raw are supported",
            remedy=f"convert it: qemu-img convert -O qcow2 {path} {path.with_suffix('.qcow2')}",
            code="image_kind",
        )
    own = said.get("format-specific", {}).get("data", {})
    for key in ("backing-filename", "encrypted", "data-file"):
        if said.get(key) or own.get(key):
            raise UnsupportedError(
                f"{path} is not whole in itself ({key})",
                remedy=f"make it so: qemu-img convert -O qcow2 {path} whole.qcow2",
                code="image_kind",
            )
    return Given(path, kind, path.stat().st_blocks * 512, lacks(disks.beginning(path, kind, _TABLE), uefi=uefi))


def _refuse_unreadable(path: Path) -> None:
    """Where machines run as users of their own, everybody must be able to read it."""
    if os.geteuid() != 0:
        return
    shut = next((one for one in reversed(path.resolve().parents) if not one.stat().st_mode & stat.S_IXOTH), None)
    if shut or not path.stat().st_mode & stat.S_IROTH:
        raise InvalidError(
            f"machines cannot read {path}: {f'others may not enter {shut}' if shut else 'others may not read it'}",
            remedy=f"put it where they can: install -m 444 {path} /var/lib/{path.name}",
            code="image_unreadable",
        )


def lacks(beginning: bytes, *, uefi: bool) -> str:
    """Why a machine with this firmware finds nothing to begin with, in words; empty where there may be something."""
    record, table = beginning[:_SECTOR].ljust(_SECTOR, b"\0"), beginning[_SECTOR:]
    bare = record[54:57] == b"FAT" or record[82:85] == b"FAT"  # a file system without partitions
    if not uefi:
        return "" if record[510:] == _MARK and any(record[:440]) else "it has no boot sector (is it made for UEFI?)"
    if record[510:] != _MARK:
        return "it has no partitions"
    types = {record[446 + 16 * number + 4] for number in range(4)}
    if bare or _MBR_EFI in types or _EFI in _types(table):
        return ""
    return "it has no EFI system partition (is it made for BIOS?)"


def _types(table: bytes) -> set[bytes]:
    """The types of the partitions in a GPT."""
    if table[:8] != b"EFI PART":
        return set()
    at, count, size = struct.unpack_from("<QII", table, 72)
    begin = (at - 1) * _SECTOR
    return {
        table[where : where + 16] for where in range(begin, begin + min(count, 128) * max(size, 128), max(size, 128))
    }
