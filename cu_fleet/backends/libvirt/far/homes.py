"""What a profile's fresh homes begin with, on its way to another host: packed here, and laid there under its digest."""

import hashlib
import io
import os
import re
import secrets
import tarfile
import time
from contextlib import suppress
from pathlib import Path

from cu_fleet.backends.libvirt.layout import drop
from cu_fleet.model.errors import InvalidError

MOST = 256 << 20  # bytes
_UNUSED = 7 * 86400.0  # seconds after which nobody seems to need one any more
_DIGEST = re.compile(r"[0-9a-f]{64}")


def pack(folder: Path) -> tuple[str, bytes]:
    """The same for the same content."""
    data = io.BytesIO()

    def bounded(member: tarfile.TarInfo) -> tarfile.TarInfo:
        if data.tell() + member.size > MOST:
            raise InvalidError(f"{folder} is more than {MOST >> 20} MiB, too much for another host", code="large")
        return member

    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for one in sorted(folder.iterdir()):
            tar.add(one, one.name, filter=bounded)
    packed = data.getvalue()
    return hashlib.sha256(packed).hexdigest(), packed


def has(folder: Path, digest: str) -> bool:
    """Whether it is there; then it is needed again."""
    try:
        os.utime(folder / _checked(digest))
    except FileNotFoundError:
        return False
    return True


def lay(folder: Path, digest: str, packed: bytes) -> None:
    if hashlib.sha256(packed).hexdigest() != _checked(digest):
        raise InvalidError("a home did not come as it was sent", code="damaged")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = folder / f".{secrets.token_hex(8)}"
    new.mkdir(mode=0o700)
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
            tar.extraction_filter = getattr(tarfile, "tar_filter", None)  # which the first 3.11 had not
            tar.extractall(new)  # noqa: S202 - it comes from whoever may do anything here
        os.utime(new)
        with suppress(OSError):  # another was faster
            new.rename(folder / digest)
    finally:
        drop(new)


def tidy(folder: Path) -> None:
    """Forget what nobody has begun with for long."""
    for one in folder.glob("*"):
        with suppress(FileNotFoundError):
            if time.time() - one.stat().st_mtime > _UNUSED:
                drop(one)


def _checked(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise InvalidError(f"{digest[:100]!r} names no home", code="bad_home")
    return digest
