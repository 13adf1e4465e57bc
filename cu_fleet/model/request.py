"""What callers ask for, checked before anything happens."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cu_fleet.model.names import Name, check_resource
from cu_fleet.model.profile import Seconds
from cu_fleet.model.record import Value

Resource = Annotated[str, AfterValidator(check_resource)]


class Acquire(Value):
    """A desktop for an agent, and the named resources it needs with it: all of them or none."""

    agent: Name | None = Field(None, description="Who it is for; an agent's own token may leave it out.")
    profile: Name
    desktop: Name | None = Field(None, description="One particular, lasting desktop by name.")
    resources: tuple[Resource, ...] = Field((), max_length=32)
    ttl: Seconds | None = Field(None, gt=0, le=7 * 86400, description="Seconds or '15m'; none: the profile's.")
    wait: Seconds | None = Field(60.0, description="How long to wait in the queue; 0: not at all; null: for ever.")
    view: int | None = Field(
        None, ge=16, le=16384, description="Longest edge of the pictures the agent is shown; none: the profile's."
    )
    request_id: str | None = Field(None, max_length=200, description="Asking again with it returns the same lease.")


def parse_region(value: object) -> object:
    """`X,Y,W,H` as it stands in a URL or on the command line."""
    if isinstance(value, str):
        return tuple(int(part) if part.strip().lstrip("-").isdigit() else part for part in value.split(","))
    return value


Region = Annotated[tuple[int, int, int, int], BeforeValidator(parse_region)]


class Shot(Value):
    """How a picture of the screen is wanted."""

    region: Region | None = Field(
        None, description="X, Y, width and height, in pixels of the view or of `frame`; none: the whole screen."
    )
    frame: str | None = Field(None, max_length=100, description="`region` is in pixels of this picture.")
    max_edge: int | None = Field(
        None, ge=16, le=16384, description="Scale down until neither edge is longer; none: the view's scale."
    )
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = Field(80, ge=1, le=100, description="Of JPEG and WebP.")
    max_bytes: int | None = Field(None, ge=10_000, description="Met by quality or format, never by another scale.")
    pointer: bool = Field(False, description="Draw the mouse pointer.")
    if_changed_since: str | None = Field(
        None, max_length=100, description="Answer without pixels if this frame, asked for like this, is what it shows."
    )
    settle_ms: int | None = Field(
        None,
        ge=0,
        le=10_000,
        description="Wait until what is shown has kept still for so long; 0: look at once. After actions 100, else 0.",
    )
    settle_timeout_ms: int = Field(2000, ge=1, le=60_000, description="Look after so long even if it keeps changing.")
    allow_blank: bool = Field(False, description="Also a screen of one colour, or of another size than its profile's.")


class Shown(Value):
    """A picture that was handed out, or, without its pixels, one the caller has already."""

    frame: str
    width: int  # of the picture
    height: int
    screen_width: int
    screen_height: int
    generation: int
    sha256: str  # of `data`
    scale: float  # pixels of the picture for each of the screen
    age: float  # seconds since the server had proved that this is what the screen shows
    within: float  # seconds by which it may have been old then; 0: it was exact
    format: str
    settled: bool | None = None  # None: nobody waited for that
    unchanged: bool = False
    data: bytes = b""  # empty if unchanged

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


class Done(Value):
    """What became of one action of a batch."""

    ok: bool
    code: str | None = None
    detail: str | None = None


class Acted(Value):
    done: tuple[Done, ...]
    generation: int
    screenshot: Shown | None = None
    not_shown: Done | None = None  # why there is no screenshot, though one was asked for and all was done
