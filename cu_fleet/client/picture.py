"""What the client is shown: a PIL image that knows which frame it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, cast

if TYPE_CHECKING:
    from PIL import Image

    class Picture(Image.Image):
        """A PIL image that knows which frame it is."""

        frame: "Frame"


Area = tuple[int, int, int, int]  # x, y, width, height
Format = Literal["png", "jpeg", "webp"]


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
    data: bytes = field(repr=False)


def picture(facts: Mapping[str, Any], data: bytes) -> "Picture":
    from PIL import Image

    image = cast("Picture", Image.open(BytesIO(data)))  # decoded when its pixels are first asked for
    image.frame = Frame(
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
    return image
