"""What the programs on a desktop say of what they show, asked of a helper of its own inside (guest/accessible.py).

Looking is on record. Coordinates are told in the lease's view, as agents click them. A window whose program tells
nothing (an X program without a toolkit, or Tk) is named with an empty toolkit: only its picture shows what is in it.
"""

from pydantic import ValidationError

from cu_fleet.controller.acting import Acting
from cu_fleet.controller.core import Core
from cu_fleet.controller.helpers import Helpers
from cu_fleet.controller.inside import Inside
from cu_fleet.guest.carry import carried
from cu_fleet.model.access import Caller
from cu_fleet.model.desktop import Desktop
from cu_fleet.model.errors import BrokenError
from cu_fleet.model.geometry import Geometry
from cu_fleet.model.lease import Lease
from cu_fleet.model.ui import Ui, UiNode, UiWindow

_WITHIN = 20.0  # seconds; the helper itself gives up earlier


class Accessible:
    def __init__(self, core: Core, acting: Acting, inside: Inside) -> None:
        self.core, self.acting, self.inside = core, acting, inside
        self.helpers = Helpers(core, carried("accessible"))

    async def ui(
        self,
        who: Caller,
        lease_id: str,
        *,
        window: str = "",
        role: str = "",
        text: str = "",
        intent: str | None = None,
    ) -> Ui:
        """The elements of the active program's windows, or of those whose title or program has `window` in it."""
        lease, desktop = await self.acting.allowed(who, lease_id, look=True)
        windows = await self._windows(who, lease_id)
        asked = {"window": window, "role": role, "text": text}
        told = await (await self.helpers.of(desktop)).call("ui", timeout=_WITHIN, focus=_focus(windows), **asked)
        await self.inside.looked("ui", who, lease, dict(asked), intent)
        return read(told, windows, lease, desktop)

    async def where(self, who: Caller, lease_id: str, ref: str) -> tuple[int, int]:
        """The middle of an element, in pixels of the lease's view; refused if it is not what it was."""
        lease, desktop = await self.acting.allowed(who, lease_id, look=True)
        windows = await self._windows(who, lease_id)
        told = await (await self.helpers.of(desktop)).call("where", timeout=_WITHIN, ref=ref, focus=_focus(windows))
        x, y = told.get("x"), told.get("y")
        if not isinstance(x, int) or not isinstance(y, int):
            raise _not_understood(desktop)
        return _in_view(lease, desktop, x, y)

    async def _windows(self, who: Caller, lease_id: str) -> list[dict[str, object]]:
        return [window for window in await self.inside.windows(who, lease_id) if isinstance(window, dict)]


def _focus(windows: list[dict[str, object]]) -> object:
    """The program whose window has the keyboard; 0 if it does not say which it is."""
    return next((window.get("pid") or 0 for window in windows if window.get("focused")), 0)


def read(told: dict[str, object], windows: list[dict[str, object]], lease: Lease, desktop: Desktop) -> Ui:
    try:
        apps = told["windows"]
        assert isinstance(apps, list)
        assert isinstance(told["nodes"], list)
        nodes = [UiNode.model_validate(node) for node in told["nodes"]]
        known = {app["pid"] for app in apps}
        seen = [UiWindow(**{key: app[key] for key in UiWindow.model_fields}) for app in apps]
        mute = [_mute(window) for window in windows if window.get("pid") not in known]
        placed = [node.model_copy(update=_place(lease, desktop, node)) for node in nodes]
        return Ui.model_validate({**told, "windows": (*seen, *mute), "nodes": tuple(placed)})
    except (ValidationError, AssertionError, KeyError, TypeError):
        raise _not_understood(desktop) from None


def _mute(window: dict[str, object]) -> UiWindow:
    words = {"title": window.get("title"), "app": window.get("class")}
    return UiWindow(toolkit="", active=window.get("focused") is True, **{k: str(v)[:200] for k, v in words.items()})


def _place(lease: Lease, desktop: Desktop, node: UiNode) -> dict[str, int]:
    left, top, width, height = node.box
    x, y = _in_view(lease, desktop, left + width // 2, top + height // 2)
    return {"x": x, "y": y}


def _in_view(lease: Lease, desktop: Desktop, x: int, y: int) -> tuple[int, int]:
    view = Geometry.whole(desktop.width, desktop.height, lease.view)
    return view.shows(min(max(x, 0), desktop.width - 1), min(max(y, 0), desktop.height - 1))


def _not_understood(desktop: Desktop) -> BrokenError:
    return BrokenError(f"desktop {desktop.id} tells of its elements what nobody understands", code="helper_broken")
