"""What a viewer may say, and what becomes of it however it says it."""

import struct
import tracemalloc
import zlib
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cu_fleet.rfb import clipboard
from cu_fleet.watch.breach import BreachError
from cu_fleet.watch.encodings import CONTINUOUS, EXTENDED_CLIPBOARD, FENCE
from cu_fleet.watch.pixels import NATIVE
from cu_fleet.watch.protocol import Answered, Asked, Brought, Entered, Event, FenceBack, Keyed, Pointed, Protocol

CHALLENGE = bytes(range(16))
HELLO = b"RFB 003.008\n\x02" + b"a" * 16


def encodings(*numbers: int) -> bytes:
    return struct.pack(f"!BxH{len(numbers)}i", 2, len(numbers), *numbers)


def cut_text(data: bytes, size: int | None = None) -> bytes:
    return struct.pack("!Bxxxi", 6, len(data) if size is None else size) + data


def fence(payload: bytes, flags: int = 1 << 31) -> bytes:
    return struct.pack("!BxxxIB", 248, flags, len(payload)) + payload


KEY = struct.pack("!BBxxI", 4, 1, 0x61)
POINT = struct.pack("!BBHH", 5, 1, 30, 40)
ASK = struct.pack("!BBHHHH", 3, 1, 0, 0, 64, 48)
FORMAT = b"\0\0\0\0" + NATIVE.packed()
NOTIFY = b"\x06" + clipboard.notify(has_text=True)[1:]
TALK = b"".join(
    (
        FORMAT,
        encodings(7, 16, 0, FENCE, CONTINUOUS, EXTENDED_CLIPBOARD),
        ASK,
        KEY,
        POINT,
        fence(b"abc"),
        fence(b"\0\0\0\1", flags=0),
        cut_text(b"gr\xfc\xdfe"),
        clipboard.provide("grüße, 世界"),
        NOTIFY,
        struct.pack("!BBHHHH", 150, 1, 0, 0, 64, 48),
    )
)


def entered() -> Protocol:
    protocol = Protocol(CHALLENGE)
    assert protocol.feed(HELLO) == [Answered(b"a" * 16)]
    protocol.let_in()
    assert protocol.feed(b"\x01") == [Entered()]
    protocol.welcome(64, 48, "a desktop")
    return protocol


def whole_talk(pieces: list[bytes]) -> tuple[list[Event], bytes]:
    protocol, events, out = Protocol(CHALLENGE), [], b""
    for piece in pieces:
        heard = protocol.feed(piece)
        events += heard
        if any(isinstance(event, Answered) for event in heard):
            protocol.let_in()
            events += protocol.feed(b"")
    return events, out + bytes(protocol.out)


WHOLE = whole_talk([HELLO + b"\x01" + TALK])


def test_all_of_a_talk_is_understood() -> None:
    events, _ = WHOLE
    assert events[:2] == [Answered(b"a" * 16), Entered()]
    assert Asked((0, 0, 64, 48), incremental=True) in events
    assert Keyed(0x61, down=True) in events
    assert Pointed(30, 40, 1) in events
    assert [event.text for event in events if isinstance(event, Brought)] == ["grüße", "grüße, 世界"]
    assert FenceBack(b"\0\0\0\1") in events


@settings(max_examples=40)
@given(st.lists(st.integers(0, len(HELLO) + 1 + len(TALK)), max_size=20))
def test_a_talk_means_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    talk = HELLO + b"\x01" + TALK
    assert whole_talk([talk[a:b] for a, b in pairwise([0, *sorted(cuts), len(talk)])]) == WHOLE


def test_a_talk_means_the_same_byte_by_byte() -> None:
    talk = HELLO + b"\x01" + TALK
    assert whole_talk([talk[at : at + 1] for at in range(len(talk))]) == WHOLE


@settings(max_examples=60)
@given(st.binary(max_size=300), st.booleans())
def test_rubbish_is_a_breach_or_is_waited_on(rubbish: bytes, after_entering: bool) -> None:
    protocol = entered() if after_entering else Protocol(CHALLENGE)
    with suppress(BreachError):
        protocol.feed(rubbish)


@settings(max_examples=30)
@given(st.sampled_from([b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n", b"RFB 003.889\n"]))
def test_old_and_odd_viewers_are_asked_for_their_ticket(version: bytes) -> None:
    protocol = Protocol(CHALLENGE)
    old = version == b"RFB 003.003\n"
    heard = protocol.feed(version + (b"" if old else b"\x02") + b"b" * 16)
    assert heard == [Answered(b"b" * 16)]
    assert protocol.out.endswith(CHALLENGE)
    assert (b"\0\0\0\x02" if old else b"\x01\x02") in protocol.out
    protocol.refuse("no")
    assert protocol.out.endswith(b"\0\0\0\1" + (b"" if version < b"RFB 003.008" else b"\0\0\0\2no"))


@pytest.mark.parametrize(
    "words",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"RFB 002.000\n",
        b"RFB 003.008\n\x01",
        HELLO + b"\x01" * (140 << 10),
    ],
    ids=["a browser", "too old", "without a ticket", "pushing on"],
)
def test_whoever_has_no_ticket_gets_no_further(words: bytes) -> None:
    protocol = Protocol(CHALLENGE)
    with pytest.raises(BreachError):
        protocol.feed(words)


@pytest.mark.parametrize(
    "words",
    [
        struct.pack("!BxH", 2, 1025),
        cut_text(b"", 65 << 20),
        cut_text(b"", -(65 << 20)),
        struct.pack("!BxxxIB", 248, 0, 65),
        cut_text(b"\1\2", -2),
        b"\0\0\0\0" + struct.pack("!BBBBHHHBBB3x", 8, 8, 0, 0, 0, 0, 0, 0, 0, 0),
        b"\0\0\0\0" + struct.pack("!BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 254, 16, 8, 0),
        b"\0\0\0\0" + struct.pack("!BBBBHHHBBB3x", 16, 16, 0, 1, 31, 63, 31, 11, 12, 0),
        b"\x63",
    ],
    ids=["encodings", "clipboard", "extended", "fence", "no flags", "palette", "odd maximum", "off the pixel", "what"],
)
def test_past_what_is_taken_is_a_breach(words: bytes) -> None:
    protocol = entered()
    with pytest.raises(BreachError):
        protocol.feed(words)


def test_a_bomb_in_the_clipboard_is_not_inflated() -> None:
    protocol, flags = entered(), clipboard.PROVIDE | clipboard.TEXT
    bomb = struct.pack("!I", flags) + zlib.compress(b"\xff\xff\xff\xff" + bytes(20 << 20))
    tracemalloc.start()
    try:
        assert protocol.feed(cut_text(bomb, -len(bomb))) == []
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_clipboard_too_large_is_passed_over_without_being_kept() -> None:
    protocol, chunk = entered(), bytes(1 << 16)
    tracemalloc.start()
    try:
        protocol.feed(cut_text(b"", 48 << 20))
        for _ in range((48 << 20) // len(chunk)):
            assert protocol.feed(chunk) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert protocol.feed(KEY) == [Keyed(0x61, down=True)]


def test_endless_encodings_cause_no_answers() -> None:
    protocol = entered()
    protocol.feed(encodings(FENCE, CONTINUOUS, EXTENDED_CLIPBOARD))
    protocol.out.clear()
    for _ in range(200):
        protocol.feed(encodings(*range(100), FENCE, CONTINUOUS, EXTENDED_CLIPBOARD))
    assert protocol.out == b""


@settings(max_examples=30)
@given(st.binary(max_size=64), st.integers(0, (1 << 31) - 1))
def test_a_fence_comes_back(payload: bytes, flags: int) -> None:
    protocol = entered()
    protocol.out.clear()
    protocol.feed(fence(payload, 1 << 31 | flags))
    assert bytes(protocol.out) == fence(payload, flags & 7)


@settings(max_examples=30)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=100))
def test_any_text_goes_to_a_viewer_that_can_take_it(text: str) -> None:
    protocol = entered()
    protocol.feed(encodings(EXTENDED_CLIPBOARD))
    protocol.out.clear()
    protocol.send_text(text)
    kind, size, flags = struct.unpack_from("!BxxxiI", protocol.out)
    assert (kind, -size, flags) == (3, len(protocol.out) - 8, clipboard.PROVIDE | clipboard.TEXT)
    assert clipboard.provided(bytes(protocol.out[12:])) == text
