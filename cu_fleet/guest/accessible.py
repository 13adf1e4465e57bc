"""What the programs of a desktop say of themselves through AT-SPI: names, roles and places of what is on the screen.

A program of its own beside the helper, started when first asked for, since a program that hangs holds up whoever asks
it. It speaks the helper's language, a request a line and an answer a line:

    {"id": 1, "do": "ui", "window": "", "role": "button", "text": "buy"}
    {"id": 2, "do": "where", "ref": "e7"}

It asks over D-Bus itself, by python3-gi: libatspi dispatches signals within calls, and comes to a stand where a program
starts meanwhile. Nothing is cached, so that the answers are those of this moment.

Of a tree only what matters is told: what shows, can be used or has something to say. Containers without a name make
room for what they hold. A reference stays with its element while that lives: one that has gone, or is now called
something else, is refused as stale.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time

from cu_fleet.guest.terms import RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from cu_fleet.guest.terms import Answer

    Where = tuple[str, str]  # whose, and its path there

MOST_NODES = 400  # told at once
EMBEDDED = "\ufffc"  # stands in a text for an element that is in it
AGAIN = "ask ui again"
MOST_CHILDREN = 1000  # of one element
MOST_LEVELS = 200
MOST_REFS = 4000  # remembered
WITHIN = 6.0  # seconds for one look
PATIENCE_MS = 1500  # for one answer of one program
LONGEST = 200  # characters of a name or a value

# fmt: off
USABLE = frozenset([
    "check box", "check menu item", "combo box", "date editor", "document web", "entry", "icon", "link",
    "list box", "list item", "menu", "menu item", "page tab", "password text", "push button",
    "push button menu", "radio button", "radio menu item", "scroll bar", "slider", "spin button", "switch",
    "table", "table cell", "terminal", "text", "toggle button", "tree item", "tree table",
])
# fmt: on
WRITTEN = frozenset(["entry", "text", "spin button", "combo box", "terminal", "date editor"])
MEASURED = frozenset(["slider", "scroll bar", "progress bar", "level bar"])
TOLD = ("focused", "checked", "pressed", "selected", "expanded")


# fmt: off
STATES = {
    "active": 1, "checked": 4, "defunct": 6, "enabled": 8, "expanded": 10, "focused": 12, "pressed": 20, "selected": 23,
    "sensitive": 24, "showing": 25, "visible": 30,
}
# fmt: on
ROOT = ("org.a11y.atspi.Registry", "/org/a11y/atspi/accessible/root")
_ATSPI = "org.a11y.atspi."


class Bus:
    """The accessibility bus of this desktop, begun with the first who asks for it."""

    def __init__(self) -> None:
        try:
            import gi  # type: ignore[import-not-found]

            gi.require_version("Gio", "2.0")
            from gi.repository import Gio, GLib  # type: ignore[import-not-found]
        except (ImportError, ValueError) as e:
            raise RefusedError("no_atspi", f"this desktop has no python3-gi: {e}") from e
        self.gio, self.glib = Gio, GLib
        try:
            self.connection = Gio.bus_get_sync(Gio.BusType.SESSION, None)
            address = self.call("org.a11y.Bus", "/org/a11y/bus", "org.a11y.Bus.GetAddress", patience=10_000)[0]
            flags = Gio.DBusConnectionFlags.AUTHENTICATION_CLIENT | Gio.DBusConnectionFlags.MESSAGE_BUS_CONNECTION
            self.connection = Gio.DBusConnection.new_for_address_sync(address, flags, None, None)
        except GLib.Error as e:
            raise RefusedError("no_atspi", f"this desktop has no accessibility bus (at-spi2-core): {e.message}") from e

    @property
    def failed(self) -> type[Exception]:
        return self.glib.Error  # type: ignore[no-any-return]

    def late(self, error: Exception) -> bool:
        """Whether nobody has answered in time, which tells nothing of what is there."""
        return bool(error.matches(self.gio.io_error_quark(), self.gio.IOErrorEnum.TIMED_OUT))  # type: ignore[attr-defined]

    def call(
        self, name: str, path: str, method: str, types: str = "", *args: object, patience: int = PATIENCE_MS
    ) -> tuple[Any, ...]:
        interface, _, member = method.rpartition(".")
        given = self.glib.Variant(f"({types})", args) if types else None
        none = self.gio.DBusCallFlags.NONE
        answer = self.connection.call_sync(name, path, interface, member, given, None, none, patience, None)
        return tuple(answer.unpack())

    def get(self, where: Where, interface: str, name: str) -> Any:
        return self.call(*where, "org.freedesktop.DBus.Properties.Get", "ss", _ATSPI + interface, name)[0]

    def pid(self, name: str) -> int:
        dbus = ("org.freedesktop.DBus", "/org/freedesktop/DBus")
        return int(self.call(*dbus, "org.freedesktop.DBus.GetConnectionUnixProcessID", "s", name)[0])

    def children(self, where: Where) -> list[Where]:
        return [tuple(child) for child in self.call(*where, _ATSPI + "Accessible.GetChildren")[0][:MOST_CHILDREN]]


class Element:
    """One accessible object, asked now: first whether it shows, and the rest only when it is wanted."""

    def __init__(self, bus: Bus, where: Where) -> None:
        self.bus, self.where = bus, where
        low, high = bus.call(*where, _ATSPI + "Accessible.GetState")[0]
        self.bits = low | high << 32
        self._role: str | None = None
        self._name: str | None = None

    def has(self, state: str) -> bool:
        return bool(self.bits >> STATES[state] & 1)

    @property
    def role(self) -> str:
        if self._role is None:
            self._role = shortened(self.bus.call(*self.where, _ATSPI + "Accessible.GetRoleName")[0])
        return self._role

    @property
    def name(self) -> str:
        if self._name is None:
            self._name = shortened(self.bus.get(self.where, "Accessible", "Name"))
        return self._name

    def box(self) -> tuple[int, int, int, int] | None:
        """Where it is on the screen; None if it has no place."""
        try:
            x, y, width, height = self.bus.call(*self.where, _ATSPI + "Component.GetExtents", "u", 0)[0]
        except self.bus.failed:
            return None
        return (x, y, width, height) if width > 0 and height > 0 and min(x, y) > -30_000 else None

    def value(self) -> str:
        """What stands in it. A password is nobody's business."""
        with contextlib.suppress(self.bus.failed):
            if self.role in WRITTEN:
                return shortened(self.bus.call(*self.where, _ATSPI + "Text.GetText", "ii", 0, LONGEST + 1)[0])
            if self.role in MEASURED:
                return f"{self.bus.get(self.where, 'Value', 'CurrentValue'):g}"
        return ""

    def notes(self) -> list[str]:
        off = self.role in USABLE and not (self.has("enabled") or self.has("sensitive"))
        return [state for state in TOLD if self.has(state)] + (["disabled"] if off else [])


class Reader:
    """Looks at the tree, and remembers what the references mean."""

    def __init__(self, bus: Bus) -> None:
        self.bus, self.failed = bus, bus.failed
        self.refs: dict[str, tuple[Where, str, str]] = {}  # the object, its role and name as they were told
        self.known: dict[Where, str] = {}
        self.count = self.left = 0
        self.until = 0.0
        self.nodes: list[dict[str, Any]] = []  # of the look under way

    # what can be asked for

    def do_ui(self, window: str = "", role: str = "", text: str = "", focus: int = 0) -> Answer:
        """`focus` is the program that the window manager gives the keyboard to: not all of them know it themselves."""
        self.until, self.left, self.nodes = time.monotonic() + WITHIN, 0, []
        tops, silent = self.tops(focus)
        wanted = [top for top in tops if matches(window, top["title"], top["app"])] if window else active(tops)
        for top in wanted:
            try:
                self.walk(top["where"], 0, "", role, text)
            except self.failed:
                silent.append(top["app"])
        named = [top for top in tops if top["title"]] or tops
        told = [{key: top[key] for key in ("app", "toolkit", "pid", "title", "active")} for top in named]
        return {"windows": told, "nodes": self.nodes, "left_out": self.left, "silent": sorted(set(silent))}

    def do_where(self, ref: str, focus: int = 0) -> Answer:
        """The middle of what a reference means, if that is still there and nothing lies over it."""
        if ref not in self.refs:
            raise RefusedError("stale", f"{str(ref)[:20]} is not known (any more); {AGAIN}")
        where, role, name = self.refs[ref]
        try:
            element = Element(self.bus, where)
            box = element.box() if element.has("showing") and not element.has("defunct") else None
            same = (element.role, element.name) == (role, name)
        except self.failed as e:
            if self.bus.late(e):
                raise RefusedError("no_answer", f'the program of {ref}, the {role} "{name}", does not answer') from e
            element, box, same = None, None, False
        if element is None or box is None:
            raise RefusedError("stale", f'{ref}, the {role} "{name}", is not on the screen any more; {AGAIN}')
        if not same:
            now = f'the {element.role} "{element.name}"'
            raise RefusedError("stale", f'{ref} was the {role} "{name}", and is {now} now; {AGAIN}')
        x, y = box[0] + box[2] // 2, box[1] + box[3] // 2
        if above := self.above(where, x, y, focus):
            raise RefusedError("covered", f'{ref}, the {role} "{name}", is behind the window "{above}"; raise its own')
        return {"x": x, "y": y, "role": role, "name": name}

    # the tree

    def tops(self, focus: int) -> tuple[list[dict[str, Any]], list[str]]:
        """The windows of all programs that answer, and the names of those that do not."""
        tops: list[dict[str, Any]] = []
        silent: list[str] = []
        for app in self.bus.children(ROOT):
            name = "a program"
            try:
                name = shortened(self.bus.get(app, "Accessible", "Name"))
                tops += self.tops_of(app, name, focus)
            except self.failed:
                silent.append(name)
        return tops, silent

    def tops_of(self, app: Where, name: str, focus: int) -> Iterator[dict[str, Any]]:
        pid, toolkit = self.bus.pid(app[0]), shortened(self.bus.get(app, "Application", "ToolkitName"))
        facts = {"app": name, "toolkit": toolkit, "pid": pid}
        for where in self.bus.children(app):
            top = Element(self.bus, where)
            if top.has("showing") or top.has("visible"):
                active = pid == focus if focus else top.has("active")
                yield {**facts, "title": top.name, "active": active, "where": where, "box": top.box()}

    def walk(self, where: Where, depth: int, above: str, role: str, text: str, level: int = 0) -> None:
        if time.monotonic() > self.until or len(self.nodes) >= MOST_NODES or level > MOST_LEVELS:
            self.left += 1
            return
        element = Element(self.bus, where)
        if level and not element.has("showing"):
            return
        value = element.value()
        matters = matter(element, value, above)
        wanted = matters and matches(role, element.role) and matches(text, element.name, value)
        if wanted and (box := element.box()):
            facts = {"role": element.role, "name": element.name, "value": value, "notes": element.notes()}
            self.nodes.append({"ref": self.ref(element), "depth": depth, **facts, "box": list(box)})
        for child in self.bus.children(where):
            self.walk(child, depth + 1 if matters else depth, element.name or above, role, text, level + 1)

    def ref(self, element: Element) -> str:
        ref = self.known.get(element.where)
        if ref is None:
            self.count += 1
            ref = self.known[element.where] = f"e{self.count}"
        self.refs.pop(ref, None)
        self.refs[ref] = (element.where, element.role, element.name)
        while len(self.refs) > MOST_REFS:
            oldest = next(iter(self.refs))
            self.known.pop(self.refs.pop(oldest)[0], None)
        return ref

    def above(self, where: Where, x: int, y: int, focus: int) -> str:
        """The title of the active window, if it is another program's and lies over this point."""
        for top in self.tops(focus)[0]:
            box = top["box"]
            inside = box and box[0] <= x < box[0] + box[2] and box[1] <= y < box[1] + box[3]
            if top["active"] and inside and top["where"][0] != where[0]:
                return str(top["title"] or top["app"])
        return ""


def matter(element: Element, value: str, above: str) -> bool:
    """Whether it can be used, or says something that what holds it does not say already."""
    if element.role in USABLE:
        return bool(element.name or value) or element.role not in ("menu", "table", "list box", "tree table", "icon")
    return any(map(str.isalnum, element.name)) and element.name not in above


def matches(wanted: str, *texts: str) -> bool:
    return not wanted or any(wanted.lower() in text.lower() for text in texts)


def active(tops: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All windows of the program that has the focus, for its menus are windows too; else all there are."""
    pids = {top["pid"] for top in tops if top["active"]}
    return [top for top in tops if top["pid"] in pids] or tops


def shortened(text: object) -> str:
    whole = " ".join(str(text or "").replace(EMBEDDED, " ").split())
    return whole if len(whole) <= LONGEST else whole[: LONGEST - 1] + "…"


def answered(one: Reader, number: object, name: str, request: Answer) -> Answer:
    try:
        return {"id": number, "ok": getattr(one, f"do_{name}")(**request)}
    except RefusedError as e:
        return {"id": number, "error": {"code": e.code, "text": str(e)}}
    except one.failed as e:
        return {"id": number, "error": {"code": "failed", "text": f"the accessibility bus: {e}"[:500]}}


def main() -> None:
    one: Reader | None = None
    for line in sys.stdin.buffer:
        request = json.loads(line)
        number, name = request.pop("id"), request.pop("do")
        try:
            one = one or Reader(Bus())
            answer = answered(one, number, name, request)
        except RefusedError as e:
            answer = {"id": number, "error": {"code": e.code, "text": str(e)}}
        data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        while data:
            data = data[os.write(1, data) :]
