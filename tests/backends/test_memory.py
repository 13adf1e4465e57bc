"""The fake backend keeps the same contract as the real ones, and shows what was done to it."""

import asyncio
from pathlib import Path

from PIL import Image, ImageChops

from cu_fleet.backends.base import Backend, Place, Spec
from cu_fleet.backends.memory import MemoryBackend, MemoryWorld
from cu_fleet.backends.memory_inside import Call
from cu_fleet.model.profile import Profile
from cu_fleet.model.profile import Screen as ScreenSize
from cu_fleet.rfb.screen import Screen
from cu_fleet.testing.backend_base import take
from cu_fleet.testing.backend_contract import PlainBackendContract
from tests.support import run, until


class TestMemoryContract(PlainBackendContract):
    def new_place(self, folder: Path) -> Place:
        self.world = MemoryWorld()
        return super().new_place(folder)

    async def make(self) -> Backend:
        return MemoryBackend(self.place, self.world)

    def profile(self) -> Profile:
        return Profile(name="contract", backend="memory")


def spec() -> Spec:
    screen = ScreenSize(width=320, height=200)
    return Spec("dk_1", Profile(name="p", backend="memory", screen=screen), "bt_1", "codex-a")


async def started(place: Place, world: MemoryWorld | None = None) -> MemoryBackend:
    backend = MemoryBackend(place, world)
    await take(backend.start(spec()))
    return backend


async def look(backend: MemoryBackend) -> Screen:
    endpoint = await backend.endpoint({"desktop": "dk_1"})
    assert endpoint
    return await Screen.open(await endpoint.connect())


async def picture(screen: Screen) -> Image.Image:
    frame = await screen.frame()
    return Image.frombytes("RGB", (frame.width, frame.height), frame.pixels, "raw", "BGRX")


def test_a_client_sees_the_picture_and_what_it_does_to_it(tmp_path: Path) -> None:
    async def body() -> None:
        backend = await started(Place(tmp_path, "f"))
        screen = await look(backend)
        try:
            assert (screen.width, screen.height, screen.name) == (320, 200, "codex-a bt_1")
            blank = await picture(screen)
            assert blank.getextrema() != ((0, 0), (0, 0), (0, 0)), "not black"
            screen.key_event(ord("h"), True)
            screen.key_event(ord("h"), False)
            typed = await picture(screen)
            screen.pointer_event(100, 150, 1)
            screen.pointer_event(100, 150, 0)
            clicked = await picture(screen)
            assert ImageChops.difference(blank, typed).getbbox() == (0, 0, 8, 16)
            assert ImageChops.difference(typed, clicked).getbbox() == (96, 146, 105, 155)
            assert backend.desktop("dk_1").events == [
                ("key", ord("h"), True),
                ("key", ord("h"), False),
                ("pointer", 100, 150, 1),
                ("pointer", 100, 150, 0),
            ]
            assert backend.desktop("dk_1").screen.complaints == []
        finally:
            await screen.close()

    run(body())


def test_a_change_made_from_inside_reaches_all_who_look(tmp_path: Path) -> None:
    async def body() -> None:
        backend = await started(Place(tmp_path, "f"))
        one, two = await look(backend), await look(backend)
        try:
            backend.desktop("dk_1").screen.fill(10, 20, 5, 5, (255, 0, 1))
            for screen in (one, two):
                assert (await picture(screen)).getpixel((12, 22)) == (255, 0, 1)
        finally:
            await one.close()
            await two.close()

    run(body())


def test_a_client_that_goes_takes_its_keys_and_buttons_along(tmp_path: Path) -> None:
    async def body() -> None:
        backend = await started(Place(tmp_path, "f"))
        screen = await look(backend)
        screen.key_event(0xFFE1, True)
        screen.pointer_event(5, 5, 4)
        await screen.sync()
        await screen.close()
        events = backend.desktop("dk_1").events
        await until(lambda: len(events) == 4)
        assert events[2:] == [("key", 0xFFE1, False), ("pointer", 5, 5, 0)]

    run(body())


def test_a_crash_of_the_screen_is_seen_and_leaves_the_files(tmp_path: Path) -> None:
    async def body() -> None:
        backend = await started(Place(tmp_path, "f"))
        screen = await look(backend)
        backend.desktop("dk_1").screen.die()
        await until(screen.lost.done)
        await screen.close()
        assert await backend.endpoint({"desktop": "dk_1"}) is None
        assert [f.desktop for f in await backend.found()] == ["dk_1"]

    run(body())


def test_a_frozen_screen_answers_when_it_is_thawed(tmp_path: Path) -> None:
    async def body() -> None:
        backend = await started(Place(tmp_path, "f"))
        freeze = backend.abilities.freeze
        assert freeze
        screen = await look(backend)
        try:
            await freeze.freeze({"desktop": "dk_1"})
            asked = asyncio.create_task(screen.sync())
            screen.key_event(ord("x"), True)
            for _ in range(50):
                await asyncio.sleep(0)
            assert not asked.done()
            assert backend.desktop("dk_1").events == []
            await freeze.thaw({"desktop": "dk_1"})
            await asked
        finally:
            await screen.close()

    run(body())


def test_a_world_outlives_controllers_and_their_event_loops(tmp_path: Path) -> None:
    world, place = MemoryWorld(), Place(tmp_path, "f")

    async def before() -> None:
        backend = await started(place, world)
        screen = await look(backend)
        screen.key_event(ord("a"), True)
        await screen.sync()  # and then this controller is killed, with its connection and a command under way
        exec_ = backend.abilities.exec
        assert exec_
        await exec_.exec({"desktop": "dk_1"}, ["sleep", "1000"])

    async def after() -> None:
        backend = MemoryBackend(place, world)
        assert backend.desktop("dk_1").events[0] == ("key", ord("a"), True)
        screen = await look(backend)
        await screen.frame()
        await screen.close()
        await backend.stop({"desktop": "dk_1"})
        assert await backend.found() == []

    run(before())
    run(after())


def test_another_fleet_sees_nothing_of_it(tmp_path: Path) -> None:
    async def body() -> None:
        backend = await started(Place(tmp_path, "f"))
        other = MemoryBackend(Place(tmp_path, "g"), backend.world)
        assert await other.found() == []
        await other.stop({"desktop": "dk_1"})
        assert await other.endpoint({"desktop": "dk_1"}) is None
        assert len(await backend.found()) == 1

    run(body())


def test_tests_bring_commands_of_their_own(tmp_path: Path) -> None:
    async def greet(call: Call) -> int:
        await call.out(f"hello {call.argv[1]} in {call.cwd} with {call.env['A']}".encode())
        return 7

    async def body() -> None:
        backend = await started(Place(tmp_path, "f"))
        backend.commands["greet"] = greet
        exec_ = backend.abilities.exec
        assert exec_
        process = await exec_.exec({"desktop": "dk_1"}, ["/usr/bin/greet", "you"], env={"A": "b"}, cwd="/x")
        assert [chunk async for chunk in process.output()] == [(1, b"hello you in /x with b")]
        assert await process.wait() == 7

    run(body())
