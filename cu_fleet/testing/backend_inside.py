"""What reaches inside: commands, freezing, and the slot's files."""

import asyncio
import os
from collections.abc import AsyncIterator

import pytest

from cu_fleet.backends.base import Backend, Process
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import FleetError, InvalidError, NotFoundError
from cu_fleet.testing.backend_base import BackendBase, borrows, chunks, ended_badly, silent


class ExecContract(BackendBase):
    @borrows
    def test_commands_have_streams_and_exit_codes(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            ended = await self.command(backend, handle, "echo", "two  words", "ü")
            assert (ended.code, ended.out, ended.err) == (0, "two  words ü\n".encode(), b"")
            assert (await self.command(backend, handle, "false")).code == 1
            ended = await self.command(backend, handle, "cat", "/nowhere")
            assert ended.code == 1
            assert ended.out == b""
            assert b"/nowhere" in ended.err
            assert (await self.command(backend, handle, "no-such-program")).code == 127

        self.run(body)

    @borrows
    def test_a_command_reads_what_is_written_to_it(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            data = os.urandom(1 << 20)
            ended = await self.command(backend, handle, "cat", stdin=data)
            assert ended.out == data
            assert ended.code == 0

        self.run(body)

    @borrows
    def test_a_command_is_killed_and_says_so(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            process = await self.exec(backend).exec(handle, ["sleep", "100000"])
            await process.kill()
            assert await process.wait() == 137
            assert [chunk async for chunk in process.output()] == []
            await process.kill()

        self.run(body)

    @borrows
    def test_commands_run_beside_each_other(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            process = await self.exec(backend).exec(handle, ["cat"])
            results = await asyncio.gather(*(self.command(backend, handle, "echo", str(n)) for n in range(5)))
            assert [r.out for r in results] == [b"%d\n" % n for n in range(5)]
            assert await said(process, b"still there") == b"still there"
            await process.close_stdin()
            assert await process.wait() == 0

        self.run(body)

    def test_a_desktop_that_is_gone_runs_nothing(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.start(backend)
            process = await self.exec(backend).exec(handle, ["sleep", "100000"])
            await backend.stop(handle)
            assert await ended_badly(process)
            with pytest.raises(FleetError):
                await self.exec(backend).exec(handle, ["true"])

        self.run(body)


class ExecInShellContract(BackendBase):
    """With a shell inside."""

    def test_environment_and_folder_are_as_asked(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.start(backend, self.spec(profile=self.profile().but(env={"FROM_PROFILE": "yes"})))
            script = 'echo "$MINE|$FROM_PROFILE|$PWD|$(id -u)"; test -w "$HOME" && test -n "$DISPLAY"'
            ended = await self.command(backend, handle, "sh", "-c", script, env={"MINE": "a b"}, cwd="/usr")
            assert ended.code == 0
            mine, profile, folder, uid = ended.out.decode().strip().split("|")
            assert (mine, profile, folder) == ("a b", "yes", "/usr")
            assert uid != "0", "a desktop's programs do not run as root"

        self.run(body)

    @borrows
    def test_a_killed_command_takes_its_children_along(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            process = await self.exec(backend).exec(handle, ["sh", "-c", "sleep 100000 & echo $!; wait"])
            async for _, data in process.output():
                child = data.decode().strip()
                break
            assert (await self.command(backend, handle, "test", "-e", f"/proc/{child}")).code == 0
            await process.kill()
            assert await process.wait() == 137
            gone = f"while grep -q '^State:.[^ZX]' /proc/{child}/status; do sleep 0.02; done 2>/dev/null"
            assert (await self.command(backend, handle, "sh", "-c", gone)).code == 0
            assert (await self.command(backend, handle, "sh", "-c", "kill -TERM $$")).code == 143

        self.run(body)


class FreezeContract(BackendBase):
    @borrows
    def test_a_frozen_desktop_holds_still_and_goes_on(self) -> None:
        async def body(backend: Backend) -> None:
            freeze, handle = self.freezing(backend), await self.borrow(backend)
            process = await self.exec(backend).exec(handle, ["cat"])
            assert await said(process, b"one") == b"one"
            stream = process.output()
            await freeze.freeze(handle)
            await freeze.freeze(handle)
            await process.write(b"two")
            assert await silent(stream)
            await freeze.thaw(handle)
            await freeze.thaw(handle)
            assert await said(process, b"") == b"two"
            await self.greet(backend, handle)
            await process.kill()

        self.run(body)

    @borrows
    def test_another_controller_can_thaw_it(self) -> None:
        async def body(backend: Backend) -> None:
            handle = await self.borrow(backend)
            await self.freezing(backend).freeze(handle)
            other = await self.make()
            await self.freezing(other).thaw(handle)
            await self.greet(other, handle)
            assert (await self.command(other, handle, "true")).code == 0

        self.run(body)

    def test_a_frozen_desktop_can_be_stopped_and_restored(self) -> None:
        async def body(backend: Backend) -> None:
            spec = self.spec()
            handle = await self.start(backend, spec)
            await self.freezing(backend).freeze(handle)
            if backend.abilities.snapshots is not None:
                handle = await self.restore(backend, handle, self.spec(desktop=spec.desktop))
                await self.greet(backend, handle)
                await self.freezing(backend).freeze(handle)
            await backend.stop(handle)
            assert await backend.found() == []

        self.run(body)


class FilesContract(BackendBase):
    async def content(self, backend: Backend, handle: Handle, path: str) -> bytes:
        return b"".join([chunk async for chunk in self.files(backend).get(handle, path)])

    @borrows
    def test_files_go_in_and_out(self) -> None:
        async def body(backend: Backend) -> None:
            files, handle = self.files(backend), await self.borrow(backend)
            big = os.urandom(500_000)
            assert await files.put(handle, "a/b ü/big", chunks([big[:7], big[7:]])) == 500_000
            assert await self.content(backend, handle, "a/b ü/big") == big
            await files.put(handle, "a/b ü/big", chunks([b"new"]))
            await files.put(handle, "empty", chunks([]))
            assert await self.content(backend, handle, "empty") == b""
            assert [(i.path, i.kind, i.size) for i in await files.listing(handle, "a/b ü")] == [
                ("a/b ü/big", "file", 3)
            ]
            assert [(i.path, i.kind) for i in await files.listing(handle)] == [("a", "dir"), ("empty", "file")]
            await files.remove(handle, "nothing")
            await files.remove(handle, "a")
            assert [i.path for i in await files.listing(handle)] == ["empty"]
            await files.remove(handle, "")
            assert await files.listing(handle) == []
            with pytest.raises(NotFoundError):
                await self.content(backend, handle, "empty")
            with pytest.raises(NotFoundError):
                await files.listing(handle, "a")

        self.run(body)

    @borrows
    def test_inside_it_is_the_folder_shared_in_the_home(self) -> None:
        async def body(backend: Backend) -> None:
            files, handle = self.files(backend), await self.borrow(backend)
            await files.put(handle, "from-outside", chunks([b"hello"]))
            assert await self.read(backend, handle, "Shared/from-outside") == "hello"
            await self.write(backend, handle, "Shared/from-inside", "hi")
            assert await self.content(backend, handle, "from-inside") == b"hi"
            assert (await self.command(backend, handle, "rm", "Shared/from-outside")).code == 0, "its own user may"
            assert [i.path for i in await files.listing(handle)] == ["from-inside"]

        self.run(body)

    @borrows
    def test_a_file_is_whole_or_not_there(self) -> None:
        async def broken() -> AsyncIterator[bytes]:
            yield b"half"
            raise ConnectionResetError

        async def body(backend: Backend) -> None:
            files, handle = self.files(backend), await self.borrow(backend)
            with pytest.raises(ConnectionResetError):
                await files.put(handle, "file", broken())
            assert await files.listing(handle) == []

        self.run(body)

    @borrows
    @pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../../out", "a//b", ".", "a/./b", "nul\0"])
    def test_a_path_that_could_leave_is_refused(self, path: str) -> None:
        async def body(backend: Backend) -> None:
            files, handle = self.files(backend), await self.borrow(backend)
            for call in (
                files.put(handle, path, chunks([b"x"])),
                self.content(backend, handle, path),
                files.listing(handle, path),
                files.remove(handle, path),
            ):
                with pytest.raises(InvalidError):
                    await call
            assert await files.listing(handle) == []

        self.run(body)


class FilesInShellContract(FilesContract):
    """With a shell inside that plants traps."""

    @borrows
    def test_links_and_pipes_made_inside_lead_nowhere(self) -> None:
        async def body(backend: Backend) -> None:
            files, handle = self.files(backend), await self.borrow(backend)
            script = "cd ~/Shared; ln -s /etc/hostname file; ln -s / root; ln -s ../.. up; mkfifo pipe; mkdir d"
            assert (await self.command(backend, handle, "sh", "-c", script)).code == 0
            for path in ("file", "root/etc/passwd", "up/x", "pipe", "d"):
                with pytest.raises(FleetError):
                    await self.content(backend, handle, path)
            for path in ("file", "root/tmp/x", "up/x", "pipe", "d"):
                with pytest.raises(FleetError):
                    await files.put(handle, path, chunks([b"x"]))
            kinds = {i.path: i.kind for i in await files.listing(handle)}
            assert kinds == {"file": "link", "root": "link", "up": "link", "pipe": "other", "d": "dir"}
            await files.remove(handle, "")
            assert await files.listing(handle) == []
            assert (await self.command(backend, handle, "test", "-e", "/etc/passwd")).code == 0

        self.run(body)


async def said(process: Process, write: bytes) -> bytes:
    """Write to a process and return the next it says."""
    await process.write(write)
    async for _, data in process.output():
        return data
    return b""
