"""What the two sides of machines on another host say to each other has a version, which changes with it."""

import asyncio
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from cu_fleet.backends.base import Backend, Place, Spec
from cu_fleet.backends.libvirt.far import greeting
from cu_fleet.backends.libvirt.far.address import address
from cu_fleet.backends.libvirt.far.near import FarBackend, FarImages
from cu_fleet.backends.libvirt.far.serving import VERBS
from cu_fleet.backends.libvirt.far.talk import WINDOW, Reader, Talk, Writer
from cu_fleet.backends.libvirt.far.words import SPOKEN, Words
from cu_fleet.backends.libvirt.images import Golden
from cu_fleet.backends.memory import MemoryBackend
from cu_fleet.model.errors import NotFoundError
from cu_fleet.model.profile import Profile
from cu_fleet.testing.backend_base import chunks, take
from tests.libvirt.test_far import Beside
from tests.support import run

FULL = Profile.model_validate(
    {
        "name": "full",
        "backend": "memory",
        "image": "desktop",
        "home": "mine",
        "env": {"A": "b"},
        "autostart": [["true"]],
        "launch": {"one": {"command": ["true"]}},
        "per_agent": 1,
        "options": {"emulated": True},
    }
)

GOLDEN = Golden("vm-desktop", Path("/there"), "recipe", 1, "today")


def shape(said: object) -> str:
    """What it consists of, whatever it says."""
    if isinstance(said, dict):
        return "{" + ", ".join(f"{key}: {shape(value)}" for key, value in sorted(said.items())) + "}"
    if isinstance(said, list):
        return "[" + " | ".join(sorted({shape(one) for one in said})) + "]"
    return "none" if said is None else type(said).__name__


class Overheard:
    """One direction of a stream, both as it is read and as it is written."""

    def __init__(self, who: str, heard: set[str], reader: Reader, writer: Writer) -> None:
        self.who, self.heard, self.reader = who, heard, reader
        self.drain, self.write_eof, self.close = writer.drain, writer.write_eof, writer.close
        self._write, self._buffer = writer.write, bytearray()

    async def read(self, n: int = -1, /) -> bytes:
        data = await self.reader.read(n)
        self._note(data)
        return data

    def write(self, data: bytes, /) -> None:
        self._note(data)
        self._write(data)

    def _note(self, data: bytes) -> None:
        self._buffer += data
        while len(self._buffer) >= 5 and len(self._buffer) >= (end := 5 + int.from_bytes(self._buffer[:4], "big")):
            kind, body = chr(self._buffer[4]), bytes(self._buffer[5:end])
            del self._buffer[:end]
            said = json.loads(body) if kind == "j" else {}
            what = shape(said) if said else f"z{body.decode()}" if kind == "z" else kind
            self.heard.add(f"{self.who} {said.get('do')} {what}")


class Listening(Beside):
    def __init__(self, backend: Backend, folder: Path) -> None:
        super().__init__(backend, folder)
        self.heard: set[str] = set()
        self.serving.beside |= {"images": self._images, "build": self._build}

    async def stream(self) -> tuple[Reader, Writer]:
        reader, writer = await super().stream()
        return Overheard("there", self.heard, reader, writer), Overheard("here", self.heard, reader, writer)

    async def _images(self, talk: Talk, asked: Words) -> list[Golden]:
        return [GOLDEN]

    async def _build(self, talk: Talk, asked: Words) -> Golden:
        await talk.say({"progress": "half"})
        return GOLDEN


class Neat:
    async def tidy(self) -> list[str]:
        return ["what nobody needs"]


async def everything(backend: FarBackend, images: FarImages) -> None:
    """All that can be asked."""
    able, spec = backend.abilities, Spec("dk_1", FULL, "bt_1", "a")
    assert able.snapshots
    assert able.exec
    assert able.freeze
    assert able.files
    assert able.logs
    assert able.meter
    assert able.disk
    assert able.tidy
    handle = (await take(backend.start(spec)))[-1]
    endpoint = await backend.endpoint(handle)
    assert endpoint
    with await endpoint.connect() as sock:
        await asyncio.get_running_loop().sock_recv(sock, 12)
    process = await able.exec.exec(handle, ["cat"], env={"A": "b"}, cwd="/")
    await process.write(b"said")
    await process.close_stdin()
    assert [chunk async for chunk in process.output()]
    await process.wait()
    process = await able.exec.exec(handle, ["sleep", "1000"])
    await process.kill()
    await process.wait()
    await able.files.put(
        handle, "file", chunks([bytes(3 * WINDOW)])
    )  # of which some must be read before the rest comes
    assert [chunk async for chunk in able.files.get(handle, "file")]
    await able.files.listing(handle)
    await able.files.remove(handle, "file")
    with pytest.raises(NotFoundError):
        await able.files.listing(handle, "none")
    for work in (
        able.freeze.freeze,
        able.freeze.thaw,
        able.logs.logs,
        able.meter.usage,
        able.disk.used,
        able.disk.room,
    ):
        await work(handle)
    await able.snapshots.save(handle, "sn_1")
    await take(able.snapshots.restore(handle, Spec("dk_1", FULL, "bt_2", "a", snapshot="sn_1")))
    await able.snapshots.saved()
    await able.snapshots.delete("sn_1")
    await able.tidy.tidy()
    await backend.found()
    await backend.check(FULL)
    await backend.check()
    await backend.stop(handle)
    await images.listing()
    await images.build("vm-desktop", lambda line: None, [FULL], fresh=True)


def test_whoever_changes_what_is_spoken_raises_its_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profiles/mine").mkdir(parents=True)

    async def body() -> set[str]:
        there, here = MemoryBackend(Place(tmp_path, "there")), Place(tmp_path, "here", (tmp_path / "profiles",))
        there.abilities = replace(there.abilities, tidy=Neat())
        host = await Listening(there, tmp_path).open()
        try:
            await everything(FarBackend(there, host, here), FarImages(host, here))
            return host.heard
        finally:
            await host.close()

    heard = run(body())
    hello = json.loads(greeting.hello(address("qemu+ssh://there/system"), "fleet"))
    greeting.answer({"socket": "/there"})
    heard |= {f"hello {shape(hello)}", f"answer {shape(json.loads(capsys.readouterr().out.partition(' ')[2]))}"}
    assert {line.split(" ")[1] for line in heard} >= VERBS, "all that can be asked is asked above"
    said = hashlib.sha256("\n".join(sorted(heard)).encode()).hexdigest()[:16]
    assert said == SPOKEN, f"the two sides speak in another way now: raise VERSION, and have SPOKEN be {said!r}"
