"""What holds without a hypervisor: the wire's framing, saved machines' heads, seeds, names."""

import contextlib
import io
import json
import os
import secrets
import signal
import subprocess
import tarfile
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cu_fleet.backends.base import Place
from cu_fleet.backends.libvirt import domain, images, machines, processes, rest, saved, seed, warm
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Layout
from cu_fleet.backends.libvirt.options import options
from cu_fleet.backends.libvirt.warm import Warm
from cu_fleet.guest.frames import Frames, frame
from cu_fleet.model.errors import BrokenError, InvalidError, UnavailableError
from cu_fleet.model.profile import Profile
from tests.support import run

PROFILE = Profile.model_validate({"name": "p", "backend": "libvirt", "screen": {"width": 333, "height": 555}})
HOSTILE = bytes(range(256)) * 3 + b"\x7e\x7d\x5e\x7d\x7e\x7d\x5d\x7d"


def layout(tmp_path: Path) -> Layout:
    return Layout(Place(tmp_path / "home", "f"), tmp_path / "store")


@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_frames_come_out_as_they_went_in_however_they_are_cut(size: int) -> None:
    sent = [(1, "0", HOSTILE), (0x7E7D, "l", b""), (0, "p", b"{}")]
    stream = b"".join(frame(*one) for one in sent)
    frames = Frames()
    got = [one for at in range(0, len(stream), size) for one in frames.feed(stream[at : at + size])]
    assert got == sent


def test_what_was_cut_off_is_left_out_and_the_next_is_whole() -> None:
    frames = Frames()
    assert frames.feed(frame(1, "0", b"half")[:-3]) == []
    assert (7, "l", b"whole") in frames.feed(frame(0, "h")[-1:] + frame(7, "l", b"whole"))
    endless = Frames()
    for _ in range(50):
        endless.feed(b"x" * 65536)
    assert len(endless._left) < 1 << 20  # noqa: SLF001  # that it is bounded shows nowhere else
    assert endless.feed(b"\x7e" + frame(1, "l", b"on"))[-1] == (1, "l", b"on")


def head(xml: str, cookie: bytes = b"<cookie/>\0", magic: bytes = b"LibvirtQemudSave") -> bytes:
    kept = saved.Saved("", cookie, 1, 0, 0).head(xml)
    return magic + kept[16:]


def test_a_saved_machine_wakes_under_other_names_with_the_same_stream(tmp_path: Path) -> None:
    stream = os.urandom(3 << 20)
    path, out = tmp_path / "memory", tmp_path / "pipe"
    path.write_bytes(head("<domain>old</domain>") + stream)
    state = saved.read(path)
    assert (state.xml, state.cookie) == ("<domain>old</domain>", b"<cookie/>\0")
    read, write = os.pipe()
    threading.Thread(target=saved.pour, args=(state, path, "<domain>a much longer one</domain>", write)).start()
    with os.fdopen(read, "rb") as pipe:
        out.write_bytes(pipe.read())
    woken = saved.read(out)
    assert (woken.xml, woken.cookie) == ("<domain>a much longer one</domain>", b"<cookie/>\0")
    assert out.read_bytes()[woken.at :] == stream


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no saved machine"),
        (head("<domain/>", magic=b"LibvirtQemudPart"), "cut off while it was written"),
        (head("<domain/>")[:16] + b"\x63\0\0\0" + head("<domain/>")[20:], "that we do not know"),
    ],
)
def test_what_is_no_saved_machine_is_refused(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "memory").write_bytes(data)
    with pytest.raises(BrokenError, match=said):
        saved.read(tmp_path / "memory")


def test_a_seed_is_the_same_for_the_same_profile_and_boots_its_desktop() -> None:
    one = seed.seed(PROFILE, None)
    assert one == seed.seed(PROFILE.but(env={"A": "b"}, autostart=(("xterm",),)), None), "given after the fork"
    assert one != seed.seed(PROFILE.but(keyboard="de"), None)
    assert len(one) % 512 == 0, "a disk has whole sectors"
    with tarfile.open(fileobj=io.BytesIO(one)) as tar:
        files = {member.name: tar.extractfile(member) for member in tar}
        setup = json.load(files["desktop.json"])  # type: ignore[arg-type]
        assert " 333 " in files["xorg.conf"].read().decode()  # type: ignore[union-attr]
    assert setup["argv"][0] == "Xorg"
    assert {"init.py", "port.py", "config", "openbox.xml", "state.tar"} <= files.keys()


def test_names_of_another_home_are_not_ours(tmp_path: Path) -> None:
    desk = layout(tmp_path / "a").desk("dk_1")
    assert desk == layout(tmp_path / "a").desk("dk_1")
    assert desk.uuid != layout(tmp_path / "b").desk("dk_1").uuid


def test_a_machine_is_renamed_whole(tmp_path: Path) -> None:
    places = layout(tmp_path)
    machine = domain.Machine.of(PROFILE, "qemu", "pc-q35-7.2", Path("/image"), Path("/old/seed"))
    old = places.warming("k", tmp_path / "old-place")
    xml = domain.xml(machine, old, "warming", "f", 5)
    new = places.desk("dk_2")
    renamed = machines.renamed(xml, new, machines.Names("codex-a", Path("/warm/seed"), 77))
    for gone in ("old-place", "/old/seed", old.uuid, old.name, "+5:+5", "warming"):
        assert gone in xml
        assert gone not in renamed
    assert domain.xml(machine.at(Path("/warm/seed")), new, "codex-a", "f", 77) == renamed


def test_a_machine_is_told_of_nothing_that_reaches_further(tmp_path: Path) -> None:
    machine = domain.Machine.of(PROFILE, "qemu", "q35", Path("/image"), Path("/seed"))
    top = ElementTree.fromstring(domain.xml(machine, layout(tmp_path).desk("dk_3"), "a<b&c", "f", None))  # noqa: S314  # our own
    kinds = {one.tag for one in top.iterfind("devices/*")}
    assert not kinds & {"interface", "filesystem", "hostdev", "redirdev", "sound", "watchdog"}
    assert top.findtext("title") == "a<b&c"
    assert {one.get("mode") for one in top.iterfind("devices/channel/source")} == {"bind"}
    assert [one.get("socket") is not None for one in top.iterfind("devices/graphics")] == [True]


def test_options_are_checked() -> None:
    assert options(PROFILE).acceleration == "auto"
    with pytest.raises(InvalidError, match="acceleration"):
        options(PROFILE.but(options={"acceleration": "fast"}))
    with pytest.raises(InvalidError, match="the libvirt backend knows"):
        options(PROFILE.but(options={"gpu": True}))


def test_one_list_of_packages_makes_desktops_everywhere() -> None:
    packages = images.packages()
    assert {"openbox", "mousepad", "linux-image-amd64", "xserver-xorg-core"} <= set(packages)
    assert "tigervnc-standalone-server" not in packages, "QEMU has the screen"


def test_a_user_without_ids_of_their_own_is_told_how_to_get_some_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mmdebstrap", "mke2fs", "qemu-img"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(images.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(images, "_as_root", lambda _: ["sh", "-c", "echo no line matching user >&2; exit 1"])
    with pytest.raises(UnavailableError, match="no line matching user") as said:
        images.build(layout(tmp_path), "vm-desktop", print, "now")
    assert said.value.code == "no_ids"
    assert "apt-get install uidmap && usermod --add-subuids" in (said.value.remedy or "")
    assert not layout(tmp_path).store.exists(), "and nothing was begun"


def test_a_home_that_an_image_is_the_first_to_lie_in_is_its_owners_alone(tmp_path: Path) -> None:
    home = tmp_path / "new/home"
    Layout(Place(home, "f"), home / "libvirt").folder(home / "libvirt/images")
    assert home.stat().st_mode & 0o777 == 0o700


def test_what_is_no_kernel_is_not_taken_for_one() -> None:
    with pytest.raises(BrokenError, match="packed in a way"):
        images.unpacked(bytes(4096))


def kept(folder: Path) -> Path:
    """A saved machine as it is kept."""
    folder.mkdir(parents=True)
    for name, data in {"disk.qcow2": b"disk", "memory": head("<domain/>") + b"stream", "seed": b"seed"}.items():
        (folder / name).write_bytes(data)
    warm.write(folder, "canary", "qemu")
    return folder


@pytest.mark.parametrize("name", ["memory", "disk.qcow2", "seed"])
def test_a_saved_machine_that_was_cut_off_or_changed_is_refused(tmp_path: Path, name: str) -> None:
    folder = kept(tmp_path / "one")
    found = warm.read(folder)
    assert found
    assert (found.canary, found.kind) == ("canary", "qemu")
    os.truncate(folder / name, 3)
    with pytest.raises(BrokenError, match=f"its {name} has 3 bytes, not "):
        warm.read(folder)
    (folder / name).unlink()
    with pytest.raises(BrokenError, match=f"its {name} is gone"):
        warm.read(folder)


@pytest.mark.parametrize("text", ["", '{"canary": "c"', '{"canary": "c", "kind": "qemu"}', "[]"])
def test_a_saved_machine_whose_note_was_cut_off_is_refused(tmp_path: Path, text: str) -> None:
    folder = kept(tmp_path / "one")
    (folder / "about.json").write_text(text)
    with pytest.raises(BrokenError, match="damaged"):
        warm.read(folder)
    (folder / "about.json").unlink()
    assert warm.read(folder) is None


def test_a_damaged_warm_state_is_none_and_its_disk_stays_for_what_rests_on_it(tmp_path: Path) -> None:
    one = Warm(layout(tmp_path), Hypervisor("test:///default"))
    folder = kept(one.layout.warm / "key-1")
    assert one._known("key")  # noqa: SLF001  # all else of it needs a machine
    os.truncate(folder / "memory", 100)
    assert one._known("key") is None  # noqa: SLF001
    assert [path.name for path in sorted(folder.iterdir())] == ["disk.qcow2", "seed"]
    kept(one.layout.warm / "key-2")
    found = one._known("key")  # noqa: SLF001
    assert found
    assert found.dir.name == "key-2"


def test_a_state_that_wakes_as_something_else_goes_at_once_and_one_that_does_not_wake_the_second_time(
    tmp_path: Path,
) -> None:
    one = Warm(layout(tmp_path), Hypervisor("test:///default"))
    refused, away = UnavailableError("x", code="hypervisor_failed"), UnavailableError("x", code="no_hypervisor")
    for errors, stays in (
        ([BrokenError("x", code="wrong_state")], False),
        ([refused], True),
        ([refused, refused], False),
        ([away, away, away], True),
    ):
        state = warm.read(kept(one.layout.warm / f"key-{len(errors)}{errors[0].code}"))
        assert state
        for error in errors:
            one.doubt(state, error)
        assert (warm.read(state.dir) is not None) is stays
        one.trust(state)


def test_rest_begins_anew_whenever_a_processor_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rest, "_NAP", 0.05)
    wanted = iter([[0.0, 5.0], [0.0, 5.0], [0.0, 5.0], [9.0, 5.0], [9.0, 5.0], [9.0, 99.0], [9.0, 99.0]])

    class Idle:
        async def do(self, work: object) -> list[float]:
            del work
            return next(wanted)

    async def body() -> list[bool]:
        told: list[float] = []
        desk = layout(tmp_path).desk("dk_1")
        with contextlib.suppress(RuntimeError):  # nobody knows any more
            async for seconds in rest.resting(Idle(), desk, 0.2):  # type: ignore[arg-type]
                told.append(seconds)
        return [seconds > 0 for seconds in told]

    assert run(body()) == [True, True, False, True, False, True]


def test_a_machine_is_taken_for_warm_only_when_it_is_ready_and_has_come_to_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[object] = []

    class Port:
        state = {"stage": "boots"}

        async def told(self) -> None:
            self.state = {"stage": "ready 800x600"}
            said.append("ready")

        async def ask(self, kind: str, data: bytes) -> None:
            said.append((kind, json.loads(data)["boot"]))

    async def take(*_: object) -> Port:
        return Port()

    async def resting(*_: object) -> AsyncGenerator[float, None]:
        for seconds in (1.0, 0.0, 1.0, 2.0, 3.0):
            said.append(seconds)
            yield seconds

    monkeypatch.setattr(warm, "take", take)
    monkeypatch.setattr(warm, "resting", resting)
    monkeypatch.setattr(warm, "give_back", lambda *_: said.append("given back"))
    places = layout(tmp_path)
    run(Warm(places, Hypervisor("test:///default"))._come_up(places.desk("dk_1"), "canary"))  # noqa: SLF001
    assert said == ["ready", 1.0, 0.0, 1.0, 2.0, ("b", "canary"), "given back"]


@pytest.mark.real
def test_only_a_users_own_processes_with_the_mark_are_killed() -> None:
    """Real ones, of users that nobody else is, so as root."""
    mark, mine, another = f"/cu-fleet-{secrets.token_hex(8)}/one", 0x7FFF_0001, 0x7FFF_0002

    def sleeper(name: str, uid: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen([name, "600"], executable="/bin/sleep", user=uid, group=uid, extra_groups=[], cwd="/")

    with contextlib.ExitStack() as ends:

        def begin(name: str, uid: int) -> subprocess.Popen[bytes]:
            one = ends.enter_context(sleeper(name, uid))
            ends.callback(one.kill)
            return one

        ours = [begin(f"{mark}/sock", mine), begin(mark, mine)]
        others = {"user": begin(f"{mark}/sock", another), "mark": begin(f"{mark[:-3]}two", mine)}
        assert processes.kill(os.fsencode(mark), mine) == 2
        assert [one.wait(20) for one in ours] == [-signal.SIGKILL] * 2
        assert {name: one.poll() for name, one in others.items()} == {"user": None, "mark": None}
        processes.end(os.fsencode(mark))
        assert others["user"].poll() is None, "the mark is but the beginning of its word"
        assert processes.kill(os.fsencode(mark)) == 1, "whoever it belongs to, if nobody is named"
        assert others["user"].wait(20) == -signal.SIGKILL
        assert processes.kill(os.fsencode(mark)) == 0
        assert others["mark"].poll() is None
