"""A frame as a picture to hand out: cut, scaled, with the pointer or without, within a number of bytes.

All of this takes milliseconds of CPU and no event loop: call it in a thread. Lossless PNG is made with ISA-L's
deflate at its first level over unfiltered rows, which is ten times faster than Pillow's and smaller on desktops. It
goes by strips of rows, small enough for the processor's caches; each is deflated by itself, and kept until it changes:
from one look to the next mostly little does.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isal import isal_zlib
from PIL import Image

from cu_fleet.model.errors import InvalidError
from cu_fleet.rfb.canvas import BYTES, STRIP, Deflated, Frame, Rect

_PROBES = 100  # pixels that tell most screens from a blank one
FORMATS = ("png", "jpeg", "webp")
# Over its budget a picture is tried in these, as far as they are lower than what was asked: JPEG is six times faster
# than WebP, but has no way of being small.
_LADDER = (("jpeg", 80), ("jpeg", 60), ("jpeg", 40), ("webp", 50), ("webp", 25), ("webp", 10), ("webp", 0))

_SAMPLES = 509  # pixels, a prime, so that they are not all of one column
_MODULUS = 65521  # of Adler's checksum
_BEGIN, _END = b"\x78\x01", b"\x03\x00"  # of what zlib wraps around deflated data: its header, an empty last block


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
    if format == "png" and _as_it_is(frame, region, max_edge, pointer=pointer):
        data = _png_of_strips(frame)
        if max_bytes is None or len(data) <= max_bytes:
            return Encoded(data, frame.width, frame.height, 1.0, format)
    scaled = _scaled(_cut(frame, region, pointer=pointer), max_edge)
    data = _bytes(scaled, format, quality)
    if max_bytes is not None and len(data) > max_bytes:
        format, data = _within(scaled, format, quality, max_bytes)  # noqa: A001
    return Encoded(data, scaled.width, scaled.height, scaled.width / region[2], format)


def _as_it_is(frame: Frame, region: Rect, max_edge: int | None, *, pointer: bool) -> bool:
    """Whether the picture has just the frame's own pixels."""
    whole = region == (0, 0, frame.width, frame.height)
    return whole and (max_edge or max(region)) >= max(region) and not (pointer and frame.cursor)


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
    size, colour = frame.width * frame.height, frame.pixels[: BYTES - 1]
    some = range(0, size * BYTES, BYTES * max(1, size // _SAMPLES))
    if any(frame.pixels[at : at + BYTES - 1] != colour for at in some):
        return False
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
    width, height = image.size
    deflate = _deflate()
    tops = range(0, height, STRIP)
    return _assembled(width, height, [_deflated(deflate, image.crop(_strip(image, y)), "RGB") for y in tops])


def _png_of_strips(frame: Frame) -> bytes:
    swapped = Image.frombuffer("RGBX", (frame.width, frame.height), frame.pixels, "raw", "RGBX", 0, 1)
    strips, deflate = [], _deflate()
    for number, y in enumerate(range(0, frame.height, STRIP)):
        serial = frame.strips[number] if frame.strips else frame.serial
        kept = frame.deflated.get(number)
        if kept is None or kept[0] != serial:
            kept = frame.deflated[number] = (serial, _deflated(deflate, swapped.crop(_strip(swapped, y)), "BGR"))
        strips.append(kept[1])
    return _assembled(frame.width, frame.height, strips)


def _strip(image: Image.Image, y: int) -> tuple[int, int, int, int]:
    return (0, y, image.width, min(y + STRIP, image.height))


def _deflate() -> Any:
    return isal_zlib.compressobj(1, isal_zlib.DEFLATED, -isal_zlib.MAX_WBITS)


def _deflated(deflate: Any, strip: Image.Image, colours: str) -> Deflated:
    """After a full flush nothing refers to what came before: a strip's bytes go with those of any other."""
    # Pillow pads each row with a zero to the stride given: one row's padding is the next row's filter byte.
    rows = memoryview(strip.tobytes("raw", colours, strip.width * 3 + 1))
    data = deflate.compress(b"\0") + deflate.compress(rows[:-1]) + deflate.flush(isal_zlib.Z_FULL_FLUSH)
    return Deflated(data, isal_zlib.adler32(rows[:-1], isal_zlib.adler32(b"\0")), len(rows))


def _assembled(width: int, height: int, strips: Sequence[Deflated]) -> bytes:
    low, high = 1, 0
    for strip in strips:  # Adler's checksum of all, from those of the parts
        high = (high + (strip.checksum >> 16) + strip.length * (low - 1)) % _MODULUS
        low = (low + (strip.checksum & 0xFFFF) - 1) % _MODULUS
    data = b"".join((_BEGIN, *(strip.data for strip in strips), _END, struct.pack("!HH", high, low)))
    head = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    crc = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack("!I", len(data)), kind, data, struct.pack("!I", crc)))
