"""Answers as clients take them: text and images, no structured output, for beside that some lose the images.

An error is an answer too, for the agent to read: what happened, and what to do next. Its code is in `_meta`.
"""

import base64

from mcp_types import CallToolResult, ImageContent, TextContent

from cu_fleet.model.errors import FleetError
from cu_fleet.model.request import Acted, Shown
from cu_fleet.model.ui import Ui, UiNode, UiWindow
from cu_fleet.model.view import ApprovalView

MOST_IMAGE = 700_000  # bytes; 4/3 of that as base64, within the megabyte that clients take
CODE = "cu-fleet/code"  # in an error's `_meta`

Answer = CallToolResult


def said(text: str) -> Answer:
    return CallToolResult(content=[TextContent(text=_whole(text))])


def _whole(text: str) -> str:
    """Programs on a desktop may tell of themselves in what is no Unicode: halves of characters."""
    return text.encode("utf-8", "replace").decode()


def image(data: bytes, media_type: str) -> ImageContent:
    return ImageContent(data=base64.b64encode(data).decode(), mime_type=media_type)


def pictured(shown: Shown, before: str = "") -> Answer:
    """The picture, and its id."""
    text = f"{before}{_about(shown)}"
    if shown.unchanged:
        return said(text)
    return CallToolResult(content=[TextContent(text=text), image(shown.data, shown.media_type)])


def listed(ui: Ui) -> str:
    """Windows and elements, a line each."""
    lines = [_window(window) for window in ui.windows]
    lines += [f"{app} does not answer." for app in ui.silent]
    lines += [_element(node) for node in ui.nodes]
    if not ui.nodes:
        lines.append("No elements found here.")
    if ui.left_out:
        lines.append("There are more: ask with role or text.")
    return "\n".join(lines)


def _window(window: UiWindow) -> str:
    active = ", active" if window.active else ""
    mute = "" if window.toolkit else ": tells nothing of what is in it, use the picture"
    return f'Window "{window.title}" ({window.app}{f", {window.toolkit}" if window.toolkit else ""}{active}){mute}'


def _element(node: UiNode) -> str:
    value = f" = {node.value!r}" if node.value and node.value != node.name else ""
    notes = f" ({', '.join(node.notes)})" if node.notes else ""
    return f'{"  " * min(node.depth, 20)}{node.ref} {node.role} "{node.name}"{value}{notes} at {node.x},{node.y}'


def acted(done: Acted) -> Answer:
    """What became of a batch, and the picture if there is one."""
    wrong = next((number for number, one in enumerate(done.done) if not one.ok), None)
    if wrong is not None:
        return _cut_short(done, wrong)
    text = "Done." if len(done.done) == 1 else f"{len(done.done)} actions done."
    if done.screenshot is not None:
        return pictured(done.screenshot, f"{text} ")
    if done.not_shown is not None:
        return said(f"{text} But there is no picture: {done.not_shown.detail}")
    return said(text)


def _cut_short(done: Acted, wrong: int) -> Answer:
    one, left = done.done[wrong], len(done.done) - wrong - 1
    text = f"actions[{wrong}] failed: {one.detail or one.code}. What came before it was done"
    text += f", the {left} after it were not sent" if left else ""
    return _error(f"{text}. Look before you go on.", one.code or "failed")


def answered(view: ApprovalView) -> str:
    """How a question stands, and what to do next."""
    name, why = view.approval, f": {view.answer}" if view.answer else ""
    if view.state == "waiting":
        left = f"it may take {view.remaining:.0f} s more" if view.remaining else "its time is nearly up"
        return f"Approval {name} waits for a person's answer; {left}. Call approval_wait with approval {name} again."
    if view.state == "approved":
        return f"{view.by} said yes{why}. Now call act, once, with the very same actions and approval {name}."
    if view.state == "denied":
        return f"{view.by} said no{why}. Do not try it another way; ask what to do instead."
    ends = {"expired": "nobody answered in time, which is a no", "used": "it was used already"}
    return f"Approval {name} allows nothing: {ends.get(view.state, view.state)}{why}."


def refused(error: FleetError) -> Answer:
    hint = f" Call approval_wait with approval {error.facts['approval']}." if error.code == "approval_waiting" else ""
    return _error(f"{error}.{hint}", error.code)


def code_of(answer: Answer) -> str:
    """Of an error; nothing if it is none."""
    return str((answer.meta or {}).get(CODE, "")) if answer.is_error else ""


def words_of(answer: Answer) -> str:
    return "".join(part.text for part in answer.content if isinstance(part, TextContent))


def _error(text: str, code: str) -> Answer:
    return CallToolResult(content=[TextContent(text=_whole(text))], is_error=True, _meta={CODE: code})


def _about(shown: Shown) -> str:
    size = f"{shown.width}x{shown.height}"
    if shown.unchanged:
        return f"Nothing has changed since picture {shown.frame} ({size})."
    moving = " The screen was still changing." if shown.settled is False else ""
    return f"Picture {shown.frame}, {size}.{moving}"
