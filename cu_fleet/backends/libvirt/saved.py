"""libvirt's files of saved machines, read and begun anew: how a machine wakes under another name than it was saved.

libvirt 9 refuses to restore under another name or UUID. But such a file is a short head, the machine as XML, what
libvirt remembers of it (the cookie), and QEMU's own stream, which knows no names. So we write a head and the XML of
the new machine into a pipe, and QEMU's stream after it: nothing is copied on the disk.

The XML is the saved one with its own words replaced, never one made anew: what libvirt added to it (addresses of
devices above all) must be exactly what QEMU's stream expects.
"""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from cu_fleet.model.errors import BrokenError

_HEAD = struct.Struct("<16s5I14I")
_MAGIC, _PARTIAL, _VERSION = b"LibvirtQemudSave", b"LibvirtQemudPart", 2
_MOST = 1 << 20  # of XML and cookie


@dataclass(frozen=True)
class Saved:
    xml: str
    cookie: bytes
    was_running: int
    compressed: int
    at: int  # where QEMU's stream begins

    def head(self, xml: str) -> bytes:
        """The beginning of a file that restores as this machine."""
        body = xml.encode() + b"\0"
        after = len(body) if self.cookie else 0
        unused = [0] * 14
        head = _HEAD.pack(
            _MAGIC, _VERSION, len(body) + len(self.cookie), self.was_running, self.compressed, after, *unused
        )
        return head + body + self.cookie


def read(path: Path) -> Saved:
    with path.open("rb") as file:
        head = file.read(_HEAD.size)
        if len(head) < _HEAD.size or head[:16] != _MAGIC:
            half = head.startswith(_PARTIAL)
            raise BrokenError(
                f"{path} is no saved machine" + (": it was cut off while it was written" if half else ""),
                code="damaged",
            )
        _, version, size, running, compressed, cookie, *_ = _HEAD.unpack(head)
        if version != _VERSION or not 0 < size <= _MOST or cookie > size:
            raise BrokenError(f"{path} was saved by a libvirt that we do not know (version {version})", code="damaged")
        body = file.read(size)
    text, kept = (body[:cookie], body[cookie:]) if cookie else (body, b"")
    return Saved(text.rstrip(b"\0").decode(), kept, running, compressed, _HEAD.size + size)


def pour(saved: Saved, path: Path, xml: str, into: int) -> None:
    """Write a saved machine under another name to a pipe, and close that. Blocks until it has been taken."""
    with path.open("rb") as file, os.fdopen(into, "wb", buffering=0) as pipe:
        rest = memoryview(saved.head(xml))
        while rest:
            rest = rest[pipe.write(rest) :]
        at, end = saved.at, path.stat().st_size
        while at < end and (size := os.sendfile(pipe.fileno(), file.fileno(), at, min(end - at, 1 << 20))):
            at += size
