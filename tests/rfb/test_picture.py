"""Pictures: true to the pixel, cut and scaled as asked, within their budget."""

import io
import random
import zlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cu_fleet.model.errors import InvalidError
from cu_fleet.rfb.canvas import STRIP, Canvas, Cursor, Frame
from cu_fleet.rfb.picture import Encoded, check_region, encode, image, looks_blank

WIDTH, HEIGHT = 200, 120


def frame(pixels: bytes, width: int = WIDTH, height: int = HEIGHT, cursor: Cursor | None = None) -> Frame:
    return Frame(width, height, pixels, 0.0, 1, 0.0, (50, 40), cursor, False)


def noise(seed: int = 1, width: int = WIDTH, height: int = HEIGHT) -> Frame:
    return frame(random.Random(seed).randbytes(width * height * 4), width, height)


def opened(encoded: Encoded) -> Image.Image:
    picture = Image.open(io.BytesIO(encoded.data))
    picture.load()
    assert picture.size == (encoded.width, encoded.height)
    assert (picture.format or "").lower() == encoded.format
    return picture.convert("RGB")


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (3, 5), (200, 120), (1280, 800), (2100, 130)])
def test_png_has_every_pixel_as_the_server_sent_it(size: tuple[int, int]) -> None:
    shot = noise(width=size[0], height=size[1])
    want = b"".join(shot.pixels[at + 2 : at - 1 if at else None : -1] for at in range(0, len(shot.pixels), 4))
    picture = encode(shot)
    assert opened(picture).tobytes() == want
    data = picture.data[37:-16]  # the one chunk of pixels, with its name
    assert len(zlib.decompress(data[4:])) == (3 * size[0] + 1) * size[1]  # its checksum is right, too
    assert zlib.crc32(data).to_bytes(4, "big") == picture.data[-16:-12]


@st.composite
def rects(draw: st.DrawFn) -> tuple[int, int, int, int]:
    x, y = draw(st.integers(0, 6)), draw(st.integers(0, 3 * STRIP - 11))
    return (x, y, draw(st.integers(1, 7 - x)), draw(st.integers(1, 3 * STRIP - 10 - y)))


@given(drawn=st.lists(st.lists(st.tuples(rects(), st.integers(0, 255)), max_size=3), max_size=4))
def test_png_of_what_has_changed_little_is_as_true(drawn: list[list[tuple[tuple[int, int, int, int], int]]]) -> None:
    canvas = Canvas(7, 3 * STRIP - 10)
    for rects in drawn:
        for rect, colour in rects:
            canvas.put(rect, bytes((colour, 0, 255 - colour, 0)) * (rect[2] * rect[3]))
        shot = frame(bytes(canvas.data), canvas.width, canvas.height)
        shot = replace(shot, strips=tuple(canvas.strips), deflated=canvas.deflated)
        encoded = encode(shot)
        assert opened(encoded).tobytes() == image(shot).tobytes()
        assert encoded == encode(replace(shot, deflated={}))  # what was kept makes no difference


def test_strips_that_are_much_alike_do_not_refer_to_one_another() -> None:
    """What a deflated strip would refer to in the one before it may be another strip by the next frame."""
    chance = random.Random(5)
    canvas = Canvas(320, 4 * STRIP)
    words = [chance.randbytes(4 * 40) for _ in range(6)]
    for _ in range(40):
        strip = chance.randrange(4)
        canvas.put((0, strip * STRIP, 320, STRIP), b"".join(chance.choice(words) for _ in range(8 * STRIP)))
        shot = frame(bytes(canvas.data), canvas.width, canvas.height)
        shot = replace(shot, strips=tuple(canvas.strips), deflated=canvas.deflated)
        assert opened(encode(shot)).tobytes() == image(shot).tobytes()


def test_only_what_has_changed_is_deflated_again() -> None:
    canvas = Canvas(7, 3 * STRIP)
    first = replace(frame(bytes(canvas.data), 7, 3 * STRIP), strips=tuple(canvas.strips), deflated=canvas.deflated)
    encode(first)
    before = dict(canvas.deflated)
    canvas.put((0, STRIP, 1, 1), b"\1\2\3\4")
    encode(replace(first, pixels=bytes(canvas.data), strips=tuple(canvas.strips)))
    assert [number for number in before if canvas.deflated[number] is not before[number]] == [1]


def test_a_region_is_cut_to_the_pixel_and_png_alike() -> None:
    shot = noise()
    encoded = encode(shot, region=(13, 7, 31, 17))
    assert opened(encoded).tobytes() == image(shot).crop((13, 7, 44, 24)).tobytes()
    assert (encoded.width, encoded.height, encoded.scale) == (31, 17, 1.0)


@pytest.mark.parametrize("region", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5, -5), (196, 0, 5, 5), (0, 116, 5, 5)])
def test_a_region_off_the_screen_is_refused(region: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidError, match="is not on the screen, which is 200x120"):
        encode(noise(), region=region)
    assert check_region(None, 200, 120) == (0, 0, 200, 120)


@pytest.mark.parametrize(
    ("max_edge", "size"), [(100, (100, 60)), (150, (150, 90)), (200, (200, 120)), (500, (200, 120))]
)
def test_scaling_only_makes_smaller_and_says_by_how_much(max_edge: int, size: tuple[int, int]) -> None:
    encoded = encode(noise(), max_edge=max_edge)
    assert opened(encoded).size == size
    assert encoded.scale == size[0] / 200


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
def test_a_budget_is_met_without_another_scale(format: str) -> None:  # noqa: A002
    shot = noise()
    free = encode(shot, format=format)
    assert free.format == format
    tight = encode(shot, format=format, max_bytes=len(free.data) * 2 // 3)
    assert len(tight.data) <= len(free.data) * 2 // 3
    assert (tight.width, tight.height, tight.scale) == (WIDTH, HEIGHT, 1.0)
    opened(tight)
    assert encode(shot, format=format, max_bytes=len(free.data)) == free


def test_a_budget_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(InvalidError, match="even at the lowest quality, more than the 1,000 allowed") as e:
        encode(noise(), max_bytes=1000)
    assert e.value.code == "budget_too_small"


def test_quality_counts_and_unknown_formats_are_refused() -> None:
    assert len(encode(noise(), format="jpeg", quality=20).data) < len(encode(noise(), format="jpeg", quality=90).data)
    with pytest.raises(InvalidError, match="expected one of png, jpeg, webp, found 'gif'"):
        encode(noise(), format="gif")


def test_the_pointer_is_painted_with_its_hot_spot_where_it_points_and_only_when_asked() -> None:
    half_red = bytes((128, 0, 0, 128))  # already multiplied
    shot = frame(b"\0\0\0\0" * (WIDTH * HEIGHT), cursor=Cursor(2, 2, 1, 1, half_red * 4))
    with_pointer = image(shot, pointer=True)
    assert with_pointer.getbbox() == (49, 39, 51, 41)
    assert with_pointer.getpixel((50, 40)) == (128, 0, 0)
    assert image(shot).getbbox() is None
    cut = opened(encode(shot, region=(50, 40, 10, 10), pointer=True))
    assert cut.getbbox() == (0, 0, 1, 1)


def test_a_blank_screen_is_known_whatever_the_unused_byte_holds() -> None:
    blank = b"".join(b"\x30\x20\x10" + bytes([at % 251]) for at in range(WIDTH * HEIGHT))
    assert looks_blank(frame(blank))
    assert looks_blank(frame(b"\x30\x20\x10\0" * (WIDTH * HEIGHT)))
    assert not looks_blank(frame(blank[:-4] + b"\x31\x20\x10\0"))
