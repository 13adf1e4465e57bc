"""The table of tools: for each its words, what it takes, what it needs, and what it does.

Four annotations a tool, since clients ask their user about whatever leaves one open. `reads` only looks. `acts` stays
within the agent's own desktop, which is rolled back at the end: what needs a person there is judged by our own gates,
so a client need not ask again.
"""

import base64
import binascii
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mcp_types import CallToolResult, TextContent, Tool, ToolAnnotations

from cu_fleet.mcp import arguments as take
from cu_fleet.mcp.answers import MOST_IMAGE, Answer, acted, answered, image, listed, pictured, said
from cu_fleet.model.access import Caller
from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import InvalidError, TooLongError
from cu_fleet.model.offer import Offer
from cu_fleet.model.request import Shot

if TYPE_CHECKING:
    from cu_fleet.controller import Controller

_MOST_TEXT = 200_000  # characters of a file or a clipboard that one answer shows
_PICTURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}


@dataclass(frozen=True)
class At:
    """One caller at its own lease."""

    fleet: "Controller"
    who: Caller
    lease: str


Work = Callable[[At, Any], Awaitable[Answer]]
Needs = Callable[[Offer], bool]


@dataclass(frozen=True)
class Entry:
    name: str
    title: str
    description: str
    takes: type[take.Nothing]
    work: Work
    needs: Needs
    annotations: ToolAnnotations

    def shown(self, offer: Offer) -> Tool:
        """As this lease's client sees it."""
        schema = take.schema_of(self.takes)
        description = self.description
        if self.name == "launch":
            schema["properties"]["name"] = {"type": "string", "enum": sorted(offer.launch)}
            description += "".join(f" {name}: {title}." for name, title in sorted(offer.launch.items()) if title)
        return Tool(
            name=self.name,
            title=self.title,
            description=description,
            input_schema=schema,
            annotations=self.annotations,
        )


TOOLS: dict[str, Entry] = {}


def _always(offer: Offer) -> bool:
    return True


def _helper(offer: Offer) -> bool:
    return offer.helper


def _files(offer: Offer) -> bool:
    return offer.files


def _launch(offer: Offer) -> bool:
    return bool(offer.launch)


def _tool(
    title: str, takes: type[take.Nothing], needs: Needs = _always, *, reads: bool = False, same: bool = False
) -> Callable[[Work], Work]:
    """Adds a tool of the function's name, whose docstring is its description. `same`: twice is as good as once."""

    def add(work: Work) -> Work:
        name = work.__name__.rstrip("_")
        hints = ToolAnnotations(
            title=title,
            read_only_hint=reads,
            destructive_hint=False,
            idempotent_hint=reads or same,
            open_world_hint=False,
        )
        TOOLS[name] = Entry(name, title, " ".join((work.__doc__ or "").split()), takes, work, needs, hints)
        return work

    return add


def offered(offer: Offer) -> list[Tool]:
    return [entry.shown(offer) for entry in TOOLS.values() if entry.needs(offer)]


# looking


@_tool("Look at the screen", take.Screenshot, reads=True)
async def screenshot(at: At, ask: take.Screenshot) -> Answer:
    """Shows your desktop's whole screen as it is now. Coordinates everywhere are pixels of this picture."""
    shot = Shot(max_bytes=MOST_IMAGE, pointer=ask.pointer, if_changed_since=ask.if_changed_since)
    return pictured(await at.fleet.screenshot(at.who, at.lease, shot, intent=ask.intent))


@_tool("Look closely", take.Zoom, reads=True)
async def zoom(at: At, ask: take.Zoom) -> Answer:
    """Shows a part of the screen in all its detail, for small text. The picture has its own id and its own
    coordinates: give the id as frame to click in it, or leave frame out and use those of the whole screen."""
    region = (ask.x, ask.y, ask.width, ask.height)
    shot = Shot(region=region, frame=ask.frame, max_edge=16384, max_bytes=MOST_IMAGE)
    return pictured(await at.fleet.screenshot(at.who, at.lease, shot, intent=ask.intent))


# acting


async def _do(at: At, ask: take.Acts, kind: str, **more: Any) -> Answer:
    given = ask.model_dump(exclude={"intent", "frame", "ref"})
    action = {"type": kind, **{key: _plain(value) for key, value in given.items()}, **more}
    return await _act(at, ask, [action])


async def _point(at: At, ask: take.AtPoint) -> dict[str, int]:
    """Where an element is that was told by its reference."""
    if ask.ref is None:
        return {}
    x, y = await at.fleet.where(at.who, at.lease, ask.ref)
    return {"x": x, "y": y}


async def _act(at: At, ask: take.Acts, actions: list[dict[str, Any]], shot: Shot | None = None) -> Answer:
    frame = ask.frame if isinstance(ask, take.Points) and getattr(ask, "ref", None) is None else None
    more = {"intent": ask.intent, "frame": frame, "approval": getattr(ask, "approval", None)}
    return acted(await at.fleet.act(at.who, at.lease, parse_actions(actions), shot=shot, **more))


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


@_tool("Click", take.Click)
async def click(at: At, ask: take.Click) -> Answer:
    """Clicks at a point, or an element. Take a screenshot to see what came of it, or use act for several steps."""
    return await _do(at, ask, "click", **await _point(at, ask))


@_tool("Double-click", take.DoubleClick)
async def double_click(at: At, ask: take.DoubleClick) -> Answer:
    """Clicks twice at a point, or an element: opens a file, selects a word."""
    return await _do(at, ask, "click", count=2, **await _point(at, ask))


@_tool("Drag", take.Drag)
async def drag(at: At, ask: take.Drag) -> Answer:
    """Presses the button at the first point, moves along the path, and lets go at the last."""
    return await _do(at, ask, "drag")


@_tool("Move the pointer", take.Move, same=True)
async def move(at: At, ask: take.Move) -> Answer:
    """Moves the pointer without clicking, to see what hovering shows."""
    return await _do(at, ask, "move")


@_tool("Scroll", take.Scroll)
async def scroll(at: At, ask: take.Scroll) -> Answer:
    """Turns the mouse wheel over a point. Five notches are about half a page."""
    return await _do(at, ask, "scroll")


@_tool("Press keys", take.Key)
async def key(at: At, ask: take.Key) -> Answer:
    """Presses a key, or several together, once. For text use type."""
    return await _do(at, ask, "key")


@_tool("Type text", take.Type)
async def type_(at: At, ask: take.Type) -> Answer:
    """Types text into whatever has the keyboard's focus; click there first, or name the element."""
    typed = {"type": "type", "text": ask.text}
    if ask.ref is None:
        return await _act(at, ask, [typed])
    x, y = await at.fleet.where(at.who, at.lease, ask.ref)
    return await _act(at, ask, [{"type": "click", "x": x, "y": y}, typed])


@_tool("Wait", take.Wait, reads=True)
async def wait(at: At, ask: take.Wait) -> Answer:
    """Waits for something to finish, and shows the screen then."""
    shot = Shot(max_bytes=MOST_IMAGE, if_changed_since=ask.if_changed_since, settle_ms=0)
    if ask.until is None:
        return await _act(at, ask, [{"type": "wait", "seconds": ask.seconds}], shot)
    most = {"timeout_ms": max(1, round(ask.seconds * 1000))}
    try:
        return await _act(at, ask, [{"type": f"wait_{ask.until}", **most}], shot)
    except TooLongError as late:
        return pictured(await at.fleet.screenshot(at.who, at.lease, shot, intent=ask.intent), f"{late}. ")


@_tool("Act in one go", take.Act)
async def act(at: At, ask: take.Act) -> Answer:
    """Does several actions in order and shows the screen once it keeps still: the quick way, one call instead of many.
    Stops at the first that fails, and says which."""
    shot = Shot(max_bytes=MOST_IMAGE, if_changed_since=ask.if_changed_since) if ask.picture else None
    return await _act(at, ask, ask.actions, shot)


# beside the screen


@_tool("Read the clipboard", take.Acts, _helper, reads=True)
async def clipboard_get(at: At, ask: take.Acts) -> Answer:
    """Tells the text in your desktop's own clipboard, for instance after ctrl+c."""
    return said(_shortened(await at.fleet.clipboard_get(at.who, at.lease, intent=ask.intent)))


@_tool("Set the clipboard", take.Text, _helper, same=True)
async def clipboard_set(at: At, ask: take.Text) -> Answer:
    """Puts text into your desktop's own clipboard; paste it with ctrl+v."""
    await at.fleet.clipboard_set(at.who, at.lease, ask.text, intent=ask.intent)
    return said("Done.")


@_tool("List windows", take.Acts, _helper, reads=True)
async def windows(at: At, ask: take.Acts) -> Answer:
    """Lists your desktop's windows: id, title, class, place, and which has the focus."""
    found = await at.fleet.windows(at.who, at.lease, intent=ask.intent)
    return said(
        _shortened("\n".join(json.dumps(window, ensure_ascii=False) for window in found), "There are no windows.")
    )


@_tool("Focus a window", take.Window, _helper, same=True)
async def focus(at: At, ask: take.Window) -> Answer:
    """Raises a window and gives it the keyboard."""
    await at.fleet.focus(at.who, at.lease, ask.window, intent=ask.intent)
    return said("Done.")


@_tool("Start a program", take.Launch, _launch)
async def launch(at: At, ask: take.Launch) -> Answer:
    """Starts one of these programs on your desktop; its window takes a moment: wait for a change."""
    started = await at.fleet.launch(at.who, at.lease, ask.name, ask.args, intent=ask.intent)
    return said(f"Started {ask.name}: {json.dumps(started)}")


@_tool("Read what is on the screen", take.Ui, _helper, reads=True)
async def ui(at: At, ask: take.Ui) -> Answer:
    """Lists buttons, fields, links and texts of a window as its program names them, each with a ref that click and type
    take, and its place. Exact where pictures are not; but some programs tell nothing of themselves."""
    wanted = {"window": ask.window, "role": ask.role, "text": ask.text}
    return said(_shortened(listed(await at.fleet.ui(at.who, at.lease, intent=ask.intent, **wanted))))


@_tool("Take a file out", take.FileGet, _files, reads=True)
async def file_get(at: At, ask: take.FileGet) -> Answer:
    """Reads a file below ~/Shared in your desktop: text as text, a picture as a picture, anything else as base64. A
    path that ends in / lists the folder."""
    if ask.path.endswith("/"):
        found = await at.fleet.files(at.who, at.lease, ask.path.strip("/"))
        return said("\n".join(f"{x.path}{'/' if x.kind == 'dir' else f' {x.size} bytes'}" for x in found) or "Nothing.")
    chunks = await at.fleet.get_file(at.who, at.lease, ask.path, intent=ask.intent)
    return _contents(ask.path, await _gathered(chunks, ask.path))


@_tool("Put a file in", take.FilePut, _files, same=True)
async def file_put(at: At, ask: take.FilePut) -> Answer:
    """Writes a file below ~/Shared in your desktop, whole; folders on the way are made. What lies in ~/Shared/out when
    the lease ends is kept."""
    data = _decoded(ask)
    await at.fleet.put_file(at.who, at.lease, ask.path, _once(data), 0o644, intent=ask.intent)
    return said(f"Wrote {len(data)} bytes to ~/Shared/{ask.path.lstrip('/')}.")


# the lease


@_tool("Ask a person", take.Ask, same=True)
async def approval_wait(at: At, ask: take.Ask) -> Answer:
    """Asks your operator before something grave: give actions, and why in intent; then wait for the answer. After a yes
    call act with the very same actions and the approval. No answer in time is a no."""
    name = ask.approval
    if name is None:
        asked = await at.fleet.ask_approval(
            at.who, at.lease, parse_actions(ask.actions), reason=ask.intent or "", frame=ask.frame
        )
        name = asked.approval
    return said(answered(await at.fleet.approval(at.who, name, wait=ask.seconds)))


@_tool("Show my lease", take.Nothing, reads=True)
async def lease_status(at: At, ask: take.Nothing) -> Answer:
    """Tells how your lease of the desktop stands: until when, whether a person has paused it and why, who waits."""
    view = await at.fleet.lease(at.who, at.lease)
    return said(view.model_dump_json(exclude={"token", "url", "mcp_url"}, exclude_none=True))


@_tool("Give the desktop back", take.Acts, same=True)
async def release(at: At, ask: take.Acts) -> Answer:
    """Ends your lease when you are done: the desktop is rolled back to clean and given to whoever waits. Only what
    lies in ~/Shared/out is kept."""
    view = await at.fleet.release(at.who, at.lease, reason=ask.intent or "")
    return said(f"Lease {view.lease} is {view.state}: the desktop is being rolled back.")


def _shortened(text: str, empty: str = "It is empty.") -> str:
    if len(text) <= _MOST_TEXT:
        return text or empty
    return f"{text[:_MOST_TEXT]}\n… and {len(text) - _MOST_TEXT} more characters."


async def _gathered(chunks: AsyncIterator[bytes], path: str) -> bytes:
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > MOST_IMAGE:
            raise InvalidError(
                f"{path} is larger than {MOST_IMAGE} bytes",
                remedy="show it on the screen, or ask your operator: cu-fleet cp",
                code="too_large",
            )
    return bytes(data)


def _contents(path: str, data: bytes) -> Answer:
    for head, media_type in _PICTURES.items():
        if data.startswith(head):
            return CallToolResult(content=[TextContent(text=f"{path}, {len(data)} bytes"), image(data, media_type)])
    try:
        return said(_shortened(data.decode())) if b"\0" not in data else said(_base64(data))
    except UnicodeDecodeError:
        return said(_base64(data))


def _base64(data: bytes) -> str:
    return f"base64, {len(data)} bytes: {base64.b64encode(data).decode()}"


def _decoded(ask: take.FilePut) -> bytes:
    try:
        data = ask.text.encode() if ask.text is not None else base64.b64decode(ask.base64 or "", validate=True)
    except (binascii.Error, UnicodeEncodeError) as e:
        raise InvalidError(f"the contents cannot be read: {e}", code="bad_argument") from None
    if len(data) > take.MOST_FILE:
        raise InvalidError(
            f"{len(data)} bytes are too many for one call; at most {take.MOST_FILE}",
            remedy="ask your operator: cu-fleet cp",
            code="too_large",
        )
    return data


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def run(name: str, given: Mapping[str, Any] | None, at: At) -> Awaitable[Answer]:
    """Call a tool by its name."""
    entry = TOOLS.get(name)
    if entry is None:
        raise InvalidError(f"there is no tool {name[:100]!r}", remedy=f"one of {', '.join(TOOLS)}", code="no_tool")
    return entry.work(at, take.parsed(entry.takes, name, given))
