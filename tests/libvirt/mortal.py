"""A process that dies before the n-th thing it does to the world: a file that it makes, a program that it starts, a
call of libvirt that changes something. It is killed there as by the kernel, in whatever thread that is.
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.backends.base import Place
from tests.libvirt import hollow

Work = Callable[[hollow.Hollow], Coroutine[Any, Any, object]]
_DONE = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chown", "os.chmod", "os.link", "subprocess.Popen"}
_BELOW = {"os.remove", "os.rmdir"}  # of which those in a folder that is open are ours, too
_CALLS = {
    "virConnect": ("createXML", "restoreFlags"),
    "virDomain": ("destroy", "resume", "save", "snapshotCreateXML", "suspend"),
}
ENOUGH = 99  # exit code of one that got to its end


def do(work: Work, place: Place, uri: str, below: Path, at: int) -> None:
    """Do this with a backend over this place, up to step `at` of those that concern files below the folder."""
    hollow.empty(pytest.MonkeyPatch())
    _Steps(below, at).watch()
    asyncio.run(work(hollow.Hollow(place, uri, place.machines)))
    os._exit(ENOUGH)  # at once, as if killed after the last


class _Steps:
    def __init__(self, below: Path, at: int) -> None:
        self.below, self.left = str(below), at
        self._turn = threading.Lock()

    def watch(self) -> None:
        import libvirt  # which not everybody has who only collects these tests

        sys.addaudithook(self._seen)
        make_pipe = os.mkfifo
        os.mkfifo = self._counted(make_pipe, after=False)
        for called, names in _CALLS.items():
            kind = getattr(libvirt, called)
            for name in names:
                setattr(kind, name, self._counted(getattr(kind, name), after=True))

    def _seen(self, event: str, words: tuple[Any, ...]) -> None:
        done = event in _DONE or (event == "open" and words[2] & (os.O_WRONLY | os.O_RDWR))
        if done and (self.below in str(words[:2]) or (event in _BELOW and words[1] != -1)):
            self._step()

    def _counted(self, work: Callable[..., Any], *, after: bool) -> Callable[..., Any]:
        def counted(*words: Any, **more: Any) -> Any:
            self._step()
            result = work(*words, **more)
            if after:
                self._step()
            return result

        return counted

    def _step(self) -> None:
        with self._turn:
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
                signal.pause()


# what is done


async def start(backend: hollow.Hollow) -> None:
    await hollow.last(backend.start(hollow.spec("dk_1")))


async def restore(backend: hollow.Hollow) -> None:
    assert backend.abilities.snapshots
    await hollow.last(backend.abilities.snapshots.restore({"desktop": "dk_1"}, hollow.spec("dk_1", "sn_0")))


async def stop(backend: hollow.Hollow) -> None:
    await backend.stop({"desktop": "dk_1"})


async def save(backend: hollow.Hollow) -> None:
    assert backend.abilities.snapshots
    await backend.abilities.snapshots.save({"desktop": "dk_1", "boot": "b"}, "sn_1")


async def forget(backend: hollow.Hollow) -> None:
    assert backend.abilities.snapshots
    await backend.abilities.snapshots.delete("sn_1")


async def forget_all(backend: hollow.Hollow) -> None:
    assert backend.abilities.snapshots
    for snapshot in await backend.abilities.snapshots.saved():
        await backend.abilities.snapshots.delete(snapshot)
