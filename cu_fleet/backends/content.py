"""What a file holds: compared by its digest, and copied inside the kernel.

A digest covers the blocks that are not all zeros, so that it neither depends on how a file is allocated nor reads a
terabyte of holes.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator

from cu_fleet.model.errors import ConflictError

_BLOCK = 64 << 10
_ZEROS = bytes(_BLOCK)
_FICLONE = 0x40049409


def extents(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are not holes."""
    found = os.fstat(fd)
    if found.st_blocks * 512 >= found.st_size:
        if found.st_size:
            yield 0, found.st_size
        return
    end = 0
    while end < found.st_size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as e:
            if e.errno == errno.ENXIO:
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def digest(fd: int) -> str:
    """Of the content: the same for the same bytes, whatever is a hole and what is written zeros."""
    sha = hashlib.sha256()
    done = 0
    for start, end in extents(fd):
        at = max(done, start - start % _BLOCK)
        while at < end:
            block = os.pread(fd, _BLOCK, at)
            if not block:
                break
            if block != _ZEROS[: len(block)]:
                sha.update(at.to_bytes(8, "big"))
                sha.update(block)
            at += _BLOCK
        done = at
    return sha.hexdigest()


def digest_of(content: bytes) -> str:
    """The digest of a file with this content."""
    sha = hashlib.sha256()
    for at in range(0, len(content), _BLOCK):
        block = content[at : at + _BLOCK]
        if block != _ZEROS[: len(block)]:
            sha.update(at.to_bytes(8, "big"))
            sha.update(block)
    return sha.hexdigest()


def copy_content(source: int, to: int, size: int) -> None:
    """Copy inside the kernel, by sharing blocks where the file system can; holes stay holes."""
    try:
        fcntl.ioctl(to, _FICLONE, source)
    except OSError:
        os.ftruncate(to, size)
        for start, end in extents(source):
            _copy_range(source, to, start, min(end, size))


def _copy_range(source: int, to: int, at: int, end: int) -> None:
    while at < end:
        try:
            n = os.copy_file_range(source, to, end - at, at, at)
        except OSError as e:
            if e.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            os.lseek(to, at, os.SEEK_SET)
            n = os.sendfile(to, source, at, end - at)
        if n == 0:
            raise ConflictError("a file became shorter while it was copied", code="changed")
        at += n
