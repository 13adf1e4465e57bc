"""Servers that many tests share."""

from collections.abc import Iterator

import pytest

from cu_fleet.testing.postgres import PrivatePostgres, need_programs


@pytest.fixture(scope="session")
def postgres() -> Iterator[PrivatePostgres]:
    """A PostgreSQL of our own; ask it for `new_database()`."""
    with PrivatePostgres(need_programs()) as server:
        yield server
