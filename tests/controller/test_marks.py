"""What proves a rollback where a backend has marks: nothing is believed, and nobody gets what is not proved."""

from dataclasses import replace
from pathlib import Path

from cu_fleet.backends.base import Backend
from cu_fleet.backends.memory import MemoryBackend
from cu_fleet.model.desktop import Desktop, Handle, Stage
from cu_fleet.model.errors import UnavailableError
from cu_fleet.stores.base import Tx
from tests.controller.fleet import ANA, Fleet
from tests.support import run


class Marked:
    """A backend with marks of its own, which go with what its desktops are made of, or outlast it."""

    def __init__(self, backend: Backend, *, outlast: bool, deaf: bool) -> None:
        assert isinstance(backend, MemoryBackend)
        self.backend, self.outlast, self.deaf = backend, outlast, deaf
        self.name, self.start, self.stop = backend.name, backend.start, backend.stop
        self.endpoint, self.found, self.check = backend.endpoint, backend.found, backend.check
        self.abilities = replace(backend.abilities, marks=self)
        self.left: list[tuple[object, str]] = []
        self.looked_for: list[str] = []

    async def leave(self, handle: Handle, name: str) -> None:
        if self.deaf:
            raise UnavailableError("nobody is inside", code="no_answer")
        self.left.append((self.backend.of(handle), name))

    async def there(self, handle: Handle, name: str) -> bool:
        self.looked_for.append(name)
        desktop = self.backend.of(handle)
        return any(one == name and (self.outlast or made is desktop) for made, one in self.left)


def rolled_back(folder: Path, *, outlast: bool = False, deaf: bool = False) -> tuple[Marked, Desktop]:
    """A desktop after a lease of it has ended, and its backend."""
    made: list[Marked] = []

    def wrap(backend: Backend) -> Backend:
        made.append(Marked(backend, outlast=outlast, deaf=deaf))
        return made[0]  # type: ignore[return-value]  # its abilities are what it says

    async def body() -> Desktop:
        fleet = Fleet(folder, wrap=wrap)
        await fleet.start()
        lease = await fleet.granted("a")
        await fleet.controller.release(ANA, lease.lease)
        await fleet.settled()
        await fleet.check()
        desktop = await fleet.controller.core.read(lambda tx: _desktop(tx, str(lease.desktop)))
        await fleet.controller.close()
        return desktop

    desktop = run(body())
    return made[0], desktop


def _desktop(tx: Tx, desktop: str) -> Desktop:
    found = tx.get(Desktop, desktop)
    assert found
    return found


def test_a_mark_that_is_gone_proves_a_rollback(tmp_path: Path) -> None:
    backend, desktop = rolled_back(tmp_path)
    assert desktop.stage is Stage.READY
    assert [name for _, name in backend.left] == backend.looked_for != []


def test_a_desktop_whose_mark_is_still_there_is_nobodys_any_more(tmp_path: Path) -> None:
    backend, desktop = rolled_back(tmp_path, outlast=True)
    assert backend.looked_for
    assert desktop.stage is Stage.QUARANTINED
    assert "still there" in desktop.note


def test_one_that_takes_no_mark_is_rolled_back_all_the_same(tmp_path: Path) -> None:
    backend, desktop = rolled_back(tmp_path, deaf=True)
    assert desktop.stage is Stage.READY
    assert backend.looked_for == []
