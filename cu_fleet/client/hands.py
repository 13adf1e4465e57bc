"""Acting on a leased desktop: one action, or a batch in one go."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cu_fleet.client.http import error_of, given, read
from cu_fleet.client.opened import Opened
from cu_fleet.client.picture import Area, picture
from cu_fleet.model.errors import InvalidError
from cu_fleet.model.request import Done

if TYPE_CHECKING:
    from cu_fleet.client.picture import Picture

Step = dict[str, Any]
Action = Mapping[str, Any]  # {"type": "click", "x": 1, "y": 2}, as in the HTTP API
Button = Literal["left", "middle", "right", "back", "forward"]


@dataclass(frozen=True)
class Result:
    """What became of a batch: one `Done` for each action, and the picture if one was asked for."""

    done: list[Done]
    generation: int
    image: "Picture | None"
    unchanged: bool = False  # the picture is the one of `if_changed_since`
    not_shown: Done | None = None  # why there is no picture, though one was asked for


class Hands(Opened):
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
        image = picture(shown, base64.b64decode(shown["data"])) if shown and not unchanged else None
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


def _patience(actions: Sequence[Action], shot: Mapping[str, Any]) -> float:
    """How long a batch may take by what it says itself."""
    named = sum(float(a.get("seconds") or 0) + float(a.get("timeout_ms") or 10_000) / 1000 for a in actions)
    named += float(shot.get("settle_timeout_ms") or 2000) / 1000
    return 60.0 + named + sum(len(str(a.get("text") or "")) for a in actions) / 50
