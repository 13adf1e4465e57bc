"""A frame as a picture to hand out: cut, scaled, with the pointer or without, within a number of bytes.

All of this takes milliseconds of CPU and no event loop: call it in a thread. Lossless PNG is made with ISA-L's
deflate at its first level over unfiltered rows, which is ten times faster than Pillow's and smaller on desktops.
"""

import io
import struct
from dataclasses import dataclass

from isal import isal_zlib
from PIL import Image

from cu_fleet.model.errors import InvalidError
from cu_fleet.rfb.canvas import BYTES, Frame, Rect

_PROBES = 100  # pixels that tell most screens from a blank one
FORMATS = ("png", "jpeg", "webp")
# Over its budget a picture is tried in these, as far as they are lower than what was asked: JPEG is six times faster
# than WebP, but has no way of being small.
_LADDER = (("jpeg", 80), ("jpeg", 60), ("jpeg", 40), ("webp", 50), ("webp", 25), ("webp", 10), ("webp", 0))


@dataclass(frozen=True, slots=True)
class Encoded:
    data: bytes
    width: int
    height: int
    scale: float  # pixels of the picture for each of the screen
    format: str  # as it came out: over its budget a PNG becomes a JPEG, and a JPEG a WebP


def encode(
    frame: Frame,
    region: Rect | None = None,
    max_edge: int | None = None,
    format: str = "png",  # noqa: A002 - the name it has everywhere
    quality: int = 80,
    max_bytes: int | None = None,
    pointer: bool = False,
) -> Encoded:
    """The frame as PNG, JPEG or WebP. `max_bytes` is met by quality or format, never by another scale."""
    if format not in FORMATS:
        raise InvalidError(f"format: expected one of {', '.join(FORMATS)}, found {format!r}", code="bad_format")
    region = check_region(region, frame.width, frame.height)
    image = _cut(frame, region, pointer=pointer)
    scaled = _scaled(image, max_edge)
    data = _bytes(scaled, format, quality)
    if max_bytes is not None and len(data) > max_bytes:
        format, data = _within(scaled, format, quality, max_bytes)  # noqa: A001
    return Encoded(data, scaled.width, scaled.height, scaled.width / region[2], format)


def check_region(region: Rect | None, width: int, height: int) -> Rect:
    """The region, or the whole screen; one that is empty or not all on the screen is refused."""
    if region is None:
        return (0, 0, width, height)
    x, y, w, h = region
    if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
        raise InvalidError(
            f"region {x},{y},{w},{h} is not on the screen, which is {width}x{height}",
            remedy="give x, y, width and height in pixels of the screen",
            code="off_screen",
            width=width,
            height=height,
        )
    return region


def looks_blank(frame: Frame) -> bool:
    """Whether the whole screen is of one colour, as one is that shows nothing (yet)."""
    first, step = frame.pixels[:3], BYTES * max(1, frame.width * frame.height // _PROBES)
    if any(frame.pixels[at : at + 3] != first for at in range(0, len(frame.pixels), step)):
        return False
    if frame.pixels == frame.pixels[:BYTES] * (frame.width * frame.height):
        return True
    return image(frame).getcolors(maxcolors=1) is not None


def image(frame: Frame, pointer: bool = False) -> Image.Image:
    """The whole frame as Pillow's image."""
    return _cut(frame, (0, 0, frame.width, frame.height), pointer=pointer)


def _cut(frame: Frame, region: Rect, *, pointer: bool) -> Image.Image:
    x, y, width, height = region
    stride = frame.width * BYTES
    rows = memoryview(frame.pixels)[y * stride : (y + height) * stride]
    cut = Image.frombuffer("RGB", (frame.width, height), rows, "raw", "BGRX", 0, 1)  # type: ignore[arg-type]
    if width != frame.width:
        cut = cut.crop((x, 0, x + width, height))
    if pointer and frame.cursor is not None:
        cursor = frame.cursor
        size = (cursor.width, cursor.height)
        arrow = Image.frombytes("RGBa", size, cursor.pixels).convert("RGBA")
        at = (frame.pointer[0] - cursor.hot_x - x, frame.pointer[1] - cursor.hot_y - y)
        cut.paste(arrow, at, arrow)
    return cut


def _scaled(image: Image.Image, max_edge: int | None) -> Image.Image:
    longest = max(image.size)
    if max_edge is None or longest <= max_edge:
        return image
    if longest % max_edge == 0 and all(edge % (longest // max_edge) == 0 for edge in image.size):
        return image.reduce(longest // max_edge)
    width, height = (max(1, round(edge * max_edge / longest)) for edge in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2.0)


def _bytes(image: Image.Image, format: str, quality: int) -> bytes:  # noqa: A002
    if format == "png":
        return _png(image)
    out = io.BytesIO()
    if format == "jpeg":
        image.save(out, "JPEG", quality=quality)
    else:
        image.save(out, "WEBP", quality=quality, method=0)
    return out.getvalue()


def _within(image: Image.Image, format: str, quality: int, max_bytes: int) -> tuple[str, bytes]:  # noqa: A002
    """What fits, as good as it goes."""
    size = 0
    for kind, step in ([("jpeg", quality)] if format == "png" else []) + list(_LADDER):
        if step <= quality and FORMATS.index(kind) >= FORMATS.index(format):
            data = _bytes(image, kind, step)
            if len(data) <= max_bytes:
                return kind, data
            size = len(data)
    raise InvalidError(
        f"the picture of {image.width}x{image.height} has {size:,} bytes even at the lowest quality, "
        f"more than the {max_bytes:,} allowed",
        remedy="ask for a smaller max_edge, a region, or more bytes",
        code="budget_too_small",
        max_bytes=max_bytes,
    )


def _png(image: Image.Image) -> bytes:
    # Pillow pads each row with a zero to the stride given: one row's padding is the next row's filter byte.
    rows = image.tobytes("raw", "RGB", image.width * 3 + 1)
    deflate = isal_zlib.compressobj(1)
    data = deflate.compress(b"\0") + deflate.compress(memoryview(rows)[:-1]) + deflate.flush()
    head = struct.pack("!IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack("!I", len(data)), kind, data, struct.pack("!I", crc)))
