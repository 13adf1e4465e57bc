"""Anchors: copies of the audit chain's head, in a file beside the database.

A chain whose tail was cut, or which was written anew by someone who has the key, is still a valid chain; it shows
against the anchors. The database is made durable before its head is anchored, so that no loss of power can leave an
anchor ahead of the database and cry wolf. Before a new anchor is written, the newest one must still be in the chain:
evidence is never pushed out by what comes after the crime.

The file is one JSON line per anchor, only ever appended to, until it is thinned: the newer half stays, of the older
half every second one goes. A last line torn by a loss of power is passed over.
"""

import asyncio
import errno
import hmac
import os
import threading
import time
from pathlib import Path

from pydantic import ValidationError

from cu_fleet.model.audit import Anchor, Verifier
from cu_fleet.model.errors import BrokenError, UnavailableError
from cu_fleet.stores.base import Store, Tx

FULL = 256 << 10  # bytes at which the file is thinned: some two thousand anchors
BATCH = 500  # entries verified in one transaction; others get their turn in between

_writing = threading.Lock()


async def anchor(store: Store, path: Path, at: float | None = None) -> Anchor | None:
    """Anchor the chain's head; returns it, or None if the newest anchor is that already (or there is no entry yet).

    Raises BrokenError if the newest anchor is no longer in the chain: somebody has cut or rewritten it.
    """
    last = await asyncio.to_thread(_newest, path)
    new = await store.transact(lambda tx: _next_anchor(tx, last, time.time() if at is None else at))
    if new:
        await store.make_durable()
        await asyncio.to_thread(_append, path, new)
    return new


def read_anchors(path: Path) -> list[Anchor]:
    """All anchors, oldest first."""
    lines = _read(path).split(b"\n")
    if lines and _parsed(lines[-1]) is None:
        lines.pop()
    anchors = [_parsed(line) for line in lines]
    if None in anchors:
        raise BrokenError(
            f"line {anchors.index(None) + 1} of {path} is no anchor: the file was changed",
            remedy="compare the audit record with an export, then move this file away",
            code="anchors_changed",
        )
    return [anchor for anchor in anchors if anchor]


async def verify_store(store: Store, path: Path, key: bytes) -> int:
    """Check the whole record against key and anchors, in many short transactions; returns how many entries it has."""
    verifier = Verifier(await asyncio.to_thread(read_anchors, path), key)
    while await store.transact(lambda tx: _verify_some(tx, verifier)):
        pass
    return verifier.end()


def _verify_some(tx: Tx, verifier: Verifier) -> bool:
    entries = tx.entries(after=verifier.count, limit=BATCH)
    for entry in entries:
        verifier.feed(entry)
    return len(entries) == BATCH


def _next_anchor(tx: Tx, last: Anchor | None, at: float) -> Anchor | None:
    head = tx.head()
    if last:
        there = tx.entries(after=last.seq - 1, limit=1)
        if not there or there[0].seq != last.seq or not hmac.compare_digest(there[0].mac, last.mac):
            raise BrokenError(
                f"the audit record was cut or rewritten: entry {last.seq} is anchored, and it is not there any more",
                remedy="see what else is missing: cu-fleet audit verify; compare it with an export",
                code="audit_cut" if not there else "audit_rewritten",
                seq=last.seq,
            )
    if head is None or (last and last.seq == head.seq):
        return None
    return Anchor(seq=head.seq, mac=head.mac, at=at)


def _parsed(line: bytes) -> Anchor | None:
    try:
        return Anchor.model_validate_json(line)
    except ValidationError:
        return None


def _read(path: Path, last: int | None = None) -> bytes:
    """The file, or its last bytes."""
    try:
        with path.open("rb") as file:
            if last is not None:
                file.seek(max(0, file.seek(0, os.SEEK_END) - last))
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as e:
        raise UnavailableError(f"the anchors in {path} cannot be read: {e.strerror}", code="no_anchors") from e


def _newest(path: Path) -> Anchor | None:
    """The last whole line; torn ones are passed over here, and reported by `read_anchors`."""
    parsed = [_parsed(line) for line in _read(path, last=4096).split(b"\n")]
    return next((anchor for anchor in reversed(parsed) if anchor), None)


def _append(path: Path, new: Anchor) -> None:
    """Write one more anchor, whole and for good."""
    with _writing:
        last = _newest(path)
        if last and last.seq >= new.seq:
            return
        try:
            _write_line(path, new.model_dump_json().encode() + b"\n")
            if path.stat().st_size > FULL:
                _thin(path)
        except OSError as e:
            raise UnavailableError(
                f"the audit record cannot be anchored in {path}: {e.strerror}",
                remedy="free some space there, and check that the file may be written",
                code="not_anchored",
            ) from e


def _write_line(path: Path, line: bytes) -> None:
    made = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        end = _read(path).rfind(b"\n") + 1
        os.ftruncate(descriptor, end)  # away with what was torn
        if os.write(descriptor, line) != len(line):
            os.ftruncate(descriptor, end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if made:
        _sync_folder(path)


def _thin(path: Path) -> None:
    lines = _read(path).splitlines(keepends=True)
    half = len(lines) // 2
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.writelines(lines[:half:2] + lines[half:])
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync_folder(path)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
