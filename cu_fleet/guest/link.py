"""The helper's one connection to the X server."""

from __future__ import annotations

from Xlib import X, error  # type: ignore[import-untyped]
from Xlib.display import Display  # type: ignore[import-untyped]

from cu_fleet.guest.terms import RefusedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LOST: tuple[type[Exception], ...] = (OSError, error.ConnectionClosedError)
FAILED: tuple[type[Exception], ...] = (*LOST, error.XError)


class Link:
    def __init__(self) -> None:
        try:
            self.display = Display()
        except (error.DisplayError, OSError) as e:
            raise RefusedError("no_display", f"no X server answers in this desktop: {e}") from e
        self.display.set_error_handler(lambda problem, request: None)  # windows vanish; replies still raise
        self.root = self.display.screen().root
        self.root.change_attributes(event_mask=X.PropertyChangeMask)
        self.window = self.root.create_window(
            -1, -1, 1, 1, 0, X.CopyFromParent, X.InputOnly, X.CopyFromParent, event_mask=X.PropertyChangeMask
        )

    def atom(self, name: str) -> int:
        return int(self.display.intern_atom(name))

    def get(self, window: Any, name: str, kind: int, limit: int = 4096) -> Any:
        """A property's value, or None; never more than `limit` bytes of it."""
        found = window.get_property(self.atom(name), kind, 0, limit // 4 + 1)
        return None if found is None else found.value

    def close(self) -> None:
        self.display.display.socket.close()
