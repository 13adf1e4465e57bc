"""What goes wrong with engines, images and names: it is told in words, nothing is left, nothing foreign is touched."""

import asyncio
import contextlib
import socket
from functools import partial
from pathlib import Path

import pytest

from cu_fleet.backends import door
from cu_fleet.backends.docker import house
from cu_fleet.backends.docker.disk import Counting
from cu_fleet.backends.docker.engine import Engine
from cu_fleet.model.errors import ConflictError, FleetError, UnavailableError
from cu_fleet.testing.backend_base import take
from cu_fleet.testing.dockerd import PrivateDocker
from tests.docker.support import Fleet, in_fleet, last
from tests.support import until

pytestmark = [pytest.mark.real, pytest.mark.slow]
FOREIGN = {"labels": {"owner": "somebody else"}}


async def refusal(fleet: Fleet) -> str:
    """Why the desktop's screen cannot be had; empty while it can."""
    try:
        await fleet.backend.endpoint({"desktop": "dk_1"})
    except UnavailableError as e:
        return e.what
    return ""


def test_a_missing_image_is_named_with_what_mends_it(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        for image, remedy in (("cu-fleet/nothing", "cu-fleet image build nothing"), ("a/b:1", "docker pull a/b:1")):
            with pytest.raises(UnavailableError) as caught:
                await fleet.start(image=image)
            assert (caught.value.code, caught.value.remedy) == ("no_image", remedy)
            assert image in caught.value.what
        assert await fleet.ask(fleet.left) == []

    in_fleet(engine, tmp_path, body)


@pytest.mark.parametrize("kind", ["container", "volume"])
def test_a_foreign_thing_of_our_name_is_left_alone(engine: PrivateDocker, tmp_path: Path, kind: str) -> None:
    async def body(fleet: Fleet) -> None:
        name = fleet.name() if kind == "container" else f"{fleet.name()}-home"
        if kind == "container":
            await fleet.ask(lambda api: api.create_container("cu-fleet/desktop", ["true"], name=name, **FOREIGN))
        else:
            await fleet.ask(lambda api: api.create_volume(name, **FOREIGN))
        try:
            with pytest.raises(ConflictError, match=f"{kind} {name} that is not ours"):
                await fleet.start()
            assert await fleet.backend.endpoint({"desktop": "dk_1"}) is None
            await fleet.backend.stop({"desktop": "dk_1"})
            there = await fleet.ask(
                lambda api: api.inspect_container(name) if kind == "container" else api.inspect_volume(name)
            )
            assert (there.get("Config") or there)["Labels"]["owner"] == "somebody else"
        finally:
            await fleet.ask(lambda api: api.remove_container(name) if kind == "container" else api.remove_volume(name))
        assert (await fleet.start())["desktop"] == "dk_1"

    in_fleet(engine, tmp_path, body)


def test_who_only_wears_our_labels_is_neither_found_nor_removed(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.start()
        real = (await fleet.ask(lambda api: api.inspect_container(fleet.name())))["Config"]["Labels"]
        forged = [real, real | {"cu-fleet.desktop": "dk_2"}, {k: v for k, v in real.items() if k != "cu-fleet.sign"}]
        worn = [
            (await fleet.ask(lambda api, labels=labels: api.create_container("cu-fleet/desktop", ["x"], labels=labels)))
            for labels in forged
        ]
        try:
            assert [found.desktop for found in await fleet.backend.found()] == ["dk_1"]
            await fleet.backend.stop({"desktop": "dk_2"})
            await fleet.backend.stop({"desktop": "dk_1"})
            for one in worn:
                assert (await fleet.ask(lambda api, one=one: api.inspect_container(one["Id"])))["Id"] == one["Id"]
        finally:
            for one in worn:
                await fleet.ask(lambda api, one=one: api.remove_container(one["Id"]))

    in_fleet(engine, tmp_path, body)


def test_a_container_that_was_killed_says_how_it_ended(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        await fleet.start()
        await fleet.ask(lambda api: api.kill(fleet.name()))
        assert "exit code 137" in await until(partial(refusal, fleet))
        assert (await fleet.backend.found())[0].what == "container and files and volume"
        handle = await fleet.start()
        assert await fleet.sh(handle, "echo again") == (0, "again\n")

    in_fleet(engine, tmp_path, body)


def test_the_end_of_its_init_or_its_screen_is_the_end_of_a_desktop(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        for victim in ("Xvnc", "[i]nit.main"):
            handle = await fleet.start()
            with contextlib.suppress(UnavailableError):  # it may be lost with the desktop
                await fleet.sh(handle, f"pkill -9 -f {victim}")
            assert "has ended" in await until(partial(refusal, fleet))

    in_fleet(engine, tmp_path, body)


def test_an_image_that_does_not_come_up_says_why(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        lame = await fleet.ask(
            lambda api: api.create_container("cu-fleet/desktop", ["rm", "/usr/bin/openbox"], user="0")["Id"]
        )
        await fleet.ask(lambda api: api.start(lame))
        await fleet.ask(lambda api: api.wait(lame))
        await fleet.ask(lambda api: api.commit(lame, "cu-fleet-test/lame"))
        await fleet.ask(lambda api: api.remove_container(lame))
        try:
            with pytest.raises(UnavailableError, match="openbox") as caught:
                await fleet.start(image="cu-fleet-test/lame")
            assert caught.value.code == "start_failed"
            await fleet.backend.stop({"desktop": "dk_1"})
        finally:
            await fleet.ask(lambda api: api.remove_image("cu-fleet-test/lame"))

    in_fleet(engine, tmp_path, body)


def test_a_snapshot_has_a_bound(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        snapshots = fleet.backend.abilities.snapshots
        assert snapshots
        handle = await fleet.start(options={"snapshot": "1M"})
        await fleet.sh(handle, "head -c 3M /dev/urandom > big")
        with pytest.raises(UnavailableError) as caught:
            await snapshots.save(handle, "sn_1")
        assert caught.value.code == "snapshot_too_large"
        assert await snapshots.saved() == []
        await fleet.sh(handle, "rm big")
        saved = await snapshots.save(handle, "sn_1")
        assert 0 < saved.size_bytes < 1 << 20
        assert await snapshots.saved() == ["sn_1"]
        handle = await last(fleet.backend.start(fleet.spec(snapshot="sn_1")))
        await snapshots.delete("sn_1")
        assert await fleet.sh(handle, "echo lives on") == (0, "lives on\n")

    in_fleet(engine, tmp_path, body)


def test_what_a_desktop_wrote_is_counted_however_it_hides_it(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        one, two = await fleet.start("dk_1"), await fleet.start("dk_2")
        disk = fleet.backend.abilities.disk
        assert disk
        assert max(await asyncio.gather(disk.used(one), disk.used(two))) < 4 << 20
        exec_ = fleet.backend.abilities.exec
        assert exec_
        hidden = await exec_.exec(one, ["sh", "-c", "exec 3>~/gone; rm ~/gone; head -c 20M /dev/zero >&3; echo; cat"])
        async for _ in hidden.output():
            break
        wrote = """mkdir -p closed/in && head -c 10M /dev/zero >closed/in/file && chmod 000 closed
            head -c 5M /dev/zero >/tmp/file; head -c 5M /dev/zero >Shared/file; truncate -s 1T sparse
            mkdir many; cd many; seq 2000 | xargs touch"""
        assert (await fleet.sh(one, wrote))[0] == 0
        used = Counting(fleet.backend.house).used
        assert 40 << 20 < await used(fleet.backend.desk(one)) < 48 << 20
        assert await used(fleet.backend.desk(two)) < 4 << 20, "each is told of its own"
        await hidden.kill()
        await fleet.backend.stop(two)
        used = Counting(fleet.backend.house).used
        assert 20 << 20 < await used(fleet.backend.desk(one)) < 28 << 20, "the nameless file is gone with who had it"
        with pytest.raises(FleetError):
            await used(fleet.backend.desk(two))

    in_fleet(engine, tmp_path, body)


def test_an_old_snapshot_that_was_cut_off_is_listed_and_can_be_removed(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        snapshots = fleet.backend.abilities.snapshots
        assert snapshots
        await fleet.start()
        running = await fleet.ask(lambda api: api.inspect_container(fleet.name()))
        desk = fleet.backend.desk({"desktop": "dk_1"})
        await fleet.ask(lambda api: fleet.backend.snapshots._worker(api, desk, "sn_1", running))  # noqa: SLF001
        assert await snapshots.saved() == ["sn_1"]
        await snapshots.delete("sn_1")
        assert await snapshots.saved() == []

    in_fleet(engine, tmp_path, body)


def test_an_engine_that_is_not_there_is_told(tmp_path: Path) -> None:
    async def ask() -> None:
        for host, why in ((f"unix://{tmp_path}/none", "No such file"), (f"unix://{tmp_path}/shut", "refused")):
            with pytest.raises(UnavailableError, match=why) as caught:
                await Engine(host).do(lambda api: api.info())
            assert caught.value.code == "no_engine"

    with socket.socket(socket.AF_UNIX) as shut:
        shut.bind(str(tmp_path / "shut"))
        asyncio.run(ask())


def test_an_engine_that_dies_and_comes_back_leaves_nothing_behind(own_engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        for end in (own_engine.kill, own_engine.stop):
            await asyncio.to_thread(end)
            for call in (fleet.backend.endpoint(handle), fleet.backend.stop(handle), fleet.backend.found()):
                with pytest.raises(UnavailableError) as caught:
                    await call
                assert caught.value.code == "no_engine"
            await asyncio.to_thread(own_engine.start)
            assert [found.desktop for found in await fleet.backend.found()] == ["dk_1"]
            with pytest.raises(UnavailableError, match="has ended"):
                await fleet.backend.endpoint(handle)
            handle = await fleet.start()
            assert await fleet.sh(handle, "echo back") == (0, "back\n")
        for handles in range(1, 4):
            await take(fleet.backend.start(fleet.spec()), handles)
            await asyncio.to_thread(own_engine.kill)
            await asyncio.to_thread(own_engine.start)
        starting = asyncio.create_task(fleet.start(), name="starting")
        await until((fleet.home / "docker/dk_1/init").exists)
        await asyncio.to_thread(own_engine.kill)
        with pytest.raises(FleetError):
            await starting
        await asyncio.to_thread(own_engine.start)
        assert await fleet.sh(await fleet.start(), "echo back") == (0, "back\n")

    in_fleet(own_engine, tmp_path, body, timeout=240)


def test_what_somebody_else_does_to_a_container_is_told_or_mended(
    engine: PrivateDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_SECONDS", 1.0)
    monkeypatch.setattr(house, "_SECONDS_TO_END", 1.0)

    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        await fleet.ask(lambda api: api.pause(fleet.name()))
        with pytest.raises(UnavailableError, match="frozen"):
            await door_answers(fleet)
        freeze = fleet.backend.abilities.freeze
        assert freeze
        await freeze.thaw(handle)
        assert await fleet.sh(handle, "echo on") == (0, "on\n")
        await fleet.ask(lambda api: api.remove_container(fleet.name(), force=True))
        assert await fleet.backend.endpoint(handle) is None, "removed by hand"
        with pytest.raises(UnavailableError):
            await fleet.sh(handle, "echo on")
        assert (await fleet.backend.found())[0].what == "files and volume"
        handle = await fleet.start()
        assert await fleet.sh(handle, "echo anew") == (0, "anew\n")
        await fleet.ask(lambda api: api.rename(fleet.name(), "taken"))
        try:
            assert await fleet.backend.endpoint(handle) is None
            with pytest.raises(FleetError):
                await fleet.start()  # its volumes are in use by what somebody took for their own
        finally:
            await fleet.ask(lambda api: api.rename("taken", fleet.name()))

    in_fleet(engine, tmp_path, body)


async def door_answers(fleet: Fleet) -> None:
    await fleet.backend.ping(fleet.backend.desk({"desktop": "dk_1"}))


def test_a_foreign_network_of_our_name_is_left_alone(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        made = await fleet.ask(lambda api: api.create_network(fleet.name(), labels={"owner": "somebody else"}))
        try:
            with pytest.raises(ConflictError):
                await fleet.start(network="full", gates="none")
            await fleet.backend.stop({"desktop": "dk_1"})
            assert [one["Id"] for one in await fleet.ask(lambda api: api.networks(ids=[made["Id"]]))] == [made["Id"]]
        finally:
            await fleet.ask(lambda api: api.remove_network(made["Id"]))
        handle = await fleet.start(network="full", gates="none")
        assert await fleet.sh(handle, "echo mine") == (0, "mine\n")

    in_fleet(engine, tmp_path, body)


def test_a_refused_limit_is_told(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        with pytest.raises(FleetError, match="memory limit"):
            await fleet.start(limits={"memory": "1M"})
        assert await fleet.ask(fleet.left) != [], "what was begun is there until it is stopped"
        await fleet.backend.stop({"desktop": "dk_1"})
        assert await fleet.ask(fleet.left) == []

    in_fleet(engine, tmp_path, body)


def test_many_snapshots_at_once_keep_up_nobody(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        snapshots = fleet.backend.abilities.snapshots
        assert snapshots
        handles = await asyncio.gather(*(fleet.start(f"dk_{n}") for n in range(4)))
        saves = [asyncio.create_task(snapshots.save(handle, f"sn_{n}")) for n, handle in enumerate(handles)]
        await until(snapshots.saved)
        answered = 0
        while not all(save.done() for save in saves):
            await fleet.backend.found()
            answered += 1
        assert all(save.result().size_bytes for save in saves)
        assert answered > 4, "the engine was asked meanwhile, and answered"
        assert sorted(await snapshots.saved()) == [f"sn_{n}" for n in range(4)]
        assert await fleet.sh(handles[0], "echo thawed") == (0, "thawed\n")

    in_fleet(engine, tmp_path, body)


def test_an_engine_killed_in_mid_save_and_mid_restore_offers_nothing_half(
    own_engine: PrivateDocker, tmp_path: Path
) -> None:
    async def body(fleet: Fleet) -> None:
        snapshots = fleet.backend.abilities.snapshots
        assert snapshots
        handle = await fleet.start()
        await fleet.sh(handle, "head -c 30M /dev/urandom >big; echo whole >mine")
        saving = asyncio.create_task(snapshots.save(handle, "sn_1"), name="save")
        await until(snapshots.saved)
        await asyncio.to_thread(own_engine.kill)
        with pytest.raises(FleetError):
            await saving
        await asyncio.to_thread(own_engine.start)
        for left in await snapshots.saved():
            assert left == "sn_1"
            with pytest.raises(FleetError):
                await last(fleet.backend.start(fleet.spec("dk_2", snapshot="sn_1")))
            await fleet.backend.stop({"desktop": "dk_2"})
            await snapshots.delete("sn_1")
        assert await snapshots.saved() == []
        handle = await fleet.start()
        await fleet.sh(handle, "head -c 30M /dev/urandom >big; echo whole >mine")
        await snapshots.save(handle, "sn_1")
        restoring = asyncio.create_task(last(snapshots.restore(handle, fleet.spec(snapshot="sn_1"))), name="restore")
        await until((fleet.home / "docker/dk_1/init/state.tar").exists)
        await asyncio.to_thread(own_engine.kill)
        with pytest.raises(FleetError):
            await restoring
        await asyncio.to_thread(own_engine.start)
        handle = await last(snapshots.restore(handle, fleet.spec(snapshot="sn_1")))
        assert await fleet.sh(handle, "cat mine") == (0, "whole\n")

    in_fleet(own_engine, tmp_path, body, timeout=240)


def test_a_full_disk_is_told_and_takes_nobody_else_along(own_engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        one = await fleet.start("dk_1")
        assert "No space" in (await fleet.sh(one, "head -c 900M /dev/zero >big"))[1]
        snapshots = fleet.backend.abilities.snapshots
        assert snapshots
        with pytest.raises(UnavailableError, match="disk is full"):
            await snapshots.save(one, "sn_1")
        assert await snapshots.saved() == []
        assert await fleet.sh(one, "rm big; echo room") == (0, "room\n")
        await fleet.start("dk_2")

    in_fleet(own_engine, tmp_path, body)
