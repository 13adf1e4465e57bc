"""Folders of this machine in the slot: moved in and out, written from both sides, and never lost on the way."""

from pathlib import Path

import pytest

from cu_fleet.backends.base import Backend, Lending
from cu_fleet.model.errors import FleetError
from cu_fleet.testing.backend_base import BackendBase

Inode = tuple[int, int]


class _Lent(BackendBase):
    def lending(self, backend: Backend) -> Lending:
        ability: Lending = self._ability(backend, "lending")
        return ability

    def folder(self) -> tuple[Path, Inode]:
        folder = self.place.home / "lent" / "project"
        (folder / "src").mkdir(parents=True)
        (folder / "src" / "a.txt").write_text("from here\n")
        (folder / ".git").write_text("gitdir: /elsewhere\n")
        found = folder.stat()
        return folder, (found.st_dev, found.st_ino)


class LendingContract(_Lent):
    def test_a_folder_is_lent_and_comes_back_with_all_that_was_written(self) -> None:
        async def body(backend: Backend) -> None:
            lending, handle, (folder, inode) = self.lending(backend), await self.start(backend), self.folder()
            place = await lending.lend(handle, "project", folder, inode)
            assert not folder.exists()
            (place / "src" / "b.txt").write_text("too\n")
            assert await lending.lend(handle, "project", folder, inode) == place, "again, as after a crash"
            place.rename(place.with_name("other"))
            assert await lending.fetch(handle, "project", folder, inode), "it is known by its inode"
            assert sorted(path.name for path in (folder / "src").iterdir()) == ["a.txt", "b.txt"]
            assert not await lending.fetch(handle, "project", folder.with_name("x"), inode), "it is there no more"

        self.run(body)

    def test_what_is_in_the_way_is_left_and_what_took_its_place_is_fetched_instead(self) -> None:
        async def body(backend: Backend) -> None:
            lending, handle, (folder, inode) = self.lending(backend), await self.start(backend), self.folder()
            place = await lending.lend(handle, "project", folder, inode)
            (folder, other) = self.folder()
            with pytest.raises(FleetError, match="in the slot already"):
                await lending.lend(handle, "project", folder, other)
            folder.rename(folder.with_name("later"))
            place.rename(place.parent.parent / "taken-away")
            place.symlink_to("/etc")
            assert not await lending.fetch(handle, "project", folder, inode), "a link is no folder"
            place.unlink()
            (place / "deep").mkdir(parents=True)
            assert await lending.fetch(handle, "project", folder, inode)
            assert (folder / "deep").is_dir()

        self.run(body)


class LendingInShellContract(_Lent):
    def test_programs_on_both_sides_write_in_it(self) -> None:
        async def body(backend: Backend) -> None:
            lending, handle, (folder, inode) = self.lending(backend), await self.start(backend), self.folder()
            place = await lending.lend(handle, "project", folder, inode)
            (place / "late").mkdir()
            (place / "late" / "made-here").write_text("1")
            script = "cd ~/Shared/project && cat src/a.txt && echo 2 >> src/a.txt && echo 2 >> late/made-here && "
            script += "mkdir -p late/x src/y && echo 3 > late/x/in && echo 3 > top && mv src/a.txt src/moved && rm .git"
            ended = await self.command(backend, handle, "sh", "-c", script)
            assert (ended.code, ended.out) == (0, b"from here\n"), ended.err
            (place / "late" / "x" / "in").write_text("4")
            assert await lending.fetch(handle, "project", folder, inode)
            assert (folder / "src" / "moved").read_text() == "from here\n2\n"
            assert (folder / "late" / "made-here").read_text() == "12\n"
            assert (folder / "late" / "x" / "in").read_text() == "4"
            script = "ls -A ~/Shared; test ! -e ~/Shared/project"
            ended = await self.command(backend, handle, "sh", "-c", script)
            assert (ended.code, ended.out) == (0, b"")

        self.run(body)

    def test_a_folder_that_was_closed_to_us_comes_back_all_the_same(self) -> None:
        async def body(backend: Backend) -> None:
            lending, handle, (folder, inode) = self.lending(backend), await self.start(backend), self.folder()
            await lending.lend(handle, "project", folder, inode)
            script = "cd ~/Shared; chmod 0 project/src; chmod 0 project 2>/dev/null; chmod 0 ."
            assert (await self.command(backend, handle, "sh", "-c", script)).code == 0
            assert await lending.fetch(handle, "project", folder, inode)
            assert folder.is_dir()

        self.run(body)
