"""Building images: from a base by the Dockerfile, proved by a desktop before it is used, and listed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cu_fleet.backends.docker import images
from cu_fleet.backends.docker.engine import Engine, image_of
from cu_fleet.model.errors import UnavailableError
from cu_fleet.testing.dockerd import PrivateDocker
from tests.support import run

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def api(engine: PrivateDocker) -> Iterator[Engine]:
    """Every test here may give the image another meaning; the next one gets it back."""
    one = Engine(engine.host)
    before = one.now(lambda api: image_of(api, "cu-fleet/desktop"))
    assert before
    one.now(lambda api: api.tag(before["Id"], "cu-fleet-test/before"))
    yield one
    one.now(lambda api: api.tag("cu-fleet-test/before", "cu-fleet/desktop", "latest"))
    one.now(lambda api: api.remove_image("cu-fleet-test/before"))


def test_an_image_is_built_from_a_base_and_proved(api: Engine) -> None:
    said: list[str] = []
    made = run(images.build(api, "desktop", said.append, base="cu-fleet-test/before"), timeout=300)
    assert {f"{what}: proved" for what in ("screen", "pointer", "keyboard", "clipboard")} <= set(said)
    assert any(line.startswith("Step ") for line in said), "its progress shows"
    now = api.now(lambda api: image_of(api, "cu-fleet/desktop"))
    assert now
    assert made.id == now["Id"] != api.now(lambda api: image_of(api, "cu-fleet-test/before"))["Id"]  # type: ignore[index]
    assert now["Config"]["User"] == "1000:1000"
    assert api.now(lambda api: image_of(api, "cu-fleet/desktop:candidate")) is None
    assert api.now(lambda api: api.containers(all=True)) == []


def test_an_image_that_does_not_work_does_not_take_the_place_of_one_that_does(api: Engine) -> None:
    lame = api.now(lambda api: api.create_container("cu-fleet-test/before", ["rm", "/usr/bin/xclip"], user="0")["Id"])
    api.now(lambda api: (api.start(lame), api.wait(lame), api.commit(lame, "cu-fleet-test/lame")))
    api.now(lambda api: api.remove_container(lame))
    before = api.now(lambda api: image_of(api, "cu-fleet/desktop"))
    with pytest.raises(UnavailableError, match="does not work") as caught:
        run(images.build(api, "desktop", lambda line: None, base="cu-fleet-test/lame"), timeout=300)
    assert caught.value.code == "image_unproved"
    assert api.now(lambda api: image_of(api, "cu-fleet/desktop")) == before
    assert api.now(lambda api: image_of(api, "cu-fleet/desktop:candidate")) is None
    assert api.now(lambda api: api.containers(all=True)) == []
    api.now(lambda api: api.remove_image("cu-fleet-test/lame"))


def test_a_step_that_fails_is_told(api: Engine) -> None:
    with pytest.raises(UnavailableError, match="could not be built"):
        run(images.build(api, "desktop", lambda line: None, base="cu-fleet-test/none"), timeout=300)


def test_an_image_is_built_again_only_if_something_has_changed(with_xvfb: PrivateDocker, api: Engine) -> None:
    def listed() -> dict[str, bool]:
        return {one.name: one.current for one in api.now(images.listing)}

    said: list[str] = []
    before = api.now(lambda api: image_of(api, "cu-fleet/xvfb"))
    assert before
    assert run(images.build(api, "xvfb", said.append)).id == before["Id"]
    assert said == [f"cu-fleet/{name} is there, and its recipe has not changed" for name in ("desktop", "xvfb")]
    assert before["Config"]["User"] == "1000:1000"
    assert not before["Config"].get("Volumes"), "what it was made with is no part of it"
    lower = api.now(lambda api: image_of(api, "cu-fleet/desktop"))
    assert lower
    assert before["RootFS"]["Layers"][:-1] == lower["RootFS"]["Layers"], "it shares all of the plain one's space"
    assert listed()["cu-fleet/xvfb"]
    made = api.now(lambda api: api.create_container("cu-fleet/desktop", ["true"])["Id"])
    api.now(lambda api: (api.commit(made, "cu-fleet/desktop", tag="latest"), api.remove_container(made)))
    assert not listed()["cu-fleet/xvfb"], "what it rests on is another now"


def test_the_command_line_lists_them_though_the_host_of_machines_is_away(engine: PrivateDocker) -> None:
    env = {**os.environ, "DOCKER_HOST": engine.host, "CU_FLEET_HYPERVISOR": "qemu+ssh://127.0.0.1:1/system"}
    command = [sys.executable, "-m", "cu_fleet", "image", "list", "--json"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True)
    listed = {one["name"]: one["size_bytes"] for one in json.loads(done.stdout)["images"]}
    assert list(listed) == [f"cu-fleet/{name}" for name in images.names()]
    assert listed["cu-fleet/desktop"] > 100 << 20
    assert "127.0.0.1:1 cannot be reached" in done.stderr
