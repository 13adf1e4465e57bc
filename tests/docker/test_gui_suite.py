"""The suite in examples/gui_suite, as its users run it, in four containers at once."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.backends.docker.engine import Engine
from cu_fleet.testing.dockerd import PrivateDocker
from tests.cli.support import end_all, finished, start

pytestmark = [pytest.mark.real, pytest.mark.slow]
TOP = Path(__file__).resolve().parents[2]
_QUICK = ("-p", "no:cacheprovider", "-p", "no:schemathesis", "-p", "no:hypothesispytest")


@pytest.fixture
def env(tmp_path: Path, engine: PrivateDocker) -> Iterator[dict[str, str]]:
    env = {"CU_FLEET_HOME": str(tmp_path / "home"), "DOCKER_HOST": engine.host}
    try:
        yield env
    finally:
        finished(start("down", env=env), timeout=120)
        end_all()


def test_four_containers_at_once_and_none_disturbs_another(
    env: dict[str, str], engine: PrivateDocker, tmp_path: Path
) -> None:
    suite = [sys.executable, "-m", "pytest", *_QUICK, "-n", "4", str(TOP / "examples/gui_suite"), "-c", "/dev/null"]
    words = (
        "run",
        "--beside",
        "-n",
        "4",
        "-p",
        "docker",
        "--json",
        "--",
        *suite,
        "--desktop-report-dir",
        str(tmp_path),
    )
    ended = finished(start(*words, env=env), timeout=180)
    assert ended.code == 0, ended.err
    told = ended.json["workers"]
    assert "4 passed" in ended.err
    assert len({one["desktop"] for one in told}) == 4
    assert [one["state"] for one in told] == ["released"] * 4
    record = finished(start("audit", "show", "--json", "--limit", "1000", env=env)).json["entries"]
    granted = [entry["at"] for entry in record if entry["what"] == "lease.granted"]
    acted = [entry["at"] for entry in record if entry["what"] == "act"]
    assert len(granted) == 4
    assert max(granted) < min(acted), "nobody began before all had their desktops"
    finished(start("down", env=env), timeout=120)
    assert Engine(engine.host).now(lambda api: api.containers(all=True)) == []
