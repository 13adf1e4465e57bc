"""What a desktop's programs say of what they show: windows, and elements with a role, a name and a place."""

from typing import Annotated

from pydantic import Field

from cu_fleet.model.record import Value

Text = Annotated[str, Field(max_length=1000)]
Pixel = Annotated[int, Field(ge=-65536, le=65536)]


class UiWindow(Value):
    title: Text
    app: Text
    toolkit: Text  # "gtk", "Qt", "Chromium", …; empty: it tells nothing of what is in it
    active: bool = False


class UiNode(Value):
    ref: Annotated[str, Field(max_length=20, description="For the next `where`, as long as the element lives.")]
    depth: Annotated[int, Field(ge=0, le=1000)]
    role: Text
    name: Text
    value: Text = ""
    notes: tuple[Text, ...] = ()
    box: tuple[Pixel, Pixel, Pixel, Pixel]  # x, y, width, height in pixels of the screen
    x: int = 0  # its middle, in pixels of the lease's view
    y: int = 0


class Ui(Value):
    windows: tuple[UiWindow, ...]
    nodes: tuple[UiNode, ...] = Field(max_length=1000)
    left_out: int = 0  # branches not looked into, for there were too many
    silent: tuple[Text, ...] = ()  # programs that did not answer


class UiPoint(Value):
    """Where to click, in pixels of the lease's view."""

    x: int
    y: int
