"""The parser against servers real, broken and hostile: every split, every breach, any rubbish."""

import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_fleet.rfb import canvas, clipboard
from cu_fleet.rfb.canvas import unmasked
from cu_fleet.rfb.updates import MOST_NOISE, Update
from tests.rfb import record
from tests.rfb.told import Told, fed, state
from tests.rfb.wire import HELLO, INIT, cut_text, fence, raw, rect, update


@dataclass
class Recorded:
    """A real server's bytes, and what the engine must have made of them in the end."""

    picture: Callable[[bytes], bool]
    size: tuple[int, int] = (record.WIDTH, record.HEIGHT)
    name: str = "recorded"
    password: str | None = None
    pointer: tuple[int, int] = (32, 24)  # the middle, where nothing else is told
    cursor: tuple[int, int] | None = None
    bells: bool = True
    fences: bool = False

    def is_what(self, told: Told) -> None:
        engine, cursor = told.engine, told.engine.cursor
        assert not told.errors
        assert (engine.canvas.width, engine.canvas.height, engine.name) == (*self.size, self.name)
        assert self.picture(record.seen(told))
        assert engine.pointer == self.pointer
        assert (cursor and (cursor.width, cursor.height)) == self.cursor
        assert bool(engine.bells) is self.bells
        assert engine.fences is self.fences
        assert engine.extended_clipboard


def scene(pixels: bytes) -> bool:
    return pixels == record.shown()


RECORDED = {
    "tigervnc": Recorded(scene, cursor=(16, 16), pointer=(5, 6), fences=True),
    "x11vnc": Recorded(scene, cursor=(18, 18), password=record.PASSWORD),
    "qemu": Recorded(
        lambda pixels: record.shows(pixels, record.NUMBER), (128, 64), "QEMU", pointer=(32, 32), bells=False
    ),
}


def bytes_of(server: str) -> bytes:
    return (record.HERE / f"{server}.rfb").read_bytes()


@pytest.mark.parametrize("server", RECORDED)
def test_a_recorded_server_is_read_as_it_was_drawn_on(server: str) -> None:
    RECORDED[server].is_what(fed(bytes_of(server), password=RECORDED[server].password))


@pytest.mark.parametrize("server", RECORDED)
def test_every_split_of_recorded_bytes_reads_the_same(server: str) -> None:
    data, password = bytes_of(server), RECORDED[server].password
    whole = state(fed(data, password=password))
    places = [*range(1, 400), *range(400, len(data), 41), *range(len(data) - 200, len(data))]
    for place in places:
        assert state(fed(data[:place], data[place:], password=password)) == whole, f"split at {place}"
    assert state(fed(*(data[at : at + 1] for at in range(len(data))), password=password)) == whole


@pytest.mark.parametrize("server", RECORDED)
def test_every_truncation_waits_without_an_error(server: str) -> None:
    data, password = bytes_of(server), RECORDED[server].password
    for end in range(0, len(data), 97):
        assert not fed(data[:end], password=password).errors


BREACHES = {
    "not rfb": (b"HTTP/1.1 200 OK\r\n", "no VNC server"),
    "version nought": (b"RFB 000.000\n", "003.003 is the oldest"),
    "unknown login": (b"RFB 003.008\n\x01\x13", "kind of login"),
    "no login, long reason": (b"RFB 003.008\n\x00\xff\xff\xff\xff", "4,294,967,295 bytes"),
    "turned away": (b"RFB 003.008\n\x00\x00\x00\x00\x04busy", "refused us: busy"),
    "wants a password": (b"RFB 003.008\n\x01\x02" + b"c" * 16, "wants a password"),
    "wide screen": (HELLO[:-28] + struct.pack("!HH", 65535, 65535) + INIT[4:], "65535x65535"),
    "big screen": (HELLO[:-28] + struct.pack("!HH", 16000, 16000) + INIT[4:], "33,554,432 in all"),
    "no screen": (HELLO[:-28] + struct.pack("!HH", 0, 48) + INIT[4:], "0x48"),
    "long name": (HELLO[:-8] + b"\x7f\xff\xff\xff", "2,147,483,647 bytes"),
    "unknown message": (HELLO + b"\x99", "unknown kind 153"),
    "off the screen": (HELLO + update(raw(60, 0, 5, 1)), "off its screen"),
    "copied from off the screen": (HELLO + update(rect(0, 0, 8, 8, 1, b"\0\x3f\0\0")), "copies from 63,0"),
    "not asked for": (HELLO + update() * 2 + update(rect(0, 0, 64, 48, 16, b"\0\0\0\1")), "encoding nobody asked"),
    "twice the screen": (HELLO + update(*[raw(0, 0, 64, 48)] * 4), "twice the screen"),
    "resized to madness": (HELLO + update(rect(0, 0, 65535, 65535, -223)), "65535x65535"),
    "huge cursor": (HELLO + update(rect(0, 0, 65535, 65535, -239)), "cursor of 65535x65535"),
    "huge alpha cursor": (HELLO + update(rect(0, 0, 4000, 4000, -314)), "cursor of 4000x4000"),
    "odd cursor": (HELLO + update(rect(0, 0, 1, 1, -314, b"\0\0\0\x07abcd")), "cursor in an encoding"),
    "gigabyte of clipboard": (HELLO + cut_text(b"", 1 << 30), "clipboard of 1,073,741,824"),
    "gigabyte of extended clipboard": (HELLO + cut_text(b"", -(1 << 30)), "clipboard of 1,073,741,824"),
    "clipboard without flags": (HELLO + cut_text(b"ab", -2), "without its flags"),
    "clipboard of rubbish": (HELLO + cut_text(struct.pack("!I", 1 << 28 | 1) + b"xxxx", -8), "does not inflate"),
    "long fence": (HELLO + struct.pack("!BxxxIB", 248, 0, 65), "fence with 65"),
    "bells for ever": (HELLO + b"\2" * (MOST_NOISE + 1), "nobody asked for"),
    "fences for ever": (HELLO + fence(b"x") * (MOST_NOISE + 1), "nobody asked for"),
    "endless rectangles": (HELLO + update(*[raw(0, 0, 64, 1)] * 200, count=65535), "twice the screen"),
}


@pytest.mark.parametrize("breach", BREACHES)
def test_a_breach_ends_the_connection_in_words(breach: str) -> None:
    data, said = BREACHES[breach]
    told = fed(data, b"more that nobody reads")
    assert len(told.errors) == 1
    assert said in str(told.errors[0])
    assert told.closed == 1


def test_pictures_nobody_asked_for_are_a_breach() -> None:
    class Still(Told):
        def updated(self, update: Update) -> None:
            pass

    told = Still()
    told.feed(HELLO + update(raw(0, 0, 1, 1)) * 10)
    assert "nobody asked for" in str(told.errors[0])


def test_a_clipboard_too_big_is_passed_over_in_little_memory() -> None:
    told = fed(HELLO)
    tracemalloc.start()
    told.feed(cut_text(b"", 32 << 20))
    for _ in range(512):
        told.feed(b"x" * 65536)
    told.feed(b"\2")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told.texts == [None]
    assert told.engine.bells == 1
    assert peak < 4 << 20


def test_a_clipboard_that_inflates_without_end_is_not_taken() -> None:
    bomb = zlib.compress(struct.pack("!I", 900 << 20) + b"x" * (64 << 20))
    tracemalloc.start()
    told = fed(HELLO, cut_text(struct.pack("!I", 1 << 28 | 1) + bomb, -4 - len(bomb)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert told.texts == [None]
    assert not told.errors
    assert peak < 8 << 20


@pytest.mark.parametrize("text", ["", "plain", "Grüße, 世界 🌍 é", "two\nlines\n", "x" * 100_000])
def test_text_comes_back_from_the_extended_clipboard(text: str) -> None:
    message = clipboard.provide(text)
    (size,) = struct.unpack_from("!i", message, 4)
    assert -size == len(message) - 8
    assert clipboard.provided(message[12:]) == text


def test_the_extended_clipboard_is_offered_and_handed_over_when_asked() -> None:
    told = fed(HELLO, cut_text(struct.pack("!II", 0x1F000001, 0), -8))
    told.engine.offer("Grüße 世界")
    assert told.sent.endswith(clipboard.notify(has_text=True))
    told.feed(cut_text(struct.pack("!I", 1 << 25 | 1), -4))
    assert told.sent.endswith(clipboard.provide("Grüße 世界"))
    told.feed(cut_text(struct.pack("!I", 1 << 27 | 1), -4))
    assert told.offers == 1


def test_the_password_answers_the_challenge() -> None:
    told = fed(b"RFB 003.008\n\x01\x02", bytes(range(16)), password="secret")  # noqa: S106
    assert told.sent[13:].hex() == "ee22539f33a5983ec12f9c2edbc995dd"  # openssl enc -des-ecb, the key's bits mirrored
    told.feed(struct.pack("!II", 1, 5) + b"wrong")
    assert "refused us: wrong" in str(told.errors[0])
    assert told.errors[0].code == "screen_refused"


@pytest.mark.parametrize("hello", [b"RFB 003.003\n\0\0\0\1", b"RFB 003.007\n\1\1", b"RFB 003.889\n\1\1\0\0\0\0"])
def test_older_and_odd_versions_are_spoken(hello: bytes) -> None:
    told = fed(hello, INIT, update(raw(0, 0, 64, 48, b"\x11\x22\x33\0")))
    assert not told.errors
    assert told.engine.canvas.data[:4] == b"\x11\x22\x33\0"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 3), (8, 2), (16, 16), (33, 5), (0, 9), (9, 0)])
def test_a_masked_cursor_is_opaque_where_its_mask_says(width: int, height: int) -> None:
    chance, pitch = random.Random(width), (width + 7) // 8
    pixels, mask = chance.randbytes(width * height * 4), chance.randbytes(pitch * height)
    seen = unmasked(pixels + mask, width, height)
    for at in range(width * height):
        x, y = at % width, at // width
        blue, green, red, _ = pixels[at * 4 : at * 4 + 4]
        there = mask[y * pitch + x // 8] & 0x80 >> x % 8
        assert seen[at * 4 : at * 4 + 4] == (bytes((red, green, blue, 255)) if there else bytes(4))
    assert len(seen) == width * height * 4


@pytest.mark.parametrize("seed", range(12))
def test_copies_move_what_was_there_however_they_overlap(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "_BAND", 200)
    chance = random.Random(seed)
    screen = canvas.Canvas(20, 30)
    screen.put((0, 0, 20, 30), chance.randbytes(20 * 30 * 4))
    width, height = chance.choice([chance.randint(1, 19), 20]), chance.randint(1, 29)
    left, top, x, y = (chance.randint(0, most) for most in (20 - width, 30 - height) * 2)
    before = bytes(screen.data)
    screen.copy(left, top, (x, y, width, height))
    for row in range(height):
        old, new = ((top + row) * 20 + left) * 4, ((y + row) * 20 + x) * 4
        assert screen.data[new : new + width * 4] == before[old : old + width * 4]


def test_last_rect_ends_an_update_of_unknown_length() -> None:
    told = fed(HELLO, update(raw(0, 0, 2, 2), rect(0, 0, 0, 0, -224), count=65535), b"\2")
    assert told.updates == 1
    assert told.engine.bells == 1


def test_copies_that_overlap_move_what_was_there() -> None:
    told = fed(HELLO, update(raw(0, 0, 64, 48)), update(raw(0, 0, 4, 4, b"\x11\0\0\0")))
    told.feed(update(rect(2, 1, 10, 10, 1, b"\0\0\0\0")))
    data = told.engine.canvas.data
    pixel = [data[(y * 64 + x) * 4] for y in range(6) for x in range(8)]
    assert pixel == [17] * 4 + [1] * 4 + ([17] * 6 + [1] * 2) * 3 + [1, 1, 17, 17, 17, 17, 1, 1] + [1] * 8


def test_only_real_changes_count() -> None:
    told = fed(HELLO, update(raw(0, 0, 64, 48)))
    picture = told.engine.canvas
    before = picture.serial
    told.feed(update(raw(0, 0, 64, 48)) + update(raw(3, 3, 5, 5)))
    assert picture.serial == before
    told.feed(update(raw(3, 3, 5, 5, b"\x09\0\0\0")))
    assert picture.serial == before + 1
    assert picture.changed_since(before, (7, 7, 1, 1))
    assert not picture.changed_since(before, (8, 8, 40, 40))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=2000))
def test_rubbish_ends_in_an_error_or_waits(rubbish: bytes) -> None:
    for start in (b"", HELLO, HELLO + b"\0\0\0\1"):
        told = fed(start + rubbish)
        assert len(told.errors) == told.closed <= 1


def test_a_big_rectangle_is_drawn_as_it_comes_and_kept_nowhere_else() -> None:
    hello = HELLO[:-28] + struct.pack("!HH", 1280, 800) + INIT[4:]
    told = fed(hello)
    picture = raw(0, 0, 1280, 800, b"\x55\x66\x77\0")
    tracemalloc.start()
    told.feed(update(b"", count=1) + picture[:12])
    for at in range(12, len(picture), 65536):
        told.feed(picture[at : at + 65536])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bytes(told.engine.canvas.data) == picture[12:]
    assert peak < 2 << 20
