"""Streams nobody wrote by hand: right ones are read as a plain model reads them, wherever they are cut; wrong ones,
made by our fuzzer, break none of its rules. `python -m tests.rfb.fuzz` goes on for longer."""

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rfb.fuzz import FOUND, PASSWORD, Fuzzer, flaws, misuse
from tests.rfb.hostile import ALPHA, LEDS, MOVED, NAME, SIZE, hello
from tests.rfb.told import Told, fed, state
from tests.rfb.wire import cut_text, fence, rect, update
from tests.support import run

STREAMS = 2000
EDGE = 6


def test_thousands_of_flawed_streams_break_no_rule() -> None:
    fuzzer = Fuzzer(seed=20)
    found = [(flaw, data[:200].hex()) for _ in range(STREAMS) for data, flaw in fuzzer.step()]
    assert not found
    assert len(fuzzer.ends) > 15, "streams that all end alike test nothing"
    assert fuzzer.ends["waits for more"] > STREAMS // 10


def test_a_whole_screen_bears_whatever_is_said_to_it_while_all_is_asked_of_it() -> None:
    fuzzer = Fuzzer(seed=21)
    for _ in range(20):
        said = fuzzer.talk()
        assert run(misuse(said, fuzzer.chance)) == [], said[:200].hex()


@pytest.mark.parametrize("password", [None, PASSWORD])
@pytest.mark.parametrize("name", sorted(path.name for path in FOUND.glob("*.rfb")))
def test_what_the_fuzzer_once_found_is_mended(name: str, password: str | None) -> None:
    assert not list(flaws((FOUND / name).read_bytes(), password, random.Random(1)))


class Model:
    """What a client has to make of right messages: pixels as a table, and the rest as it was said last."""

    def __init__(self) -> None:
        self.size = (EDGE, EDGE)
        self.pixels: dict[tuple[int, int], bytes] = {}
        self.said: dict[str, object] = {"name": "big", "pointer": (3, 3), "cursor": None, "leds": 0}
        self.bells = 0
        self.texts: list[str] = []
        self.updates = 0

    def picture(self) -> bytes:
        width, height = self.size
        return b"".join(self.pixels.get((x, y), bytes(4)) for y in range(height) for x in range(width))

    def draws(self, draw: st.DrawFn) -> bytes:
        kind = draw(st.sampled_from(["update", "update", "update", "bell", "text", "colours", "fence"]))
        if kind == "update":
            self.updates += 1
            return self._update(draw)
        if kind == "bell":
            self.bells += 1
            return b"\2"
        if kind == "text":
            words = draw(st.binary(max_size=12))
            self.texts.append(words.decode("latin-1"))
            return cut_text(words)
        if kind == "colours":
            count = draw(st.integers(0, 3))
            return struct.pack("!BxHH", 1, 0, count) + bytes(6 * count)
        return fence(draw(st.binary(max_size=9)), draw(st.sampled_from([0, 1 << 31])))

    def _update(self, draw: st.DrawFn) -> bytes:
        rects = []
        for _ in range(draw(st.integers(0, 3))):
            width, height = (draw(st.integers(0, edge)) for edge in self.size)
            x, y = (draw(st.integers(0, edge - own)) for edge, own in zip(self.size, (width, height), strict=True))
            make = draw(st.sampled_from([self._raw, self._copy, self._other]))
            rects.append(make(draw, x, y, width, height))
        if draw(st.booleans()):
            return update(*rects, rect(0, 0, 0, 0, -224), count=draw(st.integers(len(rects) + 1, 65535)))
        return update(*rects)

    def _raw(self, draw: st.DrawFn, x: int, y: int, width: int, height: int) -> bytes:
        data = random.Random(draw(st.integers())).randbytes(width * height * 4)
        for at in range(width * height):
            self.pixels[x + at % width, y + at // width] = data[at * 4 : at * 4 + 4]
        return rect(x, y, width, height, 0, data)

    def _copy(self, draw: st.DrawFn, x: int, y: int, width: int, height: int) -> bytes:
        left, top = draw(st.integers(0, self.size[0] - width)), draw(st.integers(0, self.size[1] - height))
        before = dict(self.pixels)
        for column in range(width):
            for row in range(height):
                self.pixels[x + column, y + row] = before.get((left + column, top + row), bytes(4))
        return rect(x, y, width, height, 1, struct.pack("!HH", left, top))

    def _other(self, draw: st.DrawFn, x: int, y: int, width: int, height: int) -> bytes:
        match draw(st.sampled_from(["name", "moved", "leds", "cursor", "size"])):
            case "name":
                name = draw(st.text(st.characters(exclude_categories=["C", "Z"]), max_size=5))
                self.said["name"] = name
                return rect(x, y, width, height, NAME, struct.pack("!I", len(name.encode())) + name.encode())
            case "moved":
                self.said["pointer"] = (min(x, self.size[0] - 1), min(y, self.size[1] - 1))
                return rect(x, y, width, height, MOVED)
            case "leds":
                self.said["leds"] = draw(st.integers(0, 7))
                return rect(x, y, width, height, LEDS, bytes([self.said["leds"]]))
            case "cursor":
                pixels = draw(st.binary(min_size=width * height * 4, max_size=width * height * 4))
                self.said["cursor"] = (width, height, x, y, pixels) if width and height else None
                return rect(x, y, width, height, ALPHA, bytes(4) + pixels)
        size = (draw(st.integers(1, EDGE)), draw(st.integers(1, EDGE)))
        if size != self.size:
            self.size, self.pixels = size, {}
            before = self.said["pointer"]
            self.said["pointer"] = (min(before[0], size[0] - 1), min(before[1], size[1] - 1))
        return rect(0, 0, *size, SIZE)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Model, bytes]:
    model = Model()
    return model, b"".join(model.draws(draw) for _ in range(draw(st.integers(1, 6))))


def made_of(told: Told) -> tuple[object, ...]:
    engine, cursor = told.engine, told.engine.cursor
    shape = cursor and (cursor.width, cursor.height, cursor.hot_x, cursor.hot_y, cursor.pixels)
    said = {"name": engine.name, "pointer": engine.pointer, "cursor": shape, "leds": engine.leds}
    size = (engine.canvas.width, engine.canvas.height)
    return size, bytes(engine.canvas.data), said, engine.bells, told.texts, told.updates, told.errors


@settings(max_examples=40, deadline=None)
@given(conversations())
def test_right_messages_are_read_as_they_are_meant_wherever_they_are_cut(talk: tuple[Model, bytes]) -> None:
    model, data = talk
    data = hello(EDGE, EDGE) + data
    meant = (model.size, model.picture(), model.said, model.bells, model.texts, model.updates, [])
    whole = fed(data)
    assert made_of(whole) == meant
    assert made_of(fed(*(data[at : at + 1] for at in range(len(data))))) == meant
    for place in range(1, len(data)):
        assert state(fed(data[:place], data[place:])) == state(whole), f"cut at {place}"
