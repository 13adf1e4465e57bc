"""Walls between desktops, at their plainest; a backend's own isolation suite goes further."""

import asyncio

import pytest

from cu_fleet.backends.base import Backend
from cu_fleet.testing.backend_base import BackendBase, borrows
from cu_fleet.testing.backend_state import PROCESSES

NEIGHBOUR = r"""
import json, os, socket, sys
def can(work):
    try: work()
    except OSError: return False
    return True
name = sys.argv[1]
sock = socket.socket(socket.AF_UNIX)
print(json.dumps({
    "home": os.path.exists(os.path.expanduser("~/secret")), "tmp": os.path.exists("/tmp/secret"),
    "shared memory": os.path.exists("/dev/shm/secret"),
    "abstract socket": can(lambda: sock.connect("\0" + name)),
    "fleet": os.path.exists(sys.argv[2]),
    "canary": "CU_FLEET_CANARY" in os.environ,
    "devices": sorted(n for _, n in socket.if_nameindex() if n != "lo"),
}))
"""

OWNER = r"""
import os, socket, sys
for path in ("~/secret", "/tmp/secret", "/dev/shm/secret"): open(os.path.expanduser(path), "w").close()
s = socket.socket(socket.AF_UNIX); s.bind("\0" + sys.argv[1]); s.listen(1)
print("1", flush=True); sys.stdin.read()
"""


class WallsContract(BackendBase):
    @borrows
    def test_what_one_desktop_writes_another_does_not_have(self) -> None:
        async def body(backend: Backend) -> None:
            one, two = await asyncio.gather(self.borrow(backend), self.borrow(backend, 1))
            await self.write(backend, one, "/tmp/secret", "mine")  # noqa: S108 - of the desktop, not ours
            await self.write(backend, one, "secret", "mine")
            assert await self.read(backend, one, "secret") == "mine"
            assert await self.read(backend, two, "secret") is None
            assert await self.read(backend, two, "/tmp/secret") is None  # noqa: S108

        self.run(body)

    def test_it_names_the_networks_it_can_give(self) -> None:
        async def body(backend: Backend) -> None:
            assert "none" in self._ability(backend, "network").modes

        self.run(body)

    @borrows
    def test_logs_and_usage_can_be_had(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            assert await self._ability(backend, "logs").logs(handle)
            usage = await self._ability(backend, "meter").usage(handle)
            assert usage.memory_bytes
            assert usage.processes

        self.run(body)


class WallsInShellContract(BackendBase):
    """With Python inside, to try the walls."""

    @borrows
    def test_a_neighbour_sees_nothing_and_reaches_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        async def body(backend: Backend) -> None:
            one, two = await asyncio.gather(self.borrow(backend), self.borrow(backend, 1))
            owner = await self.exec(backend).exec(one, ["python3", "-I", "-c", OWNER, "cu-fleet-contract-54321"])
            async for _ in owner.output():
                break
            name, home = "cu-fleet-contract-54321", str(self.place.home)
            own = await self.python(backend, one, NEIGHBOUR, name, home)
            assert own["home"]
            assert own["abstract socket"], "the probe itself works"
            assert await self.python(backend, two, NEIGHBOUR, name, home) == {
                "home": False,
                "tmp": False,
                "shared memory": False,
                "abstract socket": False,
                "fleet": False,
                "canary": False,
                "devices": [],
            }
            assert any(name in args for args in await self.python(backend, one, PROCESSES))
            assert not any("import os, socket" in args for args in await self.python(backend, two, PROCESSES))
            await owner.kill()

        monkeypatch.setenv("CU_FLEET_CANARY", "the controller's own environment")
        self.run(body)
