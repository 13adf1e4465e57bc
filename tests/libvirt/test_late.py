"""What becomes of calls that libvirt answers when nobody waits for them any more."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import hypervisor, machines
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Layout
from cu_fleet.backends.libvirt.snapshots import Snapshots
from cu_fleet.model.errors import UnavailableError
from tests.support import run, until


def threads() -> list[threading.Thread]:
    return [one for one in threading.enumerate() if one.name == "libvirt"]


async def given_up(task: asyncio.Task[Any], when: Callable[[], object]) -> None:
    await until(when)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_who_was_given_up_asks_for_nothing_when_a_connection_comes_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hypervisor, "_GRACE", 0.0)
    comes, asked = threading.Event(), []
    one = Hypervisor("qemu:///system")
    monkeypatch.setattr(one, "_connection", comes.wait)
    monkeypatch.setattr(hypervisor, "in_words", lambda _: memoryview(b""))

    async def body() -> None:
        await given_up(asyncio.create_task(one.do(asked.append), name="late"), threads)
        comes.set()
        await until(lambda: not threads())
        assert asked == []
        await one.do(asked.append)
        assert asked == [True]

    run(body())


def test_a_desktop_is_not_saved_anew_before_an_attempt_that_was_given_up_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would give the machine a new layer, each of them over the same one."""
    monkeypatch.setattr(hypervisor, "_GRACE", 0.0)
    comes, waits = threading.Event(), threading.Event()

    def hang(*_: object) -> None:
        waits.set()
        comes.wait()
        raise UnavailableError("it has ended", code="not_running")

    monkeypatch.setattr(machines, "must_run", hang)
    layout = Layout(Place(tmp_path / "home", "f"), tmp_path / "store")
    one, snapshots, desk = Hypervisor("qemu:///system"), Snapshots(layout), layout.desk("dk_1")

    def save(name: str) -> Any:
        return one.wait(lambda: snapshots.save(None, desk, name, "b"))  # type: ignore[arg-type]

    async def body() -> None:
        await given_up(asyncio.create_task(save("sn_1"), name="late"), waits.is_set)
        with pytest.raises(UnavailableError, match="still being saved by an attempt that was given up") as caught:
            await save("sn_2")
        assert caught.value.code == "still_saving"
        comes.set()
        await until(lambda: not threads())
        with pytest.raises(UnavailableError, match="it has ended"):
            await save("sn_2")

    run(body())
