"""The four verbs: written down before it is created, gone when it is stopped, found whoever left it."""

import asyncio
import json

import pytest

from cu_fleet.backends.base import Backend
from cu_fleet.model.errors import FleetError
from cu_fleet.testing.backend_base import BackendBase, take


class VerbsContract(BackendBase):
    def test_the_first_handle_comes_before_anything_exists(self) -> None:
        async def body(backend: Backend) -> None:
            spec = self.spec()
            handles = backend.start(spec)
            await anext(handles)
            assert await self.names(backend) == []
            await take(handles)
            assert await self.names(backend) == [spec.desktop]

        self.run(body)

    def test_handles_are_flat_and_survive_being_written_down(self) -> None:
        async def body(backend: Backend) -> None:
            handles = await take(backend.start(self.spec()))
            for handle in handles:
                assert handle
                assert all(v is None or isinstance(v, str | int | float | bool) for v in handle.values())
                assert json.loads(json.dumps(handle)) == handle
            await self.greet(backend, json.loads(json.dumps(handles[-1])))

        self.run(body)

    def test_stopping_after_any_handle_leaves_nothing(self) -> None:
        async def body(backend: Backend) -> None:
            total = len(await take(backend.start(spec := self.spec())))
            for n in range(1, total + 1):
                handles = await take(backend.start(spec), n)
                for handle in (handles[0], handles[-1]):
                    await backend.stop(handle)
                    assert await backend.found() == [], f"after handle {n} of {total}"
                    assert await backend.endpoint(handle) is None

        self.run(body)

    def test_stopping_what_is_not_there_and_stopping_at_once_are_fine(self) -> None:
        async def body(backend: Backend) -> None:
            handles = await take(backend.start(self.spec()))
            await asyncio.gather(*(backend.stop(handle) for handle in handles))
            for handle in handles:
                await backend.stop(handle)
            [never] = await take(backend.start(self.spec()), 1)
            await backend.stop(never)
            assert await backend.found() == []

        self.run(body)

    def test_the_endpoint_answers_while_the_desktop_runs_and_no_longer(self) -> None:
        async def body(backend: Backend) -> None:
            handles = backend.start(self.spec())
            first = await anext(handles)
            assert await backend.endpoint(first) is None
            last = [first, *await take(handles)][-1]
            assert await self.greet(backend, last) == await self.greet(backend, last)
            await backend.stop(last)
            assert await backend.endpoint(last) is None

        self.run(body)

    @pytest.mark.parametrize("size", [(1024, 768), (333, 555)])
    def test_the_screen_has_the_size_of_the_profile(self, size: tuple[int, int]) -> None:
        async def body(backend: Backend) -> None:
            profile = self.profile()
            screen = profile.screen.but(width=size[0], height=size[1])
            handle = await self.start(backend, self.spec(profile=profile.but(screen=screen)))
            greeting = await self.greet(backend, handle)
            assert (greeting.width, greeting.height) == size

        self.run(body)

    def test_a_desktop_begun_anew_shows_another_boot(self) -> None:
        async def body(backend: Backend) -> None:
            spec = self.spec()
            handle = await self.start(backend, spec)
            assert spec.boot in await self.boot_of(backend, handle)
            again = self.spec(desktop=spec.desktop)
            handle = await self.start(backend, again)
            shown = await self.boot_of(backend, handle)
            assert again.boot in shown
            assert spec.boot not in shown
            assert await self.names(backend) == [spec.desktop]

        self.run(body)

    def test_a_start_cut_off_at_any_handle_is_finished_by_another(self) -> None:
        async def body(backend: Backend) -> None:
            total = len(await take(backend.start(first := self.spec())))
            for n in range(1, total + 1):
                await take(backend.start(self.spec(desktop=first.desktop)), n)
                spec = self.spec(desktop=first.desktop)
                handle = await self.start(await self.make(), spec)
                assert spec.boot in await self.boot_of(backend, handle)
            assert await self.names(backend) == [first.desktop]

        self.run(body)

    def test_found_lists_each_desktop_with_a_handle_that_stops_it(self) -> None:
        async def body(backend: Backend) -> None:
            specs = [self.spec(), self.spec()]
            handles = await asyncio.gather(*(self.start(backend, spec) for spec in specs))
            assert await self.names(backend) == sorted(spec.desktop for spec in specs)
            for found in await backend.found():
                assert found.what
                if found.desktop == specs[0].desktop:
                    await backend.stop(found.handle)
            assert await self.names(backend) == [specs[1].desktop]
            assert await backend.endpoint(handles[0]) is None
            await self.greet(backend, handles[1])

        self.run(body)

    def test_a_new_controller_finds_everything_as_it_was(self) -> None:
        spec = self.spec()

        async def before(backend: Backend) -> str:
            return json.dumps(await self.start(backend, spec))

        async def after(backend: Backend) -> None:
            assert await self.names(backend) == [spec.desktop]
            assert spec.boot in await self.boot_of(backend, handle)
            await backend.stop(handle)
            assert await backend.found() == []

        handle = json.loads(self.run(before))
        self.run(after)

    def test_what_cannot_be_started_leaves_nothing_that_stop_does_not_remove(self) -> None:
        async def body(backend: Backend) -> None:
            if backend.abilities.snapshots is None:
                return
            spec = self.spec(snapshot="sn_0000000000")
            handles = backend.start(spec)
            first = await anext(handles)
            with pytest.raises(FleetError, match="sn_0000000000"):
                await take(handles)
            await backend.stop(first)
            assert await backend.found() == []

        self.run(body)

    def test_it_says_what_it_needs(self) -> None:
        async def body(backend: Backend) -> None:
            checks = await backend.check(self.profile())
            assert checks
            for check in checks:
                assert check.name
                assert check.detail
            assert backend.name == self.profile().backend

        self.run(body)
