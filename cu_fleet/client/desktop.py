"""A leased desktop, as the client drives it: pointer, keys, screen, windows, files."""

import asyncio
import base64
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from cu_fleet.backends.base import FileInfo
from cu_fleet.client.http import Wire, chunks, error_of, given, read, v1
from cu_fleet.model.errors import InvalidError, UnavailableError
from cu_fleet.model.request import Done
from cu_fleet.model.ui import Ui
from cu_fleet.model.view import ApprovalView, LeaseView

if TYPE_CHECKING:
    from PIL import Image

    class Picture(Image.Image):
        """A PIL image that knows which frame it is."""

        frame: "Frame"


Time = float | str  # seconds, or "15m"
Step = dict[str, Any]
Action = Mapping[str, Any]  # {"type": "click", "x": 1, "y": 2}, as in the HTTP API
Button = Literal["left", "middle", "right", "back", "forward"]
Format = Literal["png", "jpeg", "webp"]
Area = tuple[int, int, int, int]  # x, y, width, height
_HOLD = 25.0  # seconds that one call waits for an answer
_AWAY = 60.0  # seconds that a controller may be away meanwhile
_SETTLED = {None: None, "true": True, "false": False}


@dataclass(frozen=True)
class Frame:
    """Which picture this is, of what, how old, and its bytes as they were handed out."""

    id: str  # for `frame` and `if_changed_since`
    sha256: str  # of `data`
    size: tuple[int, int]
    scale: float  # pixels of the picture for each of the screen
    age: float  # seconds since the server had proved that this is what the screen shows
    within: float  # seconds by which it may have been older than that; 0: it is exact
    generation: int
    format: str
    settled: bool | None  # whether the screen kept still; None: nobody waited for that
    data: bytes


@dataclass(frozen=True)
class Result:
    """What became of a batch: one `Done` for each action, and the picture if one was asked for."""

    done: list[Done]
    generation: int
    image: "Picture | None"
    unchanged: bool = False  # the picture is the one of `if_changed_since`
    not_shown: Done | None = None  # why there is no picture, though one was asked for


class Desktop:
    """One leased desktop: pointer, keys, screen, files.

    Coordinates are pixels of the lease's view: of the pictures it shows, as they come. Of another picture, such as a
    zoom, they are if its id is given as `frame`. `intent` says why, for the record.
    """

    def __init__(self, wire: Wire, lease: LeaseView) -> None:
        self._wire = wire
        self.lease = lease  # as it was when we last heard of it

    @property
    def id(self) -> str:
        """The lease's."""
        return self.lease.lease

    # doing

    async def act(
        self,
        actions: Iterable[Action],
        *,
        screenshot: Mapping[str, Any] | bool | None = None,
        intent: str | None = None,
        request_id: str | None = None,
        frame: str | None = None,
        approval: str | None = None,
    ) -> Result:
        """A batch in one go. `screenshot=True`, or how it is wanted, answers with the settled picture too.

        How: the arguments of `screenshot`, by name. `settle_ms` is 100 then, unless it is given. `approval`: a person's
        answer to these very actions; see `ask_approval`.
        """
        batch = [dict(action) for action in actions]
        shot = {} if screenshot is True else screenshot or None
        words = given(intent=intent, request_id=request_id, frame=frame, approval=approval)
        body = {"actions": batch, "screenshot": shot if shot is None else dict(shot), **words}
        answer = (await self._call("POST", "actions", body=body, patience=_patience(batch, shot or {}))).json()
        shown, why = answer["screenshot"], answer.get("not_shown")
        unchanged = bool(shown and shown["unchanged"])
        image = _picture(shown, base64.b64decode(shown["data"])) if shown and not unchanged else None
        done = [read(Done, one) for one in answer["done"]]
        return Result(done, answer["generation"], image, unchanged, read(Done, why) if why else None)

    async def _do(self, intent: str | None, kind: str, frame: str | None = None, **arguments: Any) -> None:
        await self._all([{"type": kind, **given(**arguments)}], intent, frame)

    async def _all(self, actions: Sequence[Action], intent: str | None, frame: str | None) -> None:
        result = await self.act(actions, intent=intent, frame=frame)
        for done in result.done:
            if not done.ok:
                raise error_of({"status": 500, "code": done.code or "failed", "detail": done.detail or "not done"})

    async def click(
        self,
        x: int | None = None,
        y: int | None = None,
        *,
        ref: str | None = None,
        button: Button = "left",
        count: int = 1,
        modifiers: Sequence[str] = (),
        frame: str | None = None,
        intent: str | None = None,
    ) -> None:
        """At a point, or at an element that `ui` told of."""
        at, frame = await self._at(x, y, ref, frame)
        await self._do(intent, "click", frame, **at, button=button, count=count, modifiers=list(modifiers))

    async def double_click(
        self,
        x: int | None = None,
        y: int | None = None,
        *,
        ref: str | None = None,
        button: Button = "left",
        modifiers: Sequence[str] = (),
        frame: str | None = None,
        intent: str | None = None,
    ) -> None:
        await self.click(x, y, ref=ref, button=button, count=2, modifiers=modifiers, frame=frame, intent=intent)

    async def _at(self, x: int | None, y: int | None, ref: str | None, frame: str | None) -> tuple[Step, str | None]:
        """A point, and the picture that it is one of; an element's is one of the lease's view."""
        if (x is None) != (y is None) or (x is None) == (ref is None):
            raise InvalidError("give x and y, or the ref of an element", code="bad_argument")
        if ref is None:
            return {"x": x, "y": y}, frame
        return dict((await self._call("GET", "ui", ref)).json()), None

    async def move(self, x: int, y: int, *, frame: str | None = None, intent: str | None = None) -> None:
        await self._do(intent, "move", frame, x=x, y=y)

    async def press(
        self,
        x: int | None = None,
        y: int | None = None,
        *,
        button: Button = "left",
        frame: str | None = None,
        intent: str | None = None,
    ) -> None:
        """Hold a button down, there or where the pointer is."""
        await self._do(intent, "press", frame, x=x, y=y, button=button)

    async def release(
        self,
        x: int | None = None,
        y: int | None = None,
        *,
        button: Button = "left",
        frame: str | None = None,
        intent: str | None = None,
    ) -> None:
        """Let a held button go. (The lease itself ends with its `async with`, or by `fleet.release`.)"""
        await self._do(intent, "release", frame, x=x, y=y, button=button)

    async def drag(
        self,
        path: Iterable[tuple[int, int]],
        *,
        button: Button = "left",
        modifiers: Sequence[str] = (),
        frame: str | None = None,
        intent: str | None = None,
    ) -> None:
        await self._do(intent, "drag", frame, path=[list(p) for p in path], button=button, modifiers=list(modifiers))

    async def scroll(
        self,
        x: int,
        y: int,
        *,
        dx: int = 0,
        dy: int = 0,
        modifiers: Sequence[str] = (),
        frame: str | None = None,
        intent: str | None = None,
    ) -> None:
        """Wheel notches; dy > 0 is down."""
        await self._do(intent, "scroll", frame, x=x, y=y, dx=dx, dy=dy, modifiers=list(modifiers))

    async def key(self, keys: str, *, intent: str | None = None) -> None:
        """One key or several together: `ctrl+shift+t`."""
        await self._do(intent, "key", keys=keys)

    async def key_down(self, key: str, *, intent: str | None = None) -> None:
        await self._do(intent, "key_down", key=key)

    async def key_up(self, key: str, *, intent: str | None = None) -> None:
        await self._do(intent, "key_up", key=key)

    async def hold_key(self, keys: str, seconds: float, *, intent: str | None = None) -> None:
        await self._do(intent, "hold_key", keys=keys, seconds=seconds)

    async def type(self, text: str, *, ref: str | None = None, intent: str | None = None) -> None:
        """Any Unicode, as keys; into an element that `ui` told of, which is clicked first, or where the focus is."""
        if ref is None:
            await self._do(intent, "type", text=text)
            return
        at, _ = await self._at(None, None, ref, None)
        await self._all([{"type": "click", **at}, {"type": "type", "text": text}], intent, None)

    async def paste(self, text: str, *, intent: str | None = None) -> None:
        """Any Unicode, through the clipboard."""
        await self._do(intent, "paste", text=text)

    async def wait(self, seconds: float) -> None:
        await self._do(None, "wait", seconds=seconds)

    async def wait_stable(
        self,
        *,
        quiet_ms: int = 300,
        timeout_ms: int = 10_000,
        region: Area | None = None,
        ignore: Sequence[Area] = (),
        ignore_below: int | None = None,
        frame: str | None = None,
    ) -> None:
        """Until nothing that counts has changed on the screen for a while."""
        what = {"region": region, "ignore": list(ignore) or None, "ignore_below": ignore_below}
        await self._do(None, "wait_stable", frame, quiet_ms=quiet_ms, timeout_ms=timeout_ms, **what)

    async def wait_change(
        self,
        *,
        timeout_ms: int = 10_000,
        region: Area | None = None,
        ignore: Sequence[Area] = (),
        ignore_below: int | None = None,
        frame: str | None = None,
    ) -> None:
        """Until something that counts changes on the screen."""
        what = {"region": region, "ignore": list(ignore) or None, "ignore_below": ignore_below}
        await self._do(None, "wait_change", frame, timeout_ms=timeout_ms, **what)

    # looking

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
        return _picture({**facts, "settled": _SETTLED[facts["settled"]]}, answer.content)

    async def ui(self, *, window: str = "", role: str = "", text: str = "", intent: str | None = None) -> Ui:
        """What the programs say of what they show: windows and elements, each with a `ref` that clicks and typing take.

        Of the active window, or of those with `window` in their title or program; only elements of that `role` (such as
        button, entry, link), or with `text` in their name or value. A window without a `toolkit` tells nothing of what
        is in it. A reference that no longer stands for what it did is refused as `stale`.
        """
        query = {"window": window, "role": role, "text": text}
        return read(Ui, (await self._call("GET", "ui", query=given(**query, intent=intent))).json())

    async def windows(self) -> list[dict[str, Any]]:
        """Each with id, title, class, pid, x, y, width, height and focused."""
        return list((await self._call("GET", "windows")).json()["windows"])

    async def focus(self, window: int) -> None:
        await self._call("POST", "focus", body={"window": window})

    async def launch(self, name: str, *args: str) -> dict[str, Any]:
        """Start a program that the profile lists."""
        return dict((await self._call("POST", "launch", body={"name": name, "args": list(args)})).json())

    async def clipboard_get(self) -> str:
        return str((await self._call("GET", "clipboard")).json()["text"])

    async def clipboard_set(self, text: str) -> None:
        await self._call("PUT", "clipboard", body={"text": text})

    # files, in what is `~/Shared` inside

    async def files(self, path: str = "") -> list[FileInfo]:
        answer = await self._call("GET", "files", query={"path": path})
        return [FileInfo(**one) for one in answer.json()["files"]]

    async def put_file(
        self, path: str, data: bytes | os.PathLike[str] | AsyncIterator[bytes], *, mode: int = 0o644
    ) -> int:
        """Write bytes, or the file at a local path, to `path`; returns the size."""
        content = _contents(Path(data)) if isinstance(data, os.PathLike) else data
        query = {"mode": f"{mode:04o}"}
        answer = await self._call("PUT", "files", *path.split("/"), query=query, content=content, patience=600)
        return int(answer.json()["size"])

    async def get_file(self, path: str) -> bytes:
        return bytes((await self._call("GET", "files", *path.split("/"), patience=600)).content)

    async def download(self, path: str, to: str | os.PathLike[str]) -> int:
        """Write a file to a local path, whole or not at all; returns the size."""
        target = Path(to)
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            size = await self._downloaded(path, part)
            await asyncio.to_thread(part.replace, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return size

    async def _downloaded(self, path: str, part: Path) -> int:
        size = 0
        url = v1("leases", self.id, "files", *path.split("/"))
        async with self._wire.stream("GET", url, token=self.lease.token, patience=600, start=False) as answer:
            with await asyncio.to_thread(part.open, "wb") as file:
                async for chunk in chunks(self._wire, answer):
                    size += await asyncio.to_thread(file.write, chunk)
        return size

    async def remove_file(self, path: str) -> None:
        await self._call("DELETE", "files", *path.split("/"))

    # a person's answer

    async def ask_approval(
        self,
        actions: Iterable[Action],
        reason: str = "",
        *,
        checks: Iterable[Mapping[str, Any]] = (),
        frame: str | None = None,
        within: Time | None = None,
    ) -> ApprovalView:
        """Ask the operator about a batch before it is sent; see `approval` for the answer.

            asked = await desktop.ask_approval(actions, "this sends the mail")
            answer = await desktop.approval(asked.approval)
            if answer.state == "approved":
                await desktop.act(actions, approval=answer.approval)      # the very same actions, once

        `checks`: what a vendor's model wants looked at, each with id, code and message. `within`: how long it may wait;
        no answer in time is a no. The lease's clock stands still meanwhile.
        """
        words = given(frame=frame, within=within)
        body = {"actions": [dict(x) for x in actions], "reason": reason, "checks": [dict(x) for x in checks], **words}
        return read(ApprovalView, (await self._call("POST", "approvals", body=body)).json())

    async def approval(self, approval: str) -> ApprovalView:
        """An approval once it is answered, or over. A controller that is started anew meanwhile is waited for."""
        clock = asyncio.get_running_loop().time
        until = clock() + _AWAY
        while True:
            try:
                view = await self._approval(approval)
                until = clock() + _AWAY
                if view.state != "waiting":
                    return view
            except UnavailableError:
                if clock() > until:
                    raise
                await asyncio.sleep(1.0)

    async def _approval(self, approval: str) -> ApprovalView:
        more: dict[str, Any] = {"query": {"wait": _HOLD}, "patience": _HOLD, "token": self.lease.token}
        answer = await self._wire.call("GET", v1("approvals", approval), start=False, **more)
        return read(ApprovalView, answer.json())

    # the lease

    async def renew(self, ttl: Time | None = None) -> LeaseView:
        """A full term from now. Inside `async with fleet.lease(…)` this happens by itself."""
        answer = await self._call("POST", "renew", body=given(ttl=ttl))
        self.lease = read(LeaseView, {**answer.json(), "token": self.lease.token})
        return self.lease

    async def refresh(self) -> LeaseView:
        """The lease as it is now: paused, for instance, and why."""
        answer = await self._wire.call("GET", v1("leases", self.id), token=self.lease.token, start=False)
        self.lease = read(LeaseView, {**answer.json(), "token": self.lease.token})
        return self.lease

    async def _call(self, method: str, *steps: str, **more: Any) -> Any:
        return await self._wire.call(method, v1("leases", self.id, *steps), token=self.lease.token, start=False, **more)


def _patience(actions: Sequence[Action], shot: Mapping[str, Any]) -> float:
    """How long a batch may take by what it says itself."""
    named = sum(float(a.get("seconds") or 0) + float(a.get("timeout_ms") or 10_000) / 1000 for a in actions)
    named += float(shot.get("settle_timeout_ms") or 2000) / 1000
    return 60.0 + named + sum(len(str(a.get("text") or "")) for a in actions) / 50


def _picture(facts: Mapping[str, Any], data: bytes) -> "Picture":
    from PIL import Image

    picture = cast("Picture", Image.open(BytesIO(data)))  # decoded when its pixels are first asked for
    picture.frame = Frame(
        id=str(facts["frame"]),
        sha256=str(facts["sha256"]),
        size=(int(facts["width"]), int(facts["height"])),
        scale=float(facts["scale"]),
        age=float(facts["age"]),
        within=float(facts["within"]),
        generation=int(facts["generation"]),
        format=str(facts["format"]),
        settled=facts["settled"],
        data=data,
    )
    return picture


async def _contents(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, 256 << 10):
            yield chunk
