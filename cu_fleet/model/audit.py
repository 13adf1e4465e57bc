"""The record of who did what: append-only, chained and keyed.

Each entry carries the MAC of the one before it, and its own MAC covers all of it, so a changed, removed or reordered
entry breaks the chain for anyone who lacks the key. Cutting the tail or writing all of it anew leaves a valid chain:
that shows against anchors, copies of the head kept outside the database.

What the MAC covers is the entry's canonical text: sorted JSON without the fields that have their default, so that a
later version may give entries new optional fields and still verify old ones.
"""

import hmac
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import ClassVar, NamedTuple

from pydantic import ConfigDict, ValidationError

from cu_fleet.model.errors import BrokenError, InvalidError
from cu_fleet.model.record import Record, Value

START = "0" * 64  # what the first entry points back to
_HALF = "\\ud"  # how JSON writes what may be half a character
_DEEP = 60  # brackets; more may be nested deeper than can be read back
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


class Draft(Value):
    """What happened, before it has a place in the chain."""

    model_config = ConfigDict(
        ser_json_inf_nan="constants"
    )  # by default they turn into null, unsaid; so they are refused

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


_DEFAULTS = {name: field.get_default() for name, field in Draft.model_fields.items() if not field.is_required()}


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


class Sealed(NamedTuple):
    """An entry as a store keeps it."""

    seq: int
    mac: str
    text: str  # canonical

    def entry(self) -> Entry:
        return Entry.model_validate_json(self.text).model_copy(update={"mac": self.mac})


def chained(draft: Draft, head: Entry | Anchor | None, key: bytes) -> Entry:
    """The entry that follows `head`, exactly as it will be read back."""
    return sealed(draft, (head.seq, head.mac) if head else None, key).entry()


def sealed(draft: Draft, head: tuple[int, str] | None, key: bytes) -> Sealed:
    """The entry that follows the one of this number and MAC.

    What JSON cannot carry (an infinite number, half a character) is refused here: it would verify never again.
    """
    seq, previous = (head[0] + 1, head[1]) if head else (1, START)
    try:
        text = _text(draft, {"seq": seq, "previous": previous})
        if _HALF in text or text.count("{") + text.count("[") > _DEEP:
            Entry.model_validate_json(text)
    except (ValueError, ValidationError) as e:
        raise InvalidError(f"{draft.what} by {draft.who!r} cannot be recorded: {e}", code="not_recordable") from None
    return Sealed(seq, _mac(text, key), text)


def _text(draft: Draft, place: Mapping[str, object]) -> str:
    """Canonical. Mostly a draft holds what JSON knows as it is, and need not be turned into that first."""
    fields = {name: value for name, value in draft.__dict__.items() if value != _DEFAULTS.get(name, ...)}
    try:
        return _ENCODER.encode({**fields, **place})
    except TypeError:
        return _canonical(draft, place)


def canonical(entry: Entry) -> str:
    """The text that the MAC covers, which is also what a store keeps."""
    return _canonical(entry, {})


def _canonical(draft: Draft, place: Mapping[str, object]) -> str:
    fields = draft.model_dump(mode="json", exclude={"mac"}, exclude_defaults=True)
    return _ENCODER.encode({**fields, **place})


def mac_of(entry: Entry, key: bytes) -> str:
    return _mac(canonical(entry), key)


def _mac(text: str, key: bytes) -> str:
    return _hmac(key, b"entry", text.encode())


def _hmac(key: bytes, purpose: bytes, text: bytes) -> str:
    """`purpose` keeps what an agent types from ever hashing like an entry."""
    keyed = _keyed(key, purpose).copy()
    keyed.update(text)
    return keyed.hexdigest()


@lru_cache(8)  # to begin anew takes as long as the rest
def _keyed(key: bytes, purpose: bytes) -> hmac.HMAC:
    return hmac.new(key, purpose + b"\n", "sha256")


class Verifier:
    """Checks a chain as it comes, entry by entry; keeps the last MAC and the anchors still ahead, nothing else."""

    def __init__(self, anchors: Iterable[Anchor], key: bytes) -> None:
        self.count = 0
        self._key = key
        self._previous = START
        self._ahead: dict[int, set[str]] = {}
        for anchor in anchors:
            self._ahead.setdefault(anchor.seq, set()).add(anchor.mac)

    def feed(self, entry: Entry) -> None:
        self.count += 1
        if entry.seq != self.count:
            raise BrokenError(
                f"the audit record is broken: where entry {self.count} should be comes entry {entry.seq}",
                remedy="entries were removed or reordered; compare with an export or a copy of the database",
                code="audit_gap",
                seq=self.count,
            )
        if entry.previous != self._previous or not hmac.compare_digest(entry.mac, mac_of(entry, self._key)):
            raise BrokenError(
                f"the audit record is broken at entry {entry.seq} ({entry.what} by {entry.who}): changed or moved",
                remedy="compare it with an export or a copy of the database"
                + (", and check that the home's audit key is the one it began with" if self.count == 1 else ""),
                code="audit_changed",
                seq=entry.seq,
            )
        if self._ahead.pop(entry.seq, {entry.mac}) != {entry.mac}:
            raise BrokenError(
                f"the audit record is not the one that was anchored: entry {entry.seq} differs",
                remedy="it was written anew, or an older copy went on; compare it with an export",
                code="audit_rewritten",
                seq=entry.seq,
            )
        self._previous = entry.mac

    def end(self) -> int:
        """How many entries there were; raises if anchors point beyond the last."""
        if self._ahead:
            raise BrokenError(
                f"the audit record was cut: it ends at entry {self.count}, but entry {max(self._ahead)} is anchored",
                remedy="its end was removed, or an older copy was put in place; compare it with an export",
                code="audit_cut",
                seq=max(self._ahead),
            )
        return self.count


def verify(entries: Iterable[Entry], anchors: Iterable[Anchor], key: bytes) -> int:
    """Check the whole chain against the key and the anchors; returns how many entries it has."""
    verifier = Verifier(anchors, key)
    for entry in entries:
        verifier.feed(entry)
    return verifier.end()


def redacted(text: str, key: bytes) -> dict[str, object]:
    """Typed text as the record keeps it: enough to compare, not to read."""
    return {"length": len(text), "hmac": _hmac(key, b"text", text.encode("utf-8", "surrogatepass"))[:32]}
