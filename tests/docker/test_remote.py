"""Desktops whose engine is elsewhere: the same promises, over TCP, TLS and SSH, and when the network breaks."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cu_fleet.backends.docker import images, tunnel
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.model.errors import UnavailableError
from cu_fleet.rfb.screen import Screen
from cu_fleet.testing.backend_inside import ExecContract, ExecInShellContract, FilesInShellContract, FreezeContract
from cu_fleet.testing.backend_state import SnapshotsInShellContract
from cu_fleet.testing.backend_walls import WallsInShellContract
from cu_fleet.testing.dockerd import PrivateDocker
from tests.acceptance.home import home
from tests.docker.remote import Certificates, Relay, SshServer, hide, unhide
from tests.docker.support import Fleet, in_fleet, last
from tests.docker.test_contract import OnDocker
from tests.docker.test_leases import SMALL, over
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]


class TestFar(
    OnDocker,
    ExecContract,
    ExecInShellContract,
    FreezeContract,
    FilesInShellContract,
    SnapshotsInShellContract,
    WallsInShellContract,
):
    """Of the suite of every backend what differs, over TCP to an engine that does not see our files."""

    @pytest.fixture(autouse=True)
    def _engine(self, engine: PrivateDocker, tmp_path: Path) -> Iterator[None]:
        hide(engine, tmp_path)
        with Relay(f"{engine.folder}/sock") as relay:
            self.host = relay.host
            yield
        unhide(engine, tmp_path)


@pytest.fixture
def far(engine: PrivateDocker, tmp_path: Path) -> Iterator[PrivateDocker]:
    hide(engine, tmp_path)
    yield engine
    unhide(engine, tmp_path)


def test_an_engine_behind_tls_knows_us_and_we_know_it(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tls").mkdir()
    certificates = Certificates(tmp_path / "tls")
    with socket.create_server(("127.0.0.1", 0)) as door, PrivateDocker(door, **certificates.options()) as engine:
        Engine(engine.host).now(lambda api: images.load(api, "desktop", archive, print, tag="latest"))
        (tmp_path / "home").mkdir()
        hide(engine, tmp_path / "home")
        host = f"tcp://127.0.0.1:{door.getsockname()[1]}"
        with pytest.raises(UnavailableError, match=host):
            Engine(host).now(lambda api: api.info())
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates.folder / "user"))

        async def body(fleet: Fleet) -> None:
            handle = await fleet.start()
            assert await fleet.sh(handle, "echo over tls >mine; cat mine") == (0, "over tls\n")
            assert (await fleet.sh(handle, "touch /run/cu-fleet-init/__pycache__/planted"))[0] != 0
            snapshots = fleet.backend.abilities.snapshots
            assert snapshots
            await snapshots.save(handle, "sn_1")
            handle = await last(snapshots.restore(handle, fleet.spec(snapshot="sn_1")))
            assert await fleet.sh(handle, "cat mine; ls -A /home") == (0, "over tls\nagent\n")
            assert fleet.backend.house.engine.near is False

        in_fleet(engine, tmp_path / "home", body, host=host)
        impostor = Certificates(tmp_path)
        monkeypatch.setenv("DOCKER_CERT_PATH", str(impostor.folder / "user"))
        with pytest.raises(UnavailableError, match="certificate"):
            Engine(host).now(lambda api: api.info())


def test_an_engine_at_an_address_of_the_network_can_be_near_all_the_same(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        assert fleet.backend.house.engine.near
        assert fleet.backend.desk(handle).run.is_dir()
        assert await fleet.sh(handle, "echo here") == (0, "here\n")

    with Relay(f"{engine.folder}/sock") as relay:
        in_fleet(engine, tmp_path, body, host=relay.host)


def test_a_slow_and_a_broken_network(far: PrivateDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 20 ms each way; then cut, and cut for good."""

    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        relay.delay = 0.02
        began = time.monotonic()
        assert await fleet.sh(handle, "true") == (0, "")
        assert time.monotonic() - began < 2.0, "a command takes few ways there and back"
        endpoint = await fleet.backend.endpoint(handle)
        assert endpoint
        screen = await Screen.open(await endpoint.connect(), password=None, timeout=20)
        assert (await screen.frame()).width == 1280
        exec_ = fleet.backend.abilities.exec
        assert exec_
        flood = await exec_.exec(handle, ["cat", "/dev/zero"])
        assert await fleet.sh(handle, "echo beside it") == (0, "beside it\n"), "what nobody reads keeps up nothing else"
        open_one = await fleet.backend.tunnels.of(fleet.backend.desk(handle))
        waiting = [len(stream.waiting) for stream in open_one.streams.values()]
        assert 0 < max(waiting) <= 1 << 20, "and what waits is bounded"
        relay.delay = 0
        relay.cut(listening=True)
        await asyncio.wait_for(asyncio.shield(screen.lost), 20)
        with pytest.raises(UnavailableError):
            await flood.wait()
        assert await fleet.sh(handle, "echo again") == (0, "again\n")
        screen = await Screen.open(await endpoint.connect(), password=None, timeout=20)
        await screen.close()
        relay.cut()
        coming = asyncio.create_task(fleet.backend.endpoint(handle), name="endpoint")
        assert await asyncio.wait({coming}, timeout=1.5) == (set(), {coming}), "a network may come back"
        relay.listen()
        assert await coming
        relay.cut()
        monkeypatch.setattr(tunnel, "PATIENCE", 1.0)
        with pytest.raises(UnavailableError, match="does not answer"):
            await fleet.backend.endpoint(handle)
        relay.listen()
        assert await fleet.sh(handle, "echo back") == (0, "back\n")

    with Relay(f"{far.folder}/sock") as relay:
        in_fleet(far, tmp_path, body, host=relay.host)


def test_leases_over_ssh(engine: PrivateDocker, tmp_path: Path) -> None:
    with SshServer(f"{engine.folder}/sock", tmp_path) as server, home() as house:
        hide(engine, house.fleet_home.parent)
        house.env |= {"DOCKER_HOST": server.host, "PATH": server.search}
        house.write_profile("small", SMALL)
        words = ["lease", "acquire", "--agent", "a", "--profile", "small", "--wait", "40s"]
        assert b"Host key verification failed" in house.run(*words).stderr, "an unknown host is not trusted"
        server.introduce()
        lease = house.cli(*words)["lease"]
        (tmp_path / "in").write_bytes(b"x" * 3_000_000)
        house.cli("cp", str(tmp_path / "in"), f"{lease}:in")
        assert house.run("desktop", "exec", lease, "--", "wc", "-c", "Shared/in").stdout == b"3000000 Shared/in\n"
        house.run("desktop", "exec", lease, "--", "sh", "-c", "xterm >/dev/null 2>&1 &")
        house.cli("act", lease, json.dumps({"type": "wait_stable", "quiet_ms": 500, "timeout_ms": 10000}))
        house.cli("act", lease, json.dumps({"type": "type", "text": "touch typed\n"}))
        typed = lambda: house.run("desktop", "exec", lease, "--", "ls", "typed").returncode == 0  # noqa: E731
        run(until(typed, timeout=30, every=0.2), timeout=60)
        server.cut(listening=True)
        run(until(lambda: house.run("screenshot", lease, "-o", str(tmp_path / "shot.png")).returncode == 0, timeout=40))
        assert over(house, lease) is None, "a connection that was cut is made again, and the lease lives on"
        house.cli("down")
        assert Engine(engine.host).now(lambda api: [one["Names"] for one in api.containers(all=True)]) == []
        unhide(engine, house.fleet_home.parent)
