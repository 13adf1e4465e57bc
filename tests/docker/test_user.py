"""An ordinary user who may use the engine: the same desktops, which then run as that user on the engine's machine."""

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import docker.context
import docker.types
import docker.utils  # noqa: F401  # a child that is no longer root may not be able to import these
import pytest

from cu_fleet.testing.dockerd import PrivateDocker
from tests.docker.support import Fleet, in_fleet, last
from tests.local.support import SOMEBODY, _as_somebody

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def open_engine(engine: PrivateDocker) -> Iterator[PrivateDocker]:
    """With a socket that this user may use, as members of the group `docker` may."""
    socket, folder = engine.folder / "sock", engine.folder
    before = socket.stat()
    os.chown(socket, SOMEBODY, SOMEBODY)
    folder.chmod(0o711)
    yield engine
    folder.chmod(0o700)
    os.chown(socket, before.st_uid, before.st_gid)


def test_an_ordinary_user_has_desktops_with_all_abilities(open_engine: PrivateDocker) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        assert handle["uid"] == SOMEBODY
        assert await fleet.sh(handle, "id -u; touch ~/mine /tmp/mine; ls -A /run/cu-fleet-slot") == (0, f"{SOMEBODY}\n")
        snapshots, files, freeze = (getattr(fleet.backend.abilities, x) for x in ("snapshots", "files", "freeze"))

        async def content() -> AsyncIterator[bytes]:
            yield b"from outside"

        await files.put(handle, "in", content())
        assert await fleet.sh(handle, "cat Shared/in; rm Shared/in") == (0, "from outside")
        await freeze.freeze(handle)
        await freeze.thaw(handle)
        await snapshots.save(handle, "sn_1")
        handle = await last(snapshots.restore(handle, fleet.spec()))
        assert (await fleet.sh(handle, "ls mine"))[0] != 0
        handle = await last(snapshots.restore(handle, fleet.spec(snapshot="sn_1")))
        assert await fleet.sh(handle, "ls mine /tmp/mine") == (0, "/tmp/mine\nmine\n")

    home = Path(tempfile.mkdtemp(prefix="cu-fleet-docker-"))
    os.chown(home, SOMEBODY, SOMEBODY)
    try:
        _as_somebody(lambda: in_fleet(open_engine, home, body))
    finally:
        shutil.rmtree(home)
