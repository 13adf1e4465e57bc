"""The image of machines, as it is really built, for all tests: once, and kept from run to run until its recipe changes.

To build it takes one processor some two minutes, so it is begun while tests run that leave one free, or another image
is built; whoever else wants that processor goes first.
"""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import images
from cu_fleet.backends.libvirt.layout import Layout
from cu_fleet.testing.libvirtd import missing

STORE = Path("/var/tmp/cu-fleet-tests-machines")  # where machines, which run as users of their own, can reach it
_NAME, _NICE = "vm-desktop", 10


class MachineImage:
    def __init__(self, home: Path, *, wanted: bool) -> None:
        self.wanted = wanted  # by any test of this run
        self._layout = Layout(Place(home, "image"), STORE)
        self._thread = ThreadPoolExecutor(1, "machine-image")
        self._made: Future[None] | None = None

    def begin(self) -> None:
        """Have it built while something else is, if that is of use."""
        if self.wanted and not missing():
            self._begun()

    def store(self) -> Path:
        """The place of machines, with the image in it."""
        self._begun().result()
        return STORE

    def close(self) -> None:
        self._thread.shutdown()

    def _begun(self) -> "Future[None]":
        self._made = self._made or self._thread.submit(self._make)
        return self._made

    def _make(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)  # this thread's own, and its children's
        if not images.look(self._layout, _NAME).current:
            images.adopt(self._layout, images.build(self._layout, _NAME, lambda _: None, "for tests"))
