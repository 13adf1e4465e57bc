"""What counts as a change: pixel by pixel against a plain reckoning."""

from hypothesis import given
from hypothesis import strategies as st

from cu_fleet.rfb.canvas import BYTES, Canvas, Rect
from cu_fleet.rfb.changes import Focus, Still, differs

WIDTH, HEIGHT = 40, 37  # more than two bands of rows, and not a whole number of them


@st.composite
def rects(draw: st.DrawFn) -> Rect:
    x, y = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
    return (x, y, draw(st.integers(1, WIDTH - x)), draw(st.integers(1, HEIGHT - y)))


@st.composite
def regions(draw: st.DrawFn) -> Rect:
    """They may have been made for a larger screen."""
    return (draw(st.integers(0, 50)), draw(st.integers(0, 50)), draw(st.integers(1, 60)), draw(st.integers(1, 60)))


def _holds(rect: Rect, x: int, y: int) -> bool:
    return rect[0] <= x < rect[0] + rect[2] and rect[1] <= y < rect[1] + rect[3]


@given(
    drawn=st.lists(rects(), max_size=3),
    region=st.none() | regions(),
    ignore=st.lists(regions(), max_size=2),
    below=st.integers(0, 300),
)
def test_a_change_counts_where_it_is_looked_for_and_large_enough(
    drawn: list[Rect], region: Rect | None, ignore: list[Rect], below: int
) -> None:
    canvas = Canvas(WIDTH, HEIGHT)
    focus = Focus(region, tuple(ignore), below)
    before, enough = Still.of(canvas), Still.of(canvas, focus)
    for number, rect in enumerate(drawn, 1):
        canvas.put(rect, bytes((number, 0, 0, 99)) * (rect[2] * rect[3]))
    counted = sum(
        any(_holds(rect, x, y) for rect in drawn)
        and (region is None or _holds(region, x, y))
        and not any(_holds(rect, x, y) for rect in ignore)
        for x in range(WIDTH)
        for y in range(HEIGHT)
    )
    assert differs(before, canvas, focus) is differs(enough, canvas, focus) is (counted >= max(1, below))


def test_what_comes_and_goes_again_is_no_change() -> None:
    canvas = Canvas(WIDTH, HEIGHT)
    before = Still.of(canvas)
    focus = Focus(region=(0, 0, WIDTH, HEIGHT))
    canvas.put((3, 3, 2, 9), b"\xff" * (2 * 9 * BYTES))
    assert differs(before, canvas, focus)
    assert not differs(before, canvas, Focus(below=19))
    canvas.put((3, 3, 2, 9), bytes(2 * 9 * BYTES))
    assert not differs(before, canvas, focus)


def test_another_size_is_always_a_change() -> None:
    canvas = Canvas(WIDTH, HEIGHT)
    before = Still.of(canvas)
    canvas.resize(WIDTH - 1, HEIGHT)
    assert differs(before, canvas, Focus(region=(0, 0, 1, 1), below=99))
