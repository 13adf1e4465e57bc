"""The helper in a real desktop, over Exec: what it launches outlives it, even when it is killed."""

import tempfile
from pathlib import Path

import pytest

from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.local import LocalBackend
from cu_fleet.controller.helper import SOURCE, Helper
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile
from cu_fleet.testing.backend_base import take
from tests.support import run, until


@pytest.mark.real
def test_it_works_in_a_desktop_and_its_programs_outlive_it() -> None:
    async def body(place: Place) -> None:
        backend = LocalBackend(place)
        spec = Spec(new_id("dk"), Profile(name="p", backend="local"), new_id("bt"), "helper")
        handle = (await take(backend.start(spec)))[-1]
        exec_ = backend.abilities.exec
        assert exec_
        try:
            process = await exec_.exec(handle, ["/usr/bin/python3", "-I", "-c", SOURCE])
            helper = Helper(process, spec.desktop)
            assert (await helper.call("hello"))["manager"] == "Openbox"
            await helper.call("launch", argv=["xterm", "-T", "outlives"])

            async def window() -> object:
                windows = (await helper.call("windows"))["windows"]
                assert isinstance(windows, list)
                return [w for w in windows if w["title"] == "outlives"]

            await until(window)
            await helper.call("clipboard_set", text="ü")
            assert await helper.call("clipboard_get") == {"text": "ü"}
            await process.kill()
            await until(lambda: not helper.alive)
            await helper.close()
            helper = Helper(await exec_.exec(handle, ["/usr/bin/python3", "-I", "-c", SOURCE]), spec.desktop)
            assert await window(), "it was launched by a helper that is gone"
            await helper.close()
        finally:
            await backend.stop(handle)

    with tempfile.TemporaryDirectory(prefix="cu-fleet-") as folder:
        run(body(Place(Path(folder) / "home", new_id("fl"))))
