"""Pictures come out as they went in, in any form a viewer may ask for, wherever they fall in its stream."""

import random
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cu_fleet.rfb.canvas import Cursor
from cu_fleet.watch import encodings as rfb
from cu_fleet.watch.grid import TILE, Grid
from cu_fleet.watch.pixels import NATIVE, Format

BGR233 = Format(8, 8, False, (7, 7, 3), (0, 3, 6))
FORMATS = {
    "native": NATIVE,
    "rgbx": Format(32, 24, False, (255, 255, 255), (0, 8, 16)),
    "big endian": Format(32, 24, True, (255, 255, 255), (16, 8, 0)),
    "big endian, high": Format(32, 24, True, (255, 255, 255), (24, 16, 8)),
    "high": Format(32, 24, False, (255, 255, 255), (8, 16, 24)),
    "depth 32": Format(32, 32, False, (255, 255, 255), (16, 8, 0)),
    "10 bits": Format(32, 30, False, (1023, 1023, 1023), (20, 10, 0)),
    "odd shifts": Format(32, 24, False, (255, 255, 255), (17, 8, 0)),
    "565": Format(16, 16, False, (31, 63, 31), (11, 5, 0)),
    "565 big endian": Format(16, 16, True, (31, 63, 31), (11, 5, 0)),
    "233": BGR233,
}


def picture(width: int, height: int, seed: int = 1) -> Image.Image:
    chance = random.Random(seed)
    image = Image.new("RGB", (width, height), (chance.randrange(256), 20, 30))
    for _ in range(20):
        x, y = chance.randrange(width), chance.randrange(height)
        colour = tuple(chance.randrange(256) for _ in range(3))
        image.paste(colour, (x, y, x + chance.randrange(1, 60), y + chance.randrange(1, 30)))
    return image


def shade(value: int, maximum: int) -> int:
    return (value * maximum + 127) // 255


def expected(image: Image.Image, form: Format) -> list[tuple[int, ...]]:
    data = image.tobytes()
    pixels = (data[at : at + 3] for at in range(0, len(data), 3))
    return [tuple(shade(v, m) for v, m in zip(pixel, form.maxima, strict=True)) for pixel in pixels]


def decoded(data: bytes, form: Format, size: int | None = None) -> list[tuple[int, ...]]:
    """Pixels, straight from RFB's definition; ZRLE's compact ones have three bytes."""
    step = size or form.bits // 8
    out = []
    for at in range(0, len(data), step):
        piece = data[at : at + step]
        if size == 3:  # in which three of the four bytes the colours are
            low = all(m << s < 1 << 24 for m, s in zip(form.maxima, form.shifts, strict=True))
            piece = (
                (b"\0" + piece if form.big else piece + b"\0")
                if low
                else (piece + b"\0" if form.big else b"\0" + piece)
            )
        value = int.from_bytes(piece, "big" if form.big else "little")
        out.append(tuple(value >> s & m for m, s in zip(form.maxima, form.shifts, strict=True)))
    return out


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_raw_is_the_picture(form: Format) -> None:
    image = picture(70, 20)
    assert decoded(rfb.raw(image, form), form) == expected(image, form)
    assert Format.parse(form.packed()) == form


def tight_pixels(payload: bytes, form: Format) -> list[tuple[int, ...]]:
    control, at = payload[0], 1
    if control == 0:
        data = payload[1:]
    else:
        assert control == 1
        size = shift = 0
        while True:
            byte = payload[at]
            at += 1
            size |= (byte & 127 if shift < 14 else byte) << shift
            shift += 7
            if shift == 21 or not byte & 128:
                break
        assert size == len(payload) - at
        data = zlib.decompressobj().decompress(payload[at:])
    if form.bits == 32 and form.depth == 24 and form.maxima == (255, 255, 255):
        return [tuple(data[n : n + 3]) for n in range(0, len(data), 3)]
    return decoded(data, form)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (64, 20), (2048, 2)])
def test_tight_is_the_picture(form: Format, size: tuple[int, int]) -> None:
    image = picture(*size)
    assert tight_pixels(rfb.tight(image, form), form) == expected(image, form)


def zrle_pixels(tiles: bytes, width: int, height: int, form: Format) -> Image.Image | list[tuple[int, ...]]:
    compact = (
        form.bits == 32
        and form.depth <= 24
        and any(
            (
                all(m << s < 1 << 24 for m, s in zip(form.maxima, form.shifts, strict=True)),
                all(s >= 8 for s in form.shifts),
            )
        )
    )
    step = 3 if compact else form.bits // 8
    rows: list[list[tuple[int, ...]]] = [[] for _ in range(height)]
    at = 0
    for x in range(0, width, TILE):
        across = min(TILE, width - x)
        kind, at = tiles[at], at + 1
        count = 1 if kind == 1 else across * height
        pixels = decoded(tiles[at : at + count * step], form, 3 if compact else None)
        at += count * step
        pixels = pixels * (across * height) if kind == 1 else pixels
        for row in range(height):
            rows[row] += pixels[row * across : (row + 1) * across]
    assert at == len(tiles)
    return [pixel for row in rows for pixel in row]


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_zrle_is_the_picture_wherever_it_falls_in_the_stream(form: Format) -> None:
    images = [picture(130, 20, 1), Image.new("RGB", (64, 64), (1, 2, 3)), picture(70, 20, 2), picture(130, 20, 1)]
    stream = zlib.decompressobj()
    stream.decompress(rfb.ZRLE_BEGIN)
    for image in images:
        tiles = stream.decompress(rfb.zrle(image, form))
        assert zrle_pixels(tiles, *image.size, form) == expected(image, form)


def test_a_pointer_without_alpha_has_its_shape() -> None:
    pixels = bytes((255, 0, 0, 255)) * 4 + bytes(4) * 5 + bytes((0, 64, 0, 255))
    cursor = Cursor(5, 2, 1, 1, pixels)
    x, y, width, height, encoding = struct.unpack_from("!HHHHi", data := rfb.pointer(cursor, NATIVE, alpha=False))
    assert (x, y, width, height, encoding) == (1, 1, 5, 2, rfb.POINTER)
    colours, mask = data[12 : 12 + 40], data[52:]
    assert colours[:4][:3] == bytes((0, 0, 255))
    assert [f"{byte:08b}"[:5] for byte in mask] == ["11110", "00001"]
    assert rfb.pointer(cursor, NATIVE, alpha=True)[16:] == pixels


rects = st.tuples(*[st.integers(0, 700)] * 4)


@settings(max_examples=50)
@given(st.integers(1, 5000), st.integers(1, 700), st.lists(rects, max_size=6))
def test_a_region_holds_its_rectangles_and_comes_in_pieces_that_fit(
    width: int, height: int, damage: list[tuple[int, int, int, int]]
) -> None:
    grid, region = Grid(width, height), 0
    for rect in damage:
        region |= grid.region(rect)
    pieces, covered = list(grid.rects(region)), 0
    for (x, y, across, down), part in pieces:
        assert 0 <= x < x + across <= width
        assert 0 <= y < y + down <= height
        assert across <= 2048
        assert part == grid.region((x, y, across, down))
        assert not covered & part
        covered |= part
    assert covered == region
    assert region & ~grid.whole == 0
    for x, y, across, down in damage:
        corner = grid.region((x, y, min(1, across), min(1, down)))
        assert corner & region == corner
