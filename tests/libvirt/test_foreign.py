"""Machines of images that are not ours: what is refused beforehand; one that runs under UEFI with a TPM, one that was
signed under Secure Boot, and one under BIOS with a guest agent inside."""

import asyncio
import contextlib
import json
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.app import controller_of
from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import LibvirtBackend, LibvirtVncBackend, given, rest
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
from tests.support import command_lines, run, until

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
    assert given.need(profile(good, launch={"x": {"command": ["x"]}}, options={"agent": True})).path == good
    refused(UnsupportedError, "no_home", good, home="template", options={"agent": True})
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
    (tmp_path / given.NOTE).write_bytes(given.note(given.Given(image, "raw", 3), ForeignOptions(up_after=7.5)))
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


@pytest.fixture
def folder(libvirtd: PrivateLibvirt, open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """For images and machines of the hypervisor that is there for whoever asks."""
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", libvirtd.uri)
    monkeypatch.setattr(rest, "_REST", 5.0)  # of a system that does nothing, that is long enough
    return open_folder


@contextlib.asynccontextmanager
async def controlled(image: Path, home: Path, **of: Any) -> AsyncIterator[Controller]:
    settings = read_settings(home, {"CU_FLEET_MACHINES": str(image.parent)})
    async with controller_of(settings) as controller:
        theirs = Profile.model_validate({"name": "theirs", "backend": FOREIGN, "image": str(image), **of})
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
    return _backend(controller).layout.desk(str(of.desktop))


def _backend(controller: Controller) -> LibvirtVncBackend:
    backend = controller.core.backend(FOREIGN)
    assert isinstance(backend, LibvirtVncBackend)
    return backend


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
    folder: Path, tmp_path: Path
) -> None:
    image = tiny.make(folder)

    async def body() -> None:
        async with controlled(image, tmp_path, **UEFI) as controller:
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
            await refuses("no_helper", controller.windows(ANA, one.lease))
            await refuses("no_exec", controller.exec(ANA, str(one.desktop), ["true"], cwd=None, env=None))
            await refuses("no_files", controller.files(ANA, one.lease, ""))
            offer = await controller.offer(None, "theirs")
            assert (offer.helper, offer.files, offer.launch) == (False, False, {})

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
    left = [words for words in command_lines().values() if str(folder) in words]
    assert left == [], "machines and TPMs have ended"


async def refuses(code: str, work: Awaitable[object]) -> None:
    with pytest.raises(FleetError) as refusal:
        await work
    assert refusal.value.code == code, refusal.value


@pytest.mark.real
@pytest.mark.slow
def test_under_secure_boot_only_what_was_signed_runs(folder: Path, tmp_path: Path) -> None:
    """Debian's own chain, with the keys of Microsoft; its loader is first offered a program that nobody signed."""
    image = tiny.make_signed(folder)
    secure = UEFI | {"options": {"firmware": "uefi", "secure_boot": True, "hardware": "virtio"}}

    async def body() -> None:
        async with controlled(image, tmp_path, **secure) as controller:
            one = await lease(controller, "one")
            on = "od -An -tu1 /sys/firmware/efi/efivars/SecureBoot-*"
            assert (await ask(controller, one, on)).split()[-1] == "1"
            assert "unsigned=refused" in await ask(controller, one, "cat /proc/cmdline")

    run(body(), timeout=900)


BIOS: dict[str, Any] = {
    "screen": {"width": 720, "height": 400},
    "limits": {"memory": "256M", "cpus": 1},
    "options": {"hardware": "virtio", "agent": True, "user": "me", "up_after": "1s"},  # up is who answers
    "env": {"FROM": "profile"},
    "autostart": [["sh", "-c", "echo $FROM >~/began; exec sleep 100000"]],
    "launch": {
        "mark": {"command": ["sh", "-c", 'echo "$0" >~/launched; exec sleep 100000']},
        "bad": {"command": ["no-such-program"]},
    },
}


class Inside:
    """What is reached in one lease's desktop, as a user reaches it."""

    def __init__(self, controller: Controller, of: LeaseView) -> None:
        self.controller, self.of = controller, of

    async def sh(self, script: str, stdin: bytes = b"", **more: Any) -> tuple[int, str]:
        process = await self.controller.exec(
            ANA, str(self.of.desktop), ["sh", "-c", script], cwd=more.get("cwd"), env=more.get("env")
        )
        try:
            if stdin:
                await process.write(stdin)
            await process.close_stdin()
            said = {1: b"", 2: b""}
            async for number, data in process.output():
                said[number] += data
            return await process.wait(), (said[1] + said[2]).decode()
        finally:
            await process.kill()

    async def put(self, path: str, data: bytes) -> None:
        assert await self.controller.put_file(ANA, self.of.lease, path, _chunks(data), 0o640) == len(data)

    async def get(self, path: str) -> bytes:
        return b"".join([chunk async for chunk in await self.controller.get_file(ANA, self.of.lease, path)])

    async def list(self, path: str = "") -> dict[str, str]:
        return {one.path: one.kind for one in await self.controller.files(ANA, self.of.lease, path)}

    async def clock_is_right(self) -> bool:
        return abs(int((await self.sh("date +%s"))[1]) - time.time()) < 120  # else it is wrong by years


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 70_000):
        yield data[at : at + 70_000]


@pytest.mark.real
@pytest.mark.slow
def test_one_runs_under_bios_and_its_guest_agent_is_asked_for_all_that_it_can_do(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cu_fleet.backends.libvirt.agent._SECONDS_TO_COME", 500.0)
    image = tiny.make(folder, bios=True, agent=True)

    async def body() -> None:
        async with controlled(image, tmp_path, **BIOS) as controller:
            one = await lease(controller, "one")
            inside = Inside(controller, one)
            assert await ask(controller, one, "ls -d /sys/firmware/efi 2>/dev/null || echo none") == "none"
            await commands(inside)
            await files(inside)
            await launches(inside)
            await restores(inside)
            await controller.release(ANA, one.lease)
            two = await lease(controller, "two")
            assert await Inside(controller, two).sh("cat began; ls /tmp/state launched 2>/dev/null") == (1, "profile\n")
            assert await Inside(controller, two).list() == {}
            await proves(Inside(controller, two))

    run(body(), timeout=900)


async def commands(inside: Inside) -> None:
    script = 'id -u; pwd; echo "$FROM $MINE"; echo wrong >&2; exit 3'
    assert await inside.sh(script, env={"MINE": "a  b"}) == (3, "1000\n/home/me\nprofile a  b\nwrong\n")
    assert await inside.sh("pwd; wc -c", b"x" * 100_000, cwd="/usr/..") == (0, "/\n100000\n")
    big = await inside.sh("dd if=/dev/zero bs=1000 count=300 2>/dev/null | tr '\\0' x; kill -9 $$")
    assert big == (137, "x" * 300_000)
    process = await inside.controller.exec(
        ANA, str(inside.of.desktop), ["sh", "-c", "sleep 100000 & echo $!; wait"], cwd=None, env=None
    )
    child = await anext(process.output())
    await refuses("no_stdin", process.write(b"too late"))
    await process.kill()
    assert await process.wait() == 137
    assert (await inside.sh(f"! grep '^State:.[^ZX]' /proc/{int(child[1])}/status"))[0] == 0
    await refuses("no_helper", inside.controller.windows(ANA, inside.of.lease))


async def files(inside: Inside) -> None:
    data = os.urandom(300_000)
    await inside.put("a/b ü/big", data)
    assert await inside.get("a/b ü/big") == data
    assert await inside.sh("stat -c '%u %a %n' Shared/a/*/*") == (0, "1000 640 Shared/a/b ü/big\n")
    assert (await inside.sh("cd Shared; ln -s / root; ln -s /etc/passwd file; mkfifo pipe; touch -- '-x\ny'"))[0] == 0
    assert await inside.list() == {"a": "dir", "root": "link", "file": "link", "pipe": "other", "-x\ny": "file"}
    await refuses("bad_path", inside.get("root/etc/passwd"))
    await refuses("not_a_file", inside.get("pipe"))
    await refuses("not_a_file", inside.put("file", b"x"))
    await refuses("no_file", inside.get("none"))
    for path in ("a", "root", "-x\ny"):
        await inside.controller.remove_file(ANA, inside.of.lease, path)
    assert await inside.list() == {"file": "link", "pipe": "other"}
    assert (await inside.sh("ls /etc/passwd; ls -A /tmp"))[1].count("cu-fleet") <= 2, "its own, and one being removed"


async def launches(inside: Inside) -> None:
    await inside.controller.launch(ANA, inside.of.lease, "mark", ["a b"])
    assert await inside.sh("cat launched") == (0, "a b\n")
    await refuses("launch_failed", inside.controller.launch(ANA, inside.of.lease, "bad", []))


async def restores(inside: Inside) -> None:
    """Its clock is right again after each time that it stood, and what wakes must know its secret."""
    controller, of = inside.controller, inside.of
    wrong = "date -s 2001-02-03"
    await ask(controller, of, f"{wrong}; echo one >/tmp/state; chmod 666 /tmp/state")
    saved = await controller.save(ANA, of.lease, "")
    assert await inside.clock_is_right()
    await inside.put("kept", b"over it")
    assert (await inside.sh("echo two >>/tmp/state; cat /tmp/state"))[1] == "one\ntwo\n"
    await controller.restore(ANA, saved.id)
    assert await inside.clock_is_right()
    assert await inside.sh("cat /tmp/state; cat Shared/kept") == (0, "one\nover it")
    await ask(controller, of, wrong)
    await controller.freeze(ANA, str(of.desktop))
    await controller.thaw(ANA, str(of.desktop))
    assert await inside.clock_is_right()


async def proves(inside: Inside) -> None:
    """What wakes and does not know what was left in it is not handed out."""
    saved = await inside.controller.save(ANA, inside.of.lease, "")
    about = _backend(inside.controller).layout.snapshot(saved.id) / "about.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "canary": "another"}))
    desktop = await inside.controller.restore(ANA, saved.id)
    assert desktop.stage == "quarantined"
