"""The clipboard and the primary selection of a desktop: asked for from who owns them, or owned by us.

Text is UTF-8 throughout and may be long: then it goes in parts, each handed over when the last one was taken (INCR).
"""

from __future__ import annotations

import time

from Xlib import X, Xatom, error  # type: ignore[import-untyped]
from Xlib.protocol import event as xevent  # type: ignore[import-untyped]

from cu_fleet.guest.terms import LONGEST, MOST, PATIENCE, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from cu_fleet.guest.link import Link
    from cu_fleet.guest.terms import Match, Steps

CHUNK = 64 << 10  # longer texts are handed over in parts of this size
PLAIN = ("text/plain;charset=utf-8", "text/plain")


class ChangedError(Exception):
    """The clipboard has another owner than the one that was asked."""


class Handed:
    """What is offered to tasks when a text of ours was taken."""

    type = "handed"


HANDED = Handed()


class Selections:
    def __init__(self, link: Link) -> None:
        self.display, self.window, self.atom = link.display, link.window, link.atom
        self.owned: dict[int, tuple[bytes, int]] = {}  # selection atom -> (bytes, time)
        # (window id, property) -> [window, type, bytes left, deadline]
        self.transfers: dict[tuple[int, int], list[Any]] = {}
        self.busy: set[int] = set()  # properties of ours that an answer is awaited in
        self.handed = False  # whether the text set last has been handed to anybody, to its end

    # asking others

    def selection(self, name: object) -> int:
        names = {"clipboard": "CLIPBOARD", "primary": "PRIMARY"}
        if name not in names:
            raise RefusedError("invalid", "selection is clipboard or primary")
        return self.atom(names[name])

    def ask(self, name: object, limit: int) -> Steps:
        selection = self.selection(name)
        owner = self.display.get_selection_owner(selection)
        if owner == X.NONE:
            return {"text": ""}
        if owner == self.window:
            return {"text": self.owned[selection][0].decode()}
        for target, coding in (("UTF8_STRING", "utf-8"), ("STRING", "latin-1")):
            try:
                data = yield from self.ask_owner(selection, self.atom(target), limit, owner)
            except ChangedError:
                return (yield from self.ask(name, limit))
            if data is not None:
                return {"text": data.decode(coding, "replace")}
        return {"text": ""}

    def ask_owner(
        self, selection: int, target: int, limit: int, owner: Any
    ) -> Generator[tuple[Match, float], Any, bytes | None]:
        place = next((p for p in map(self.atom, (f"CU_FLEET_{n}" for n in range(8))) if p not in self.busy), None)
        if place is None:
            raise RefusedError("busy", "the clipboard is being asked for too often at once")
        self.busy.add(place)
        try:
            self.window.delete_property(place)
            self.window.convert_selection(selection, target, place, X.CurrentTime)
            last, event = time.monotonic() + PATIENCE, None
            while event is None:
                event = yield self.is_answer(selection, target), min(last, time.monotonic() + 0.3)
                if event is None and self.display.get_selection_owner(selection) != owner:
                    raise ChangedError
                if event is None and time.monotonic() >= last:
                    raise RefusedError("no_answer", f"the clipboard's owner did not answer in {PATIENCE:.0f} s")
            if event.property == X.NONE:
                return None
            return (yield from self.receive(place, limit))
        finally:
            self.window.delete_property(place)
            self.busy.discard(place)

    def is_answer(self, selection: int, target: int) -> Match:
        def match(e: Any) -> bool:
            if e.type != X.SelectionNotify or e.requestor != self.window:
                return False
            return bool(e.selection == selection and e.target == target)

        return match

    def receive(self, place: int, limit: int) -> Generator[tuple[Match, float], Any, bytes]:
        kind, data = self.take(place, limit)
        if kind != self.atom("INCR"):
            return data
        parts: list[bytes] = []
        total, last = 0, time.monotonic() + LONGEST
        while True:
            until = min(last, time.monotonic() + PATIENCE)
            event = yield (lambda e: self.is_new(e, place)), until
            if event is None:
                raise RefusedError(
                    "no_answer", "the program that owns the clipboard stopped in the middle of its answer"
                )
            _, data = self.take(place, limit)
            total += len(data)
            if total > limit:
                raise RefusedError("too_large", f"the clipboard holds more than {limit} bytes")
            if not data:
                return b"".join(parts)
            parts.append(data)

    def is_new(self, e: Any, place: int) -> bool:
        is_ours = e.type == X.PropertyNotify and e.window == self.window
        return bool(is_ours and e.atom == place and e.state == X.PropertyNewValue)

    def take(self, place: int, limit: int) -> tuple[int, bytes]:
        found = self.window.get_property(place, X.AnyPropertyType, 0, limit // 4 + 1)
        if found is None:
            return X.NONE, b""
        if found.bytes_after:
            raise RefusedError("too_large", f"the clipboard holds more than {limit} bytes")
        self.window.delete_property(place)
        return found.property_type, found.value if isinstance(found.value, bytes) else b""

    # owning them

    def own(self, text: bytes, names: list[object]) -> Steps:
        selections = [self.selection(name) for name in names]
        stamp = self.atom("CU_FLEET_TIME")
        self.window.change_property(stamp, Xatom.INTEGER, 32, [])
        event = yield (lambda e: self.is_new(e, stamp)), time.monotonic() + PATIENCE
        if event is None:
            raise RefusedError("no_answer", "the X server did not tell the time")
        for selection in selections:
            self.window.set_selection_owner(selection, event.time)
            if self.display.get_selection_owner(selection) != self.window:
                raise RefusedError("taken", "another program took the clipboard at the same moment")
            self.owned[selection] = (text, event.time)
        self.handed = False
        return {"bytes": len(text)}

    def taken(self, within: float) -> Steps:
        """Wait until a program has been handed the text set last: what is sent to it now, it hears after that."""
        if not self.handed:
            yield (lambda e: e is HANDED and self.handed), time.monotonic() + within
        self.display.sync()
        return {"taken": self.handed}

    def serve(self, e: Any) -> bool:
        """Answer other programs that want what we own; returns whether the event was for that."""
        if e.type == X.SelectionRequest:
            place = e.property if e.property != X.NONE else e.target
            owned = self.owned.get(e.selection) if e.owner == self.window else None
            done = owned is not None and self.convert(e.requestor, e.target, place, owned)
            self.tell(e, place if done else X.NONE)
        elif e.type == X.SelectionClear:
            self.owned.pop(e.atom, None)
        elif e.type == X.PropertyNotify and e.state == X.PropertyDelete:
            return self.go_on(e)
        else:
            return False
        return True

    def tell(self, e: Any, place: int) -> None:
        answer = xevent.SelectionNotify(
            time=e.time, requestor=e.requestor, selection=e.selection, target=e.target, property=place
        )
        e.requestor.send_event(answer)

    def convert(self, requestor: Any, target: int, place: int, owned: tuple[bytes, int], nested: bool = False) -> bool:
        text, since = owned
        name = self.name_of(target)
        if name == "TARGETS":
            names = ("TARGETS", "MULTIPLE", "TIMESTAMP", "UTF8_STRING", "STRING", "TEXT", *PLAIN)
            requestor.change_property(place, Xatom.ATOM, 32, [self.atom(n) for n in names])
        elif name == "TIMESTAMP":
            requestor.change_property(place, Xatom.INTEGER, 32, [since])
        elif name == "MULTIPLE" and not nested:
            self.convert_many(requestor, place, owned)
        elif name in ("UTF8_STRING", "TEXT", *PLAIN):
            self.hand_over(requestor, place, self.atom("UTF8_STRING") if name == "TEXT" else target, text)
        elif name == "STRING":
            self.hand_over(requestor, place, Xatom.STRING, text.decode().encode("latin-1", "replace"))
        else:
            return False
        return True

    def name_of(self, atom: int) -> str:
        try:
            return str(self.display.get_atom_name(atom))
        except error.XError:
            return ""

    def convert_many(self, requestor: Any, place: int, owned: tuple[bytes, int]) -> None:
        found = requestor.get_property(place, X.AnyPropertyType, 0, 64)
        pairs = list(found.value) if found and found.format == 32 else []
        for i in range(0, len(pairs) - 1, 2):
            if not self.convert(requestor, pairs[i], pairs[i + 1], owned, nested=True):
                pairs[i + 1] = X.NONE
        requestor.change_property(place, self.atom("ATOM_PAIR"), 32, pairs)

    def hand_over(self, requestor: Any, place: int, kind: int, data: bytes) -> None:
        if len(data) <= CHUNK:
            requestor.change_property(place, kind, 8, data)
            self.handed = True
            return
        self.forget_stale()
        if len(self.transfers) >= MOST:
            raise RefusedError("busy", "too many programs are being given the clipboard")
        requestor.change_attributes(event_mask=X.PropertyChangeMask)
        self.transfers[requestor.id, place] = [requestor, kind, data, time.monotonic() + LONGEST]
        requestor.change_property(place, self.atom("INCR"), 32, [len(data)])

    def go_on(self, e: Any) -> bool:
        """The next part of a long text, since the last one was taken."""
        transfer = self.transfers.get((e.window.id, e.atom))
        if transfer is None:
            return False
        window, kind, data, _ = transfer
        window.change_property(e.atom, kind, 8, data[:CHUNK])
        transfer[2:] = data[CHUNK:], time.monotonic() + LONGEST
        if not data:
            del self.transfers[e.window.id, e.atom]
            self.handed = True
            if window != self.window:
                window.change_attributes(event_mask=0)
        return True

    def forget_stale(self) -> None:
        now = time.monotonic()
        self.transfers = {key: t for key, t in self.transfers.items() if t[3] > now}
