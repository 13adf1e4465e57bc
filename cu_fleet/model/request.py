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
    request_id: str | None = Field(None, max_length=200, description="Asking again with it returns the same lease.")


def parse_region(value: object) -> object:
    """`X,Y,W,H` as it stands in a URL or on the command line."""
    if isinstance(value, str):
        return tuple(int(part) if part.strip().lstrip("-").isdigit() else part for part in value.split(","))
    return value


Region = Annotated[tuple[int, int, int, int], BeforeValidator(parse_region)]


class Shot(Value):
    """How a picture of the screen is wanted."""

    region: Region | None = Field(None, description="X, Y, width and height; none: the whole screen.")
    max_edge: int | None = Field(None, ge=16, le=16384, description="Scale down until neither edge is longer.")
    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = Field(80, ge=1, le=100, description="Of JPEG and WebP.")
    max_bytes: int | None = Field(None, ge=10_000, description="Met by quality or format, never by another scale.")
    pointer: bool = Field(False, description="Draw the mouse pointer.")


class Shown(Value):
    """A picture that was handed out."""

    frame: str
    width: int
    height: int
    screen_width: int
    screen_height: int
    generation: int
    sha256: str  # of `data`
    scale: float
    age: float  # seconds between the newest pixel's arrival and this answer
    format: str
    data: bytes

    @property
    def media_type(self) -> str:
        return f"image/{self.format}"


class Done(Value):
    """What became of one action of a batch."""

    ok: bool
    code: str | None = None
    detail: str | None = None


class Acted(Value):
    done: tuple[Done, ...]
    generation: int
    screenshot: Shown | None = None
