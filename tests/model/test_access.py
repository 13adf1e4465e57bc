"""What one agent may grant another: never more than it has, however the patterns are written."""

import pytest

from cu_fleet.model.access import Grants, check_within
from cu_fleet.model.errors import DeniedError


def _may(wider: str, pattern: str) -> bool:
    try:
        check_within(Grants(resources=(wider,)), Grants(resources=(pattern,)))
    except DeniedError as e:
        return e.code != "beyond_parent"
    return True


@pytest.mark.parametrize(
    ("wider", "pattern"),
    [("*", "*"), ("*", "browser:?"), ("browser:*", "browser:a*"), ("browser:*", "browser:[ab]"), ("a?", "a?"),
     ("a?", "ab"), ("a?c*", "abcd"), ("plain", "plain"), ("[ab]", "[ab]")],
)  # fmt: skip
def test_a_pattern_within_its_parents_is_granted(wider: str, pattern: str) -> None:
    assert _may(wider, pattern)


@pytest.mark.parametrize(
    ("wider", "pattern"),
    [("a?", "a*"), ("[!x]*", "*"), ("browser:?", "browser:*"), ("browser:*", "*"), ("a?*", "a[bc]*"), ("ab*", "a*"),
     ("plain", "plain*"), ("a", "b"), ("?", "*")],
)  # fmt: skip
def test_a_pattern_that_matches_more_than_its_parents_is_refused(wider: str, pattern: str) -> None:
    assert not _may(wider, pattern)
