"""Looking at a leased desktop: its pictures, and what its programs say of themselves."""

from typing import TYPE_CHECKING, overload

from cu_fleet.client.http import given, read
from cu_fleet.client.opened import Opened
from cu_fleet.client.picture import Area, Format, picture
from cu_fleet.model.ui import Ui

if TYPE_CHECKING:
    from cu_fleet.client.picture import Picture

_SETTLED = {None: None, "true": True, "false": False}


class Eyes(Opened):
    @overload
    async def screenshot(
        self,
        *,
        region: Area | None = None,
        frame: str | None = None,
        max_edge: int | None = None,
        format: Format = "png",
        quality: int | None = None,
        max_bytes: int | None = None,
        pointer: bool = False,
        settle_ms: int | None = None,
        settle_timeout_ms: int | None = None,
        allow_blank: bool = False,
        intent: str | None = None,
    ) -> "Picture": ...

    @overload
    async def screenshot(
        self,
        *,
        if_changed_since: str,
        region: Area | None = None,
        frame: str | None = None,
        max_edge: int | None = None,
        format: Format = "png",
        quality: int | None = None,
        max_bytes: int | None = None,
        pointer: bool = False,
        settle_ms: int | None = None,
        settle_timeout_ms: int | None = None,
        allow_blank: bool = False,
        intent: str | None = None,
    ) -> "Picture | None": ...

    async def screenshot(
        self,
        *,
        if_changed_since: str | None = None,
        region: Area | None = None,
        frame: str | None = None,
        max_edge: int | None = None,
        format: Format = "png",  # noqa: A002 - as the API has it
        quality: int | None = None,
        max_bytes: int | None = None,
        pointer: bool = False,
        settle_ms: int | None = None,
        settle_timeout_ms: int | None = None,
        allow_blank: bool = False,
        intent: str | None = None,
    ) -> "Picture | None":
        """What the screen shows now, as a PIL image; `.frame` says which picture it is, and has its bytes.

        `region` is in pixels of the view, or of the picture that `frame` names; with a greater `max_edge` it comes with
        up to all its pixels. With `if_changed_since`, the id of a frame, None if the same call would show that again.
        A screen that is blank, or of another size than it should be, is refused unless `allow_blank`.
        """
        query = {
            "region": ",".join(map(str, region)) if region else None,
            "frame": frame,
            "max_edge": max_edge,
            "format": format,
            "quality": quality,
            "max_bytes": max_bytes,
            "pointer": pointer or None,
            "if_changed_since": if_changed_since,
            "settle_ms": settle_ms,
            "settle_timeout_ms": settle_timeout_ms,
            "allow_blank": allow_blank or None,
            "intent": intent,
        }
        answer = await self._call("GET", "screenshot", query=query, patience=(settle_timeout_ms or 2000) / 1000)
        if answer.status_code == 304:
            return None
        names = ("frame", "sha256", "width", "height", "age", "within", "scale", "generation", "format", "settled")
        facts = {name: answer.headers.get(f"Cu-Fleet-{name}") for name in names}
        return picture({**facts, "settled": _SETTLED[facts["settled"]]}, answer.content)

    async def ui(self, *, window: str = "", role: str = "", text: str = "", intent: str | None = None) -> Ui:
        """What the programs say of what they show: windows and elements, each with a `ref` that clicks and typing take.

        Of the active window, or of those with `window` in their title or program; only elements of that `role` (such as
        button, entry, link), or with `text` in their name or value. A window without a `toolkit` tells nothing of what
        is in it. A reference that no longer stands for what it did is refused as `stale`.
        """
        query = {"window": window, "role": role, "text": text}
        return read(Ui, (await self._call("GET", "ui", query=given(**query, intent=intent))).json())
