"""Snapshots: what a desktop had comes back exactly, whoever restores it, and clean means clean."""

import json

import pytest

from cu_fleet.backends.base import Backend
from cu_fleet.model.errors import FleetError
from cu_fleet.testing.backend_base import BackendBase, chunks, ended_badly, take

SNAPSHOT, OTHER = "sn_1111111111", "sn_2222222222"

ZOO = r"""
import os, socket
os.chdir(os.path.expanduser("~"))
os.makedirs("zoo/deep/er"); os.mkdir("zoo/empty dir"); os.mkdir("/tmp/zoo")
def put(path, data=b"x", mode=0o644):
    with open(path, "wb") as f: f.write(data)
    os.chmod(path, mode)
put("zoo/text", b"hello"); put("zoo/gone", b"later"); put("zoo/tool", b"#!/bin/sh\n", 0o755)
put("zoo/readonly", b"r", 0o400); put("zoo/setuid", b"s", 0o4755); put("zoo/big", os.urandom(700000))
put(b"zoo/\xff\xfe bytes"); put("zoo/new\nline"); put("/tmp/zoo/file", b"tmp")
os.link("zoo/text", "zoo/deep/hard"); os.symlink("text", "zoo/link"); os.symlink("/no/where", "zoo/dangling")
os.mkfifo("zoo/fifo"); os.chmod("zoo/empty dir", 0o1775)
with open("zoo/sparse", "wb") as f: f.truncate(1 << 30); f.seek(1 << 29); f.write(b"island")
os.setxattr("zoo/text", "user.note", b"\0\xff"); os.setxattr("zoo/empty dir", "user.dir", b"1")
for n, path in enumerate(["zoo/text", "zoo/link", "zoo/fifo", "zoo/empty dir", "zoo"]):
    os.utime(path, ns=(10**18, 1234567890123456789 + n), follow_symlinks=False)
"""

SPOIL = r"""
import os, shutil
os.chdir(os.path.expanduser("~"))
with open("zoo/text", "wb") as f: f.write(b"HELLO")
os.utime("zoo/text", ns=(10**18, 1234567890123456789))
os.unlink("zoo/gone"); shutil.rmtree("zoo/deep"); os.unlink("zoo/link"); os.symlink("/etc/passwd", "zoo/link")
os.chmod("zoo/tool", 0o600); os.removexattr("zoo/empty dir", "user.dir"); shutil.rmtree("/tmp/zoo")
for path in ("zoo/new", ".new", "/tmp/new"): open(path, "w").close()
shutil.rmtree(".config", ignore_errors=True)
"""

# Without ~/.cache, where the desktop's own programs write as they start.
MANIFEST = r"""
import hashlib, json, os, stat
found, inodes = {}, {}
def look(path):
    s = os.lstat(path); name = path.hex()
    link = stat.S_ISLNK(s.st_mode)
    found[name] = [s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, os.readlink(path).hex() if link else "",
        s.st_size if stat.S_ISREG(s.st_mode) else 0,
        [] if link else [[a, os.getxattr(path, a).hex()] for a in sorted(os.listxattr(path))]]
    if stat.S_ISREG(s.st_mode) and s.st_size < 1 << 24:
        with open(path, "rb") as f: found[name].append(hashlib.sha256(f.read()).hexdigest())
    if stat.S_ISREG(s.st_mode) and s.st_size >= 1 << 24:
        with open(path, "rb") as f: f.seek(1 << 29); found[name] += [f.read(9).hex(), s.st_blocks < 1 << 14]
    if s.st_nlink > 1 and not stat.S_ISDIR(s.st_mode): inodes.setdefault(s.st_ino, []).append(name)
for top in (os.path.expanduser("~").encode(), b"/tmp/zoo", b"/tmp/new"):
    for folder, folders, files in os.walk(top):
        folders[:] = [f for f in folders if folder != top or f not in (b"Shared", b".cache")]
        for name in folders + files: look(folder + b"/" + name)
    if os.path.lexists(top) and not os.path.isdir(top): look(top)
print(json.dumps([sorted(found.items()), sorted(map(sorted, inodes.values()))]))
"""

PROCESSES = r"""
import json, os
def args(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as f: return f.read()
    except OSError: return ""
print(json.dumps([args(pid) for pid in os.listdir("/proc") if pid.isdigit()]))
"""


class SnapshotsContract(BackendBase):
    def test_a_snapshot_brings_back_what_was_changed_deleted_and_new(self) -> None:
        async def body(backend: Backend) -> None:
            snapshots, spec = self.snapshots(backend), self.spec()
            handle = await self.start(backend, spec)
            for name in ("changed", "deleted"):
                await self.write(backend, handle, name, "as saved")
            if marks := backend.abilities.marks:
                await marks.leave(handle, "cy_saved")
            saved = await snapshots.save(handle, SNAPSHOT)
            assert saved.kind in ("disk", "memory")
            assert saved.size_bytes > 0
            assert await self.read(backend, handle, "changed") == "as saved", "it goes on running"
            await self.write(backend, handle, "changed", "otherwise")
            await self.write(backend, handle, "new", "new")
            assert (await self.command(backend, handle, "rm", "deleted")).code == 0
            if marks:
                await marks.leave(handle, "cy_new")
                assert [await marks.there(handle, name) for name in ("cy_saved", "cy_new")] == [True, True]
            handle = await self.restore(backend, handle, self.spec(desktop=spec.desktop, snapshot=SNAPSHOT))
            assert await self.read(backend, handle, "changed") == "as saved"
            assert await self.read(backend, handle, "deleted") == "as saved"
            assert await self.read(backend, handle, "new") is None
            if marks:
                assert [await marks.there(handle, name) for name in ("cy_saved", "cy_new")] == [True, False]
            handle = await self.restore(backend, handle, self.spec(desktop=spec.desktop))
            for name in ("changed", "deleted", "new"):
                assert await self.read(backend, handle, name) is None, "clean is clean"
            assert not marks or not await marks.there(handle, "cy_saved")

        self.run(body)

    def test_restoring_starts_a_fresh_screen_and_ends_every_process(self) -> None:
        async def body(backend: Backend) -> None:
            spec = self.spec()
            handle = await self.start(backend, spec)
            process = await self.exec(backend).exec(handle, ["sleep", "100000"])
            for snapshot in (None, SNAPSHOT):
                if snapshot:
                    await self.snapshots(backend).save(handle, snapshot)
                again = self.spec(desktop=spec.desktop, snapshot=snapshot)
                handle = await self.restore(backend, handle, again)
                assert await ended_badly(process)
                assert again.boot in await self.boot_of(backend, handle)
                process = await self.exec(backend).exec(handle, ["sleep", "100000"])
            await process.kill()

        self.run(body)

    def test_a_restore_cut_off_at_any_handle_is_finished_by_another(self) -> None:
        async def body(backend: Backend) -> None:
            snapshots, spec = self.snapshots(backend), self.spec()
            handle = await self.start(backend, spec)
            await self.write(backend, handle, "file", "as saved")
            await snapshots.save(handle, SNAPSHOT)
            again = self.spec(desktop=spec.desktop, snapshot=SNAPSHOT)
            total = len(await take(snapshots.restore(handle, again)))
            for n in range(1, total + 1):
                last = (await take(snapshots.restore(handle, again), n))[-1]
                again = self.spec(desktop=spec.desktop, snapshot=SNAPSHOT)
                handle = await self.restore(await self.make(), last, again)
                assert await self.read(backend, handle, "file") == "as saved"
                assert again.boot in await self.boot_of(backend, handle)
            assert await self.names(backend) == [spec.desktop]

        self.run(body)

    def test_a_snapshot_outlives_its_desktop_and_starts_another(self) -> None:
        async def before(backend: Backend) -> None:
            handle = await self.start(backend)
            await self.write(backend, handle, "file", "from another")
            await self.snapshots(backend).save(handle, SNAPSHOT)
            await backend.stop(handle)

        async def after(backend: Backend) -> None:
            assert await self.snapshots(backend).saved() == [SNAPSHOT]
            handle = await self.start(backend, self.spec(snapshot=SNAPSHOT))
            assert await self.read(backend, handle, "file") == "from another"
            await self.write(backend, handle, "file", "now mine")
            assert await self.read(backend, handle, "file") == "now mine"

        self.run(before)
        self.run(after)

    def test_snapshots_are_listed_and_deleted(self) -> None:
        async def body(backend: Backend) -> None:
            snapshots, spec = self.snapshots(backend), self.spec()
            handle = await self.start(backend, spec)
            assert await snapshots.saved() == []
            await snapshots.save(handle, SNAPSHOT)
            await snapshots.save(handle, OTHER)
            assert sorted(await snapshots.saved()) == [SNAPSHOT, OTHER]
            with pytest.raises(FleetError):
                await snapshots.save(handle, SNAPSHOT)
            await snapshots.delete(SNAPSHOT)
            await snapshots.delete(SNAPSHOT)
            assert await snapshots.saved() == [OTHER]
            with pytest.raises(FleetError, match=SNAPSHOT):
                await self.restore(backend, handle, self.spec(desktop=spec.desktop, snapshot=SNAPSHOT))

        self.run(body)

    def test_the_slot_is_no_part_of_a_snapshot_and_stays_over_a_restore(self) -> None:
        async def body(backend: Backend) -> None:
            snapshots, files, spec = self.snapshots(backend), self.files(backend), self.spec()
            handle = await self.start(backend, spec)
            await files.put(handle, "before", chunks([b"x"]))
            await snapshots.save(handle, SNAPSHOT)
            await files.remove(handle, "")
            again = self.spec(desktop=spec.desktop, snapshot=SNAPSHOT)
            handle = await self.restore(backend, handle, again)
            assert await files.listing(handle) == []
            data = bytes(range(256)) * 3000
            await files.put(handle, "deep/after", chunks([data]), mode=0o640)
            again = self.spec(desktop=spec.desktop, snapshot=SNAPSHOT)
            handles = await take(snapshots.restore(handle, again))
            cut = await take(snapshots.restore(handles[-1], again), len(handles) - 1)
            for asked in (again, self.spec(desktop=spec.desktop)):
                handle = await self.restore(await self.make(), cut[-1], asked)
                assert [(i.path, i.kind) for i in await files.listing(handle)] == [("deep", "dir")]
                assert [(i.path, i.mode) for i in await files.listing(handle, "deep")] == [("deep/after", 0o640)]
                assert b"".join([chunk async for chunk in files.get(handle, "deep/after")]) == data
                cut = [handle]

        self.run(body)


class SnapshotsInShellContract(BackendBase):
    """With Python inside, to make and see every kind of file."""

    def test_every_kind_of_file_comes_back_exactly(self) -> None:
        async def body(backend: Backend) -> None:
            snapshots, spec = self.snapshots(backend), self.spec()
            handle = await self.start(backend, spec)
            clean = await self.python(backend, handle, MANIFEST)
            await self.python(backend, handle, ZOO)
            before = await self.python(backend, handle, MANIFEST)
            assert len(before[0]) > len(clean[0]) + 15
            await snapshots.save(handle, SNAPSHOT)
            await self.python(backend, handle, SPOIL)
            assert await self.python(backend, handle, MANIFEST) != before
            handle = await self.restore(backend, handle, self.spec(desktop=spec.desktop, snapshot=SNAPSHOT))
            assert differing(before, await self.python(backend, handle, MANIFEST)) == []
            await self.python(backend, handle, SPOIL)
            handle = await self.restore(backend, handle, self.spec(desktop=spec.desktop))
            assert differing(clean, await self.python(backend, handle, MANIFEST)) == []

        self.run(body)

    def test_no_process_survives_a_restore_however_it_hides(self) -> None:
        async def body(backend: Backend) -> None:
            self.snapshots(backend)
            spec = self.spec()
            handle = await self.start(backend, spec)
            script = "setsid sleep 98765 & (setsid nohup sh -c 'trap \"\" TERM HUP INT; sleep 98765; :' &) & exit 0"
            assert (await self.command(backend, handle, "sh", "-c", f"({script}) >/dev/null 2>&1 &")).code == 0
            handle = await self.restore(backend, handle, self.spec(desktop=spec.desktop))
            running = await self.python(backend, handle, PROCESSES)
            assert [args for args in running if "98765" in args] == []

        self.run(body)


def differing(expected: object, actual: object) -> list[str]:
    """What two manifests do not agree in, readable."""
    lines = [{json.dumps(line) for line in m[0] + [["links", m[1]]]} for m in (expected, actual)]  # type: ignore[index]
    return sorted(f"{'+' if line in lines[1] else '-'} {line}" for line in lines[0] ^ lines[1])
