"""Machines of images that are not ours: what is refused beforehand, and one that runs under UEFI with a TPM."""

import asyncio
import contextlib
import os
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.app import controller_of
from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import LibvirtBackend, LibvirtVncBackend, given
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.backends.libvirt.options import FOREIGN, ForeignOptions, foreign_options
from cu_fleet.controller import Controller
from cu_fleet.model.action import parse_actions
from cu_fleet.model.errors import BrokenError, FleetError, InvalidError, NotFoundError, UnsupportedError
from cu_fleet.model.profile import Profile, parse_profile
from cu_fleet.model.request import Acquire, Shot
from cu_fleet.model.view import LeaseView
from cu_fleet.settings import read_settings
from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.libvirt import tiny
from tests.rfb.stages import ANA
from tests.support import run, until

TOP = Path(__file__).resolve().parents[2]
MBR = bytes(440) + bytes(70) + b"\x55\xaa"
CODE = b"\xfa" + MBR[1:]


def gpt(kind: str) -> bytes:
    """The beginning of a disk with one partition."""
    head = struct.pack("<8s64xQII", b"EFI PART", 2, 128, 128).ljust(512, b"\0")
    guid = bytes.fromhex({"efi": "28732ac11ff8d211ba4b00a0c93ec93b", "linux": "af3dc60f838472478e793d69d8477de4"}[kind])
    return MBR + head + guid


@pytest.mark.parametrize(
    ("beginning", "uefi", "said"),
    [
        (CODE, False, ""),
        (bytes(4096), False, "no boot sector"),
        (MBR, False, "no boot sector"),  # marked, but without a program: a disk for UEFI
        (gpt("efi"), True, ""),
        (gpt("linux"), True, "no EFI system partition"),
        (CODE, True, "no EFI system partition"),
        (MBR[:450] + b"\xef" + MBR[451:], True, ""),
        (MBR[:82] + b"FAT32" + MBR[87:], True, ""),
        (b"", True, "no partitions"),
        (gpt("efi")[:592] + b"\xff" * 400, True, "no EFI system partition"),  # a table that lies of its size
    ],
)
def test_what_can_begin_from_a_disk_is_seen_beforehand(beginning: bytes, uefi: bool, said: str) -> None:
    found = given.lacks(beginning, uefi=uefi)
    assert said in found
    assert bool(found) == bool(said)


def profile(image: Path | str, **more: Any) -> Profile:
    return Profile.model_validate({"name": "theirs", "backend": FOREIGN, "image": str(image), **more})


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A place that machines can reach; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="cu-fleet-foreign-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.mark.real
def test_an_image_that_cannot_serve_says_why(open_folder: Path) -> None:
    good, bad = open_folder / "good.img", open_folder / "bad.img"
    for path, data in ((good, CODE), (bad, MBR)):
        path.write_bytes(data.ljust(1 << 20, b"\0"))

    def refused(kind: type[FleetError], code: str, image: Path | str, **more: Any) -> None:
        with pytest.raises(kind) as e:
            given.need(profile(image, **more))
        assert e.value.code == code

    found = given.need(profile(good))
    assert (found.path, found.kind) == (good, "raw")
    refused(InvalidError, "not_bootable", bad)
    refused(InvalidError, "not_bootable", good, options={"firmware": "uefi"})
    refused(InvalidError, "no_image", "some.img")
    refused(NotFoundError, "no_image", open_folder / "none.img")
    refused(UnsupportedError, "no_launch", good, launch={"x": {"command": ["x"]}})
    for kind, options in (("vmdk", []), ("qcow2", ["-b", str(good), "-F", "raw"])):
        other = open_folder / f"other.{kind}"
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, *options, str(other), "1M"], check=True)
        refused(UnsupportedError, "image_kind", other)
    if os.geteuid() == 0:
        good.chmod(0o600)
        refused(InvalidError, "image_unreadable", good)


def test_the_example_explains_every_option() -> None:
    text = (TOP / "examples/libvirt-vnc.yaml").read_text("utf-8")
    example = foreign_options(parse_profile(text, "libvirt-vnc.yaml", "libvirt-vnc"))
    assert (example.firmware, example.tpm) == ("uefi", True)
    assert [name for name in ForeignOptions.model_fields if f"  {name}:" not in text and f"# {name}:" not in text] == []


def test_what_rests_on_an_image_is_refused_once_that_is_another(tmp_path: Path) -> None:
    image = tmp_path / "i"
    image.write_bytes(b"one")
    (tmp_path / given.NOTE).write_bytes(given.note(given.Given(image, "raw", 3), 7.5))
    assert given.as_it_was(tmp_path).up_after == 7.5
    image.write_bytes(b"other")
    with pytest.raises(BrokenError, match="not as it was"):
        given.as_it_was(tmp_path)
    image.unlink()
    with pytest.raises(BrokenError, match="is gone"):
        given.as_it_was(tmp_path)


def test_both_backends_keep_to_their_own(tmp_path: Path) -> None:
    place = Place(tmp_path / "home", "f")
    ours, theirs = LibvirtBackend(place, store=tmp_path).layout, LibvirtVncBackend(place, store=tmp_path).layout
    assert ours.desktops != theirs.desktops
    assert ours.snapshots != theirs.snapshots
    assert ours.warm != theirs.warm
    name = theirs.desk("dk_1").name
    assert theirs.uuid(name) != ours.uuid(name), "each knows its machines by a key of its own"


# a real one

UEFI: dict[str, Any] = {
    "screen": {"width": 1280, "height": 800},
    "limits": {"memory": "256M", "cpus": 1},
    "options": {"firmware": "uefi", "tpm": True, "hardware": "virtio"},
}
MARK = "/sys/firmware/efi/efivars/Mark{}-12345678-1234-1234-1234-123456789abc"
# TPM2_PCR_Extend of register 16, which software may use as it likes, by 32 zeros
EXTEND = r"\x80\x02\0\0\0\x41\0\0\x01\x82\0\0\0\x10\0\0\0\x09\x40\0\0\x09\0\0\0\0\0\0\0\0\x01\0\x0b" + r"\0" * 32


@contextlib.asynccontextmanager
async def controlled(image: Path, home: Path) -> AsyncIterator[Controller]:
    settings = read_settings(home, {"CU_FLEET_MACHINES": str(image.parent)})
    async with controller_of(settings) as controller:
        theirs = Profile.model_validate({"name": "theirs", "backend": FOREIGN, "image": str(image), **UEFI})
        controller.core.profiles["theirs"] = (theirs, "test")
        await controller.start()
        try:
            yield controller
        finally:
            await controller.shut_down()


async def lease(controller: Controller, agent: str) -> LeaseView:
    got = await controller.acquire(ANA, Acquire(agent=agent, profile="theirs", wait=None), hold=600)
    assert got.state == "active", got
    return got


def desk(controller: Controller, of: LeaseView) -> Desk:
    backend = controller.core.backend(FOREIGN)
    assert isinstance(backend, LibvirtVncBackend)
    return backend.layout.desk(str(of.desktop))


async def ask(controller: Controller, of: LeaseView, words: str) -> str:
    """The guest's own shell, which is no ability of the backend's."""

    def work() -> str:
        with tiny.Shell(desk(controller, of).console) as shell:
            return shell.ask(words)

    return await asyncio.to_thread(work)


def settings(controller: Controller, of: LeaseView) -> set[str]:
    """The words that are in the firmware's own file."""
    data = desk(controller, of).nvram.read_bytes()
    return {word for word in "AB" if f"Mark{word}".encode("utf-16-le") in data}


PCR = "cat /sys/class/tpm/tpm0/pcr-sha256/16"
DISK = "dd if=/dev/vda bs=512 skip=90000 count=1 2>/dev/null | tr -d '\\0'"
STATE = f"{PCR}; cat /tmp/state; {DISK}"


async def change(controller: Controller, of: LeaseView, word: str) -> str:
    """Leave a word in memory, on the disk, in the firmware's settings and in the TPM; returns what is there then."""
    disk = f"echo {word} | dd of=/dev/vda bs=512 seek=90000 conv=notrunc 2>/dev/null; sync"
    await ask(controller, of, f"mkdir -p /tmp; echo {word} >/tmp/state; {disk}")
    await ask(controller, of, f"printf '\\7\\0\\0\\0.' >{MARK.format(word)}")
    await ask(controller, of, f"printf '{EXTEND}' | dd of=/dev/tpm0 bs=65 2>/dev/null")
    return await ask(controller, of, STATE)


@pytest.mark.real
@pytest.mark.slow
def test_one_runs_under_uefi_with_a_tpm_and_is_forked_saved_restored_and_rolled_back(
    libvirtd: PrivateLibvirt, open_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", libvirtd.uri)
    image = tiny.make(open_folder)

    async def body() -> None:
        async with controlled(image, tmp_path) as controller:
            one, two = await asyncio.gather(lease(controller, "one"), lease(controller, "two"))
            there = "ls -d /sys/firmware/efi; cat /sys/class/tpm/tpm0/tpm_version_major"
            assert await ask(controller, one, there) == "/sys/firmware/efi\n2"
            clean = await ask(controller, two, PCR)
            assert set(clean) == {"0"}

            before = await controller.screenshot(ANA, one.lease, Shot())
            await controller.act(ANA, one.lease, parse_actions([{"type": "type", "text": ">/typed\n"}]))
            await until(lambda: ask(controller, one, "ls /typed || true"), timeout=180)

            async def shown() -> bool:
                return (await controller.screenshot(ANA, one.lease, Shot())).sha256 != before.sha256

            await until(shown, timeout=180)
            for work in (controller.windows, controller.clipboard_get):
                with pytest.raises(FleetError) as refusal:
                    await work(ANA, one.lease)
                assert refusal.value.code == "no_helper"

            first = await change(controller, one, "A")
            assert first.split()[1:] == ["A", "A"]
            assert settings(controller, one) == {"A"}
            assert first.split()[0] != clean
            saved = await controller.save(ANA, one.lease, "")
            second = await change(controller, one, "B")
            assert second.split()[1:] == ["B", "B"]
            assert settings(controller, one) == {"A", "B"}
            assert second.split()[0] not in (clean, first.split()[0])
            await controller.restore(ANA, saved.id)
            assert await ask(controller, one, STATE) == first
            assert settings(controller, one) == {"A"}
            assert await ask(controller, two, PCR) == clean, "each has its own"

            await controller.release(ANA, one.lease)
            three = await lease(controller, "three")
            assert await ask(controller, three, PCR) == clean
            assert await ask(controller, three, "ls /tmp/state /typed 2>/dev/null || true") == ""
            assert settings(controller, three) == set()

    run(body(), timeout=900)  # a machine that others share is many times slower
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(open_folder).encode() in _read(path)]
    assert left == [], "machines and TPMs have ended"


def _read(path: Path) -> bytes:
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""
