"""Disks of machines: layers over what nobody writes to any more, made and measured by QEMU's own tool."""

import json
import os
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from cu_fleet.model.errors import UnavailableError

_SECONDS = 600


def overlay(path: Path, base: Path, uid: int | None, kind: str = "qcow2") -> None:
    """A new disk that begins as `base`, which must not change as long as this one is used."""
    try:
        found = base.stat()
        path.touch(0o600)
        path.write_bytes(_fresh(base, kind, (found.st_ino, found.st_size, found.st_mtime_ns)))
    except OSError as e:
        raise _failed("the disk could not be made", f"{e.filename or path}: {e.strerror}") from e
    give(path, uid)


@lru_cache(8)
def _fresh(base: Path, kind: str, known: tuple[int, int, int]) -> bytes:
    """What such a disk is like, as long as the base is the same: it takes the tool longer to start than to make it."""
    del known
    with tempfile.TemporaryDirectory(prefix="cu-fleet-disk-") as folder:
        path = Path(folder, "fresh")
        _tool("create", "-q", "-f", "qcow2", "-F", kind, "-b", str(base), str(path))
        return path.read_bytes()


def flatten(top: Path, base: Path, target: Path) -> None:
    """All layers from `top` down to `base` as one over `base`."""
    _tool("convert", "-O", "qcow2", "-F", "qcow2", "-B", str(base), str(top), str(target))


def copy(source: Path, target: Path, uid: int | None) -> None:
    """A copy, with what was never written left out."""
    command = ["cp", "--sparse=always", "--reflink=auto", str(source), str(target)]
    _run(command, f"{source.name} could not be copied")
    target.chmod(0o600)
    give(target, uid)


def give(path: Path, uid: int | None) -> None:
    if uid is not None:
        os.chown(path, uid, uid)


def used(path: Path) -> int:
    return path.stat().st_blocks * 512


def info(path: Path) -> dict[str, Any]:
    """What QEMU's tool says of a disk."""
    found: dict[str, Any] = json.loads(_tool("info", "--output=json", "-U", str(path)))
    return found


def layers(top: Path) -> list[Path]:
    """A disk and all that it rests on, as they say themselves."""
    found = json.loads(_tool("info", "--output=json", "-U", "--backing-chain", str(top)))
    return [Path(one["filename"]) for one in found]


def beginning(path: Path, kind: str, size: int) -> bytes:
    """The first bytes that a machine would see on it."""
    with tempfile.TemporaryDirectory(prefix="cu-fleet-disk-") as folder:
        out = Path(folder, "out")
        _tool("dd", "-U", "-f", kind, "-O", "raw", "bs=512", f"count={size // 512}", f"if={path}", f"of={out}")
        return out.read_bytes()


def _tool(*arguments: str) -> str:
    if shutil.which("qemu-img") is None:
        raise UnavailableError("qemu-img is not installed", remedy="apt-get install qemu-utils", code="missing_program")
    return _run(
        ["qemu-img", *arguments],
        "the disk could not be made" if arguments[0] == "create" else "the disk cannot be read",
    )


def _run(command: list[str], what: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip()
        raise _failed(what, said)
    return ended.stdout


def _failed(what: str, said: str) -> UnavailableError:
    full = "No space left" in said
    return UnavailableError(
        f"{what}: {said}", remedy="make room" if full else "", code="disk_full" if full else "disk_failed"
    )
