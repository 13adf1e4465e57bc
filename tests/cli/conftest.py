from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import fake as fakes
from tests.cli.support import end_all


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own: no command of a test can reach a controller of the machine's user."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("CU_FLEET_HOME", str(home))
    for name in ("CU_FLEET_URL", "CU_FLEET_TOKEN", "CU_FLEET_DATABASE", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    yield
    end_all()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[fakes.Fake]:
    """A scripted controller that the commands of this test are pointed at."""
    with fakes.controller() as fake:
        for name, value in fake.env.items():
            monkeypatch.setenv(name, value)
        yield fake
