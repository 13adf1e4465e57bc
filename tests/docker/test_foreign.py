"""Desktops of an image in which nothing is ours, not even a Python: seen and acted upon over its own VNC port."""

from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, ClassVar

import pytest

from cu_fleet.backends.base import Backend, Place, Spec
from cu_fleet.backends.docker import DockerVncBackend
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.backends.docker.layout import BOOT
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import FleetError
from cu_fleet.model.profile import Profile
from cu_fleet.model.request import Acquire, Shot
from cu_fleet.testing.backend_verbs import VerbsContract
from cu_fleet.testing.backend_walls import WallsContract
from cu_fleet.testing.dockerd import PrivateDocker
from cu_fleet.testing.screen_leased import Leased
from tests.docker.support import last
from tests.rfb.stages import ANA, leased
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
IMAGE = "cu-fleet-test/foreign"
PROFILE: dict[str, Any] = {
    "image": IMAGE,
    "env": {"SIZE": "640x480"},
    "screen": {"width": 640, "height": 480},
    "options": {"port": 5999, "password_env": "SECRET", "within": 0.5},
}
ENTRY = """#!/bin/sh
[ -z "$1" ] || { echo "what is $1?"; exit 9; }
Xvfb :7 -screen 0 ${SIZE}x24 -nolisten tcp &
until [ -e /tmp/.X11-unix/X7 ]; do sleep 0.05; done
DISPLAY=:7 xterm -geometry 80x25+0+0 &
if [ "$SECRET" ]; then set -- -passwd "$SECRET"; else set -- -nopw; fi
exec x11vnc "$@" -display :7 -rfbport 5999 -forever -shared -noipv6 -norc -xd_area 0 -wait 10 -defer 1 -nonap -sb 0
"""
STRIP = """printf %s "$0" >/entry && chmod 755 /entry
find / -xdev -name 'python3*' -delete 2>/dev/null; ! command -v python3"""
CHANGES = 'ENTRYPOINT ["/entry"]\nCMD []\nUSER 1000:1000'


@pytest.fixture(scope="module")
def docker(with_xvfb: PrivateDocker) -> Iterator[Engine]:
    """An engine with such an image."""
    engine = Engine(with_xvfb.host)
    made = engine.now(lambda api: api.create_container("cu-fleet/xvfb", ["sh", "-c", STRIP, ENTRY], user="0")["Id"])
    assert engine.now(lambda api: (api.start(made), api.wait(made))[1])["StatusCode"] == 0
    engine.now(lambda api: (api.commit(made, IMAGE, changes=CHANGES), api.remove_container(made)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", with_xvfb.host)
        yield engine
    engine.now(lambda api: api.remove_image(IMAGE, force=True))


class TestContract(VerbsContract, WallsContract):
    """What of the suite needs nobody inside."""

    gaps: ClassVar[Mapping[str, str]] = {
        "exec": "nobody of ours is inside",
        "test_the_screen_has_the_size_of_the_profile": "the image decides; the controller refuses a wrong one",
    }

    @pytest.fixture(autouse=True)
    def _docker(self, docker: Engine) -> None:
        self.host = docker.host

    async def make(self) -> Backend:
        return DockerVncBackend(self.place, self.host)

    def profile(self) -> Profile:
        return Profile(name="contract", backend="docker-vnc", **{**PROFILE, "options": {"port": 5999}})

    async def boot_of(self, backend: Backend, handle: Handle) -> str:
        assert isinstance(backend, DockerVncBackend)
        desk = backend.desk(handle)
        found = await backend.house.engine.do(lambda api: api.inspect_container(desk.name))
        return str(found["Config"]["Labels"][BOOT])


async def container(docker: Engine, stage: Leased) -> dict[str, Any]:
    """The one with the image."""
    found = await docker.do(lambda api: api.containers(filters={"ancestor": IMAGE}))
    [one] = [one for one in found if any(str(stage.lease.desktop) in name for name in one["Names"])]
    inspected: dict[str, Any] = await docker.do(lambda api: api.inspect_container(one["Id"]))
    return inspected


async def refused(work: Coroutine[Any, Any, Any], code: str) -> None:
    with pytest.raises(FleetError) as e:
        await work
    assert e.value.code == code, e.value


def test_it_is_seen_acted_upon_and_rolled_back_into_a_new_container(docker: Engine) -> None:
    async def body() -> None:
        async with leased("docker-vnc", **PROFILE) as stage:
            controller, lease = stage.controller, stage.lease.lease
            shown = await controller.screenshot(ANA, lease, Shot())
            assert (shown.width, shown.height, shown.within) == (640, 480, 0.5)
            first = await container(docker, stage)

            async def written() -> bool:
                [change] = [
                    x for x in await docker.do(lambda api: api.diff(first["Id"])) if x["Path"] == "/tmp/mark"
                ] or [0]
                return bool(change)

            await stage.do(
                [{"type": "click", "x": 50, "y": 50}, {"type": "type", "text": "echo $((6*7)) >/tmp/mark\n"}]
            )
            await until(written, timeout=30, every=0.2)
            disk = controller.core.backend("docker-vnc").abilities.disk
            assert disk
            handle = await controller.core.read(lambda tx: controller.core.get_desktop(tx, stage.lease.desktop).handle)
            assert 0 < await disk.used(handle) < 1 << 20
            again = await controller.screenshot(ANA, lease, Shot())
            assert again.sha256 != shown.sha256

            await controller.release(ANA, lease)
            stage.lease = await controller.acquire(ANA, Acquire(agent="next", profile="acting", wait=None), hold=60)
            assert stage.lease.state == "active"
            second = await container(docker, stage)
            assert second["Id"] != first["Id"]
            assert not [x for x in await docker.do(lambda api: api.diff(second["Id"])) if x["Path"] == "/tmp/mark"]
            assert password(first) != password(second)
        assert await docker.do(lambda api: api.containers(all=True, filters={"ancestor": IMAGE})) == []

    def password(one: dict[str, Any]) -> str:
        [word] = [word for word in one["Config"]["Env"] if word.startswith("SECRET=")]
        assert len(word) == len("SECRET=") + 8
        return str(word)

    run(body(), timeout=200)


def test_it_has_walls_and_nothing_is_published(docker: Engine) -> None:
    async def body() -> None:
        async with leased("docker-vnc", **PROFILE) as stage:
            one = await container(docker, stage)
            host = one["HostConfig"]
            assert host["CapDrop"] == ["ALL"]
            assert not host["CapAdd"]
            assert host["NetworkMode"] == "none"
            assert not host["PortBindings"]
            assert not host["PublishAllPorts"]
            assert any(option.startswith("no-new-privileges") for option in host["SecurityOpt"])
            assert host["ShmSize"] == 1 << 30
            assert not one["Mounts"], "nothing of this machine is seen inside"
            found = await docker.do(lambda api: api.containers())
            [door] = [x for x in found if x["Names"][0].endswith(f"{stage.lease.desktop}-door")]
            assert not any(port.get("PublicPort") for x in found for port in x["Ports"])
            door = await docker.do(lambda api: api.inspect_container(door["Id"]))
            assert door["HostConfig"]["NetworkMode"] == f"container:{one['Id']}"
            assert door["HostConfig"]["CapDrop"] == ["ALL"]
            assert door["HostConfig"]["ReadonlyRootfs"]

    run(body(), timeout=100)


def test_what_needs_somebody_inside_is_refused_by_name(docker: Engine) -> None:
    async def nothing() -> Any:
        yield b""

    async def body() -> None:
        async with leased("docker-vnc", **PROFILE) as stage:
            controller, lease = stage.controller, stage.lease.lease
            desktop = str(stage.lease.desktop)
            await refused(controller.windows(ANA, lease), "no_helper")
            await refused(controller.clipboard_get(ANA, lease), "no_helper")
            await refused(controller.clipboard_set(ANA, lease, "x"), "no_helper")
            await refused(controller.ui(ANA, lease), "no_helper")
            await refused(controller.launch(ANA, lease, "editor", []), "not_launchable")
            await refused(controller.put_file(ANA, lease, "x", nothing(), 0o644), "no_files")
            await refused(controller.exec(ANA, desktop, ["id"], cwd=None, env=None), "no_exec")
            await refused(controller.save(ANA, lease, note=""), "no_snapshots")
            await refused(stage.do([{"type": "click", "x": 9, "y": 9, "button": "back"}]), "no_such_button")
            await refused(stage.do([{"type": "type", "text": "世"}]), "cannot_type")
            offer = await controller.offer(None, "acting")
            assert (offer.helper, offer.files, offer.launch) == (False, False, {})

    run(body(), timeout=100)


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"options": {"user": "0"}}, "runs_as_root", "options.root"),
        ({"image": "cu-fleet-test/none"}, "no_image", "cu-fleet-test/none"),
        ({"launch": {"x": {"command": ["x"]}}}, "no_launch", "launch"),
        ({"options": {"command": ["nonsense"]}}, "start_failed", "exit code 9; its image said: what is nonsense"),
    ],
)
def test_a_profile_that_cannot_work_says_why(
    docker: Engine, tmp_path: Any, change: dict[str, Any], code: str, words: str
) -> None:
    async def body() -> None:
        backend = DockerVncBackend(Place(tmp_path, "testforeign"), docker.host)
        spec = Spec("dk_1", Profile(name="p", backend="docker-vnc", **{**PROFILE, **change}), "bt_1", "x")
        with pytest.raises(FleetError, match=words) as e:
            await last(backend.start(spec))
        assert e.value.code == code
        await backend.stop({"desktop": "dk_1"})
        assert await backend.found() == []

    run(body(), timeout=100)
