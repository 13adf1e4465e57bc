"""What windows a desktop has, and which of them has the focus.

With a window manager it is asked, by the hints that all of them know; without one the children of the root are the
windows, and the focus is set by us.
"""

from __future__ import annotations

import time

from Xlib import X, Xatom, error  # type: ignore[import-untyped]
from Xlib.protocol import event as xevent  # type: ignore[import-untyped]

from cu_fleet.guest.terms import PATIENCE, RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cu_fleet.guest.link import Link
    from cu_fleet.guest.terms import Answer, Steps


def from_compound(value: bytes) -> str:
    """X's older encoding of names: Latin-1, with escapes to UTF-8 and to the East Asian sets."""
    text = ""
    for plain in value.split(b"\x1b%G"):
        utf8, end, rest = plain.partition(b"\x1b%@")
        text += utf8.decode("utf-8", "replace") if end else ""
        rest = rest if end else plain
        text += rest.decode("iso2022_jp_2" if b"\x1b" in rest else "latin-1", "replace")
    return text


class Windows:
    def __init__(self, link: Link) -> None:
        self.link = link
        self.display, self.root = link.display, link.root

    def has_manager(self) -> bool:
        check = self.link.get(self.root, "_NET_SUPPORTING_WM_CHECK", Xatom.WINDOW)
        return bool(check)

    def manager(self) -> str | None:
        check = self.link.get(self.root, "_NET_SUPPORTING_WM_CHECK", Xatom.WINDOW)
        return self.text(self.display.create_resource_object("window", check[0]), "_NET_WM_NAME") if check else None

    def clients(self) -> list[Any]:
        ids = self.link.get(self.root, "_NET_CLIENT_LIST", Xatom.WINDOW, 64 << 10)
        if ids is not None:
            return [self.display.create_resource_object("window", i) for i in ids]
        return [w for w in self.root.query_tree().children if self.is_shown(w)]

    def is_shown(self, window: Any) -> bool:
        try:
            return window.get_attributes().map_state == X.IsViewable and window.get_wm_class() is not None
        except error.XError:
            return False

    def active(self) -> int:
        found = self.link.get(self.root, "_NET_ACTIVE_WINDOW", Xatom.WINDOW)
        if found is not None:
            return found[0] if len(found) else 0
        focus = self.display.get_input_focus().focus
        return getattr(focus, "id", 0)

    def text(self, window: Any, name: str) -> str:
        value = self.link.get(window, name, X.AnyPropertyType)
        if not isinstance(value, bytes):
            return ""
        text = value.decode("utf-8", "replace") if name.startswith("_NET") else from_compound(value)
        return text.replace("\0", " ")[:1000]

    def describe(self, window: Any, active: int) -> Answer:
        geometry = window.get_geometry()
        place = self.root.translate_coords(window, 0, 0)
        pid = self.link.get(window, "_NET_WM_PID", Xatom.CARDINAL)
        states = self.link.get(window, "_NET_WM_STATE", Xatom.ATOM) or []
        names = self.link.get(window, "WM_CLASS", Xatom.STRING)
        names = names.decode("latin-1").split("\0") if isinstance(names, bytes) else []
        return {
            "id": window.id,
            "title": self.text(window, "_NET_WM_NAME") or self.text(window, "WM_NAME"),
            "class": (names[1] if len(names) > 1 else "")[:200],
            "pid": pid[0] if pid else None,
            "x": place.x,
            "y": place.y,
            "width": geometry.width,
            "height": geometry.height,
            "focused": window.id == active,
            "minimized": self.link.atom("_NET_WM_STATE_HIDDEN") in states,
        }

    def all(self) -> list[Answer]:
        active, found = self.active(), []
        for window in self.clients()[:1000]:
            try:
                found.append(self.describe(window, active))
            except error.XError:
                continue  # closed meanwhile
        return found

    def focus(self, number: int) -> Steps:
        window = next((w for w in self.clients() if w.id == number), None)
        if window is None:
            raise RefusedError("not_found", f"there is no window {number}")
        if not self.has_manager():
            window.set_input_focus(X.RevertToParent, X.CurrentTime)
            window.configure(stack_mode=X.Above)
        else:
            message = xevent.ClientMessage(
                window=window, client_type=self.link.atom("_NET_ACTIVE_WINDOW"), data=(32, [2, X.CurrentTime, 0, 0, 0])
            )
            self.root.send_event(message, event_mask=X.SubstructureRedirectMask | X.SubstructureNotifyMask)
        until = time.monotonic() + PATIENCE
        while self.active() != number:
            event = yield (lambda e: e.type == X.PropertyNotify and e.window == self.root), until
            if event is None:
                raise RefusedError("not_focused", f"window {number} did not take the focus within {PATIENCE:.0f} s")
        return {"window": number}

    def heard(self, presses: int) -> Steps:
        """Return when the window manager has dealt with so many presses of a button, which came before.

        What it is asked about our own window it answers in its turn. A press that is held back behind another comes to
        it when that is let go, hence one question for each.
        """
        asked, told = self.link.atom("_NET_REQUEST_FRAME_EXTENTS"), self.link.atom("_NET_FRAME_EXTENTS")
        if not self.has_manager():
            return {"heard": True}
        if asked not in (self.link.get(self.root, "_NET_SUPPORTED", Xatom.ATOM) or []):
            return {"heard": False}
        for _ in range(presses):
            message = xevent.ClientMessage(window=self.link.window, client_type=asked, data=(32, [0] * 5))
            self.root.send_event(message, event_mask=X.SubstructureRedirectMask | X.SubstructureNotifyMask)
            event = yield (lambda e: e.type == X.PropertyNotify and e.atom == told), time.monotonic() + PATIENCE
            if event is None:
                return {"heard": False}
        return {"heard": True}
