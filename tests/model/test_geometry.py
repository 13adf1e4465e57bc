"""Coordinates: a click on any pixel of a picture hits the middle of what it shows, and nothing is off by one."""

from fractions import Fraction
from math import ceil, floor

from hypothesis import given
from hypothesis import strategies as st

from cu_fleet.model.action import Click, Drag, Key, WaitStable
from cu_fleet.model.geometry import Geometry, fit

EDGE = st.integers(1, 8000)


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """A rectangle of a screen, shown at any size up to its own."""
    width, height = draw(EDGE), draw(EDGE)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    across, down = draw(st.integers(1, width - left)), draw(st.integers(1, height - top))
    size = draw(st.integers(1, across)), draw(st.integers(1, down))
    return Geometry((left, top, across, down), *size, (width, height))


@st.composite
def pixels(draw: st.DrawFn) -> tuple[Geometry, int, int]:
    geometry = draw(geometries())
    return geometry, draw(st.integers(0, geometry.width - 1)), draw(st.integers(0, geometry.height - 1))


@given(pixels())
def test_a_pixel_leads_to_the_middle_of_what_it_shows_and_back(given: tuple[Geometry, int, int]) -> None:
    geometry, x, y = given
    left, top, across, down = geometry.rect
    there = geometry.point(x, y)
    assert there[0] == left + floor(Fraction(2 * x + 1, 2) * across / geometry.width)
    assert there[1] == top + floor(Fraction(2 * y + 1, 2) * down / geometry.height)
    assert geometry.shows(*there) == (x, y)


@given(pixels(), st.integers(1, 8000), st.integers(1, 8000))
def test_an_area_is_all_that_it_shows_any_part_of_and_no_more(
    given: tuple[Geometry, int, int], width: int, height: int
) -> None:
    geometry, x, y = given
    width, height = min(width, geometry.width - x), min(height, geometry.height - y)
    left, top, across, down = geometry.area((x, y, width, height))
    assert left == geometry.rect[0] + floor(Fraction(x * geometry.rect[2], geometry.width))
    assert top == geometry.rect[1] + floor(Fraction(y * geometry.rect[3], geometry.height))
    assert left + across == geometry.rect[0] + ceil(Fraction((x + width) * geometry.rect[2], geometry.width))
    assert top + down == geometry.rect[1] + ceil(Fraction((y + height) * geometry.rect[3], geometry.height))
    point = geometry.point(x, y)
    assert left <= point[0] < left + across
    assert top <= point[1] < top + down


@given(EDGE, EDGE, st.integers(1, 16384))
def test_a_view_keeps_the_shape_and_is_never_larger(width: int, height: int, edge: int) -> None:
    view = Geometry.whole(width, height, edge)
    assert (view.width, view.height) == fit(width, height, edge)
    assert max(view.width, view.height) <= max(edge, 1)
    assert view.width <= width
    assert view.height <= height
    assert view.same == (max(width, height) <= edge)
    shape = Fraction(width, height)
    assert view.height == 1 or view.width == 1 or abs(view.width - view.height * shape) <= max(1, shape)


def test_an_action_in_a_view_is_one_on_the_screen() -> None:
    view = Geometry.whole(1280, 800, 640)
    assert view.meant(Click(x=0, y=399)) == Click(x=1, y=799)
    assert view.meant(Drag(path=((0, 0), (639, 399)))) == Drag(path=((1, 1), (1279, 799)))
    wait = WaitStable(region=(10, 10, 5, 5), ignore=((0, 0, 1, 2),))
    assert view.meant(wait) == WaitStable(region=(20, 20, 10, 10), ignore=((0, 0, 2, 4),))
    key = Key(keys="ctrl+s")
    assert view.meant(key) is key
    click = Click(x=1, y=2)
    assert Geometry.whole(1280, 800, None).meant(click) is click
    assert not Geometry.placed(key)
    assert Geometry.placed(click)
    assert Geometry.placed(Click(x=0, y=0))
