"""The record of who did what: append-only, chained and keyed.

Each entry carries the MAC of the one before it, and its own MAC covers all of it, so a changed, removed or reordered
entry breaks the chain for anyone who lacks the key. Cutting the tail or writing all of it anew leaves a valid chain:
that shows against anchors, copies of the head kept outside the database.
"""

import hashlib
import hmac
import json
from collections.abc import Iterable
from typing import ClassVar

from cu_fleet.model.errors import BrokenError
from cu_fleet.model.record import Record, Value

START = "0" * 64  # what the first entry points back to


class Draft(Value):
    """What happened, before it has a place in the chain."""

    at: float
    what: str  # "act", "act.done", "lease.granted", "desktop.cleaned", …
    who: str  # "agent codex-a", "operator ana", "controller"
    lease: str | None = None
    agent: str | None = None
    desktop: str | None = None
    generation: int | None = None
    action: dict[str, object] | None = None  # type and arguments; typed text only as a keyed hash and its length
    intent: str | None = None  # why, in the caller's words
    frames: tuple[str, ...] = ()  # sha256 of what was shown
    of: int | None = None  # a result names the entry of its intent
    result: str | None = None  # "ok", or an error's code
    seconds: float | None = None
    facts: dict[str, object] = {}


class Entry(Record, Draft):
    TABLE: ClassVar[str] = "audit"
    KEY: ClassVar[str] = "seq"
    COLUMNS: ClassVar[tuple[str, ...]] = ("at", "what", "who", "lease", "agent", "desktop", "mac")

    seq: int
    previous: str
    mac: str = ""


class Anchor(Value):
    """The head of the chain as it was at some moment, kept outside the database."""

    seq: int
    mac: str
    at: float


def chained(draft: Draft, head: Entry | None, key: bytes) -> Entry:
    """The entry that follows `head`."""
    entry = Entry(**dict(draft), seq=head.seq + 1 if head else 1, previous=head.mac if head else START)
    return entry.model_copy(update={"mac": mac_of(entry, key)})


def mac_of(entry: Entry, key: bytes) -> str:
    text = json.dumps(entry.model_dump(mode="json", exclude={"mac"}), sort_keys=True, separators=(",", ":"))
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def verify(entries: Iterable[Entry], anchors: Iterable[Anchor], key: bytes) -> int:
    """Check the whole chain against the key and the anchors; returns how many entries it has."""
    waiting = {anchor.seq: anchor.mac for anchor in anchors}
    previous, count = START, 0
    for entry in entries:
        count += 1
        if entry.seq != count:
            raise BrokenError(
                f"the audit record is broken: entry {count} is missing, the next one is {entry.seq}",
                code="audit_gap",
                seq=count,
            )
        if entry.previous != previous or not hmac.compare_digest(entry.mac, mac_of(entry, key)):
            raise BrokenError(
                f"the audit record is broken at entry {entry.seq} ({entry.what} by {entry.who}): changed or moved",
                code="audit_changed",
                seq=entry.seq,
            )
        anchored = waiting.pop(entry.seq, None)
        if anchored is not None and not hmac.compare_digest(anchored, entry.mac):
            raise BrokenError(
                f"the audit record is not the one that was anchored: entry {entry.seq} differs",
                code="audit_rewritten",
                seq=entry.seq,
            )
        previous = entry.mac
    if waiting:
        raise BrokenError(
            f"the audit record was cut: it ends at entry {count}, but entry {max(waiting)} is anchored",
            code="audit_cut",
            seq=max(waiting),
        )
    return count


def redacted(text: str, key: bytes) -> dict[str, object]:
    """Typed text as the record keeps it: enough to compare, not to read."""
    return {"length": len(text), "hmac": hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]}
