"""`DesktopContainer`: a desktop for suites without a controller, that goes with its owner however that ends."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker import APIClient

from cu_fleet.backends.docker.engine import Engine
from cu_fleet.model.errors import FleetError, UnavailableError
from cu_fleet.testing import DesktopContainer
from cu_fleet.testing import container as own
from cu_fleet.testing.dockerd import PrivateDocker
from tests.support import run, until

pytestmark = pytest.mark.real
_HOLDS = """
import sys
from cu_fleet.testing import DesktopContainer, contained
from cu_fleet.testing.dockerd import PrivateDocker
def stopped(*_):
    print("up", flush=True)
    sys.stdin.read()
if sys.argv[1] == "created":
    contained.archive = stopped
with DesktopContainer() as desktop:
    stopped()
"""


@pytest.fixture(autouse=True)
def at_engine(engine: PrivateDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", engine.host)


def ours(engine: PrivateDocker) -> list[dict[str, Any]]:
    def work(api: APIClient) -> list[dict[str, Any]]:
        return list(api.containers(all=True, filters={"label": own.OWNER}))

    return Engine(engine.host).now(work)


def shown(look: Callable[[], object]) -> Any:
    return run(until(look, timeout=60))


def test_it_shows_clicks_types_and_runs_without_a_controller(engine: PrivateDocker) -> None:
    with DesktopContainer(width=800, height=600) as desktop:
        before = desktop.screenshot()
        assert before.size == (800, 600)
        desktop.launch("mousepad")
        window = shown(lambda: next((w for w in desktop.windows() if "Mousepad" in w["title"]), None))
        desktop.click(window["x"] + window["width"] // 2, window["y"] + window["height"] // 2)
        desktop.type("keys, and ünï → 漢字\n")
        desktop.wait_stable()
        assert desktop.screenshot().tobytes() != before.tobytes()
        desktop.key("ctrl+a")
        desktop.key("ctrl+c")
        shown(lambda: desktop.clipboard_get() == "keys, and ünï → 漢字\n")  # no longer what typing has put there
        desktop.clipboard_set("given")
        assert desktop.exec(["xclip", "-o", "-selection", "clipboard"]).output == b"given"
        said = desktop.exec("sh -c 'id -u; echo $DISPLAY; cat /proc/self/status; ls /sys/class/net'").output.decode()
        assert said.splitlines()[:2] == ["1000", ":0"]
        assert "CapEff:\t0000000000000000" in said
        assert "NoNewPrivs:\t1" in said
        assert said.splitlines()[-1] == "lo"
        desktop.get_wrapped_container().kill()
        with pytest.raises(FleetError):
            run(until(lambda: desktop.screenshot() and None, timeout=20))
    with pytest.raises(UnavailableError, match="does not run"):
        desktop.click(1, 1)
    shown(lambda: not ours(engine))


@pytest.mark.parametrize("when", ["running", "created"])
def test_killed_its_owner_leaves_nothing(engine: PrivateDocker, when: str) -> None:
    words = [sys.executable, "-c", _HOLDS, when]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout
        try:
            assert owner.stdout.readline() == b"up\n"
            [container] = ours(engine)
            assert container["State"] == when
            with DesktopContainer() as another:  # which removes nothing of an owner who lives
                assert another.get_container_id() != container["Id"]
                assert container["Id"] in {one["Id"] for one in ours(engine)}
        finally:
            os.kill(owner.pid, signal.SIGKILL)
    if when == "created":
        assert [one["Id"] for one in ours(engine)] == [container["Id"]]
        own._sweep(Engine(engine.host))  # noqa: SLF001 - as the next start does first
    shown(lambda: not ours(engine))


def test_images_that_are_here_need_no_registry_and_ours_is_never_fetched(
    engine: PrivateDocker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = DesktopContainer._found  # noqa: SLF001 - without a start
    monkeypatch.setattr(own.testcontainers_config, "hub_image_name_prefix", "registry.invalid/mirror/")
    assert found(DesktopContainer()) == "cu-fleet/desktop", "prefixed it is not here, and so the one that is serves"
    Engine(engine.host).now(lambda api: api.tag("cu-fleet/desktop", "registry.invalid/mirror/cu-fleet/desktop"))
    assert found(DesktopContainer()) == "registry.invalid/mirror/cu-fleet/desktop"
    Engine(engine.host).now(lambda api: api.remove_image("registry.invalid/mirror/cu-fleet/desktop"))
    with pytest.raises(UnavailableError, match=r"image registry.invalid/mirror/some/other:1 cannot be had"):
        found(DesktopContainer("some/other:1"))
    monkeypatch.setattr(own.testcontainers_config, "hub_image_name_prefix", "")
    with pytest.raises(UnavailableError, match="there is no image cu-fleet/nonsense here; build it"):
        found(DesktopContainer("cu-fleet/nonsense"))
    with pytest.raises(UnavailableError, match="cannot be had"):
        DesktopContainer("nonsense.invalid/x").start()
    assert not ours(engine)
