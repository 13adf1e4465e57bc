"""Machines without a system: they do nothing but be there, so one is warmed, forked, saved and woken within a second.

All of the backend is real, and so are the hypervisor and QEMU; only what somebody inside would say is taken for said.
"""

import json
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import ANY

import pytest

from cu_fleet.backends import door
from cu_fleet.backends.base import FileInfo, Place, Process, Spec
from cu_fleet.backends.libvirt import LibvirtBackend, warm
from cu_fleet.backends.libvirt.files import Files
from cu_fleet.backends.libvirt.layout import Desk, Layout
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile
from tests.support import until

_AT = 0x100000
WORDS = {
    "name": "hollow",
    "backend": "libvirt",
    "image": "hollow",
    "options": {"acceleration": "none"},
    "limits": {"memory": "32M", "cpus": 1},
    "screen": {"width": 720, "height": 400},
    "gates": "none",
    "reserve": "1M",
}
PROFILE = Profile.model_validate(WORDS)


def make_image(store: Path) -> None:
    """An image as `cu-fleet image build` makes them, but for what is in it."""
    layout = Layout(Place(store, "none"), store)
    folder = layout.folder(layout.images / "hollow")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "disk.qcow2", "1M"], check=True)
    (folder / "vmlinux").write_bytes(_kernel())
    (folder / "initrd").write_bytes(b"none")
    (folder / "about.json").write_text(json.dumps({"recipe": "hollow", "created": "now"}))
    for path in folder.iterdir():
        path.chmod(0o444)


def _kernel() -> bytes:
    """A program that QEMU takes for a kernel to be begun directly, and that halts for good."""
    note = struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", _AT)
    code = b"\xfa\xf4\xeb\xfc" + bytes(range(256)) * 8192  # cli, hlt, and back; and something to be saved
    after = 64 + 2 * 56
    head = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, _AT, 64, 0, 0, 64, 56, 2, 64, 0, 0)
    load = struct.pack("<IIQQQQQQ", 1, 5, after + len(note), _AT, _AT, len(code), len(code), 1)
    said = struct.pack("<IIQQQQQQ", 4, 4, after, 0, 0, len(note), len(note), 4)
    return head + load + said + note + code


class _Anybody:
    """Who is inside says yes to everything."""

    state = {"boot": ANY, "was": ANY, "stage": "ready 1x1"}

    async def ask(self, kind: str, data: bytes = b"") -> dict[str, object]:
        del kind, data
        return dict(self.state)


@asynccontextmanager
async def _wire(path: Path, desktop: str, *, at_once: bool = False) -> AsyncIterator[_Anybody]:
    del path, desktop
    yield _Anybody()


class _NoFiles(Files):
    """A slot that is always empty."""

    def __init__(self) -> None:
        super().__init__(_refused)

    async def listing(self, handle: Handle, path: str = "") -> list[FileInfo]:
        del handle, path
        return []

    async def remove(self, handle: Handle, path: str) -> None:
        del handle, path


async def _refused(handle: Handle, argv: list[str]) -> Process:
    raise UnavailableError(f"nobody is inside of {handle['desktop']} to do {argv[0]}", code="no_answer")


class Hollow(LibvirtBackend):
    def __init__(self, place: Place, uri: str | None = None, store: Path | None = None) -> None:
        super().__init__(place, uri, store)
        self.abilities = replace(
            self.abilities, exec=None, standing=None, marks=None, files=_NoFiles(), logs=None, meter=None
        )

    async def _prove_screen(self, desk: Desk, spec: Spec) -> None:
        """It is of another size until it was drawn once."""
        screen = spec.profile.screen
        await until(partial(self._shows, desk, (screen.width, screen.height)))

    async def _shows(self, desk: Desk, size: tuple[int, int]) -> bool:
        with self._connect(desk) as sock:
            return await door.screen_size(sock) == size

    async def _settle(self, handle: Handle, spec: Spec) -> None:
        del handle, spec


async def _come_up(self: warm.Warm, desk: Desk, canary: str) -> None:
    del self, desk, canary


def empty(patch: pytest.MonkeyPatch) -> None:
    """From now on nobody is inside any machine of this process."""
    patch.setattr("cu_fleet.backends.libvirt.backend.wire", _wire)
    patch.setattr(warm.Warm, "_come_up", _come_up)


def spec(desktop: str, snapshot: str | None = None) -> Spec:
    return Spec(desktop, PROFILE, new_id("bt"), desktop, snapshot)


async def last(handles: AsyncIterator[Handle]) -> Handle:
    return [handle async for handle in handles][-1]
