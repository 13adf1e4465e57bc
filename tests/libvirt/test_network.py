"""Machines with a network: what it reaches, what it never does, and that nothing of it stays."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from cu_fleet.backends import slirp
from cu_fleet.backends.base import Place, Spec
from cu_fleet.backends.libvirt import LibvirtVncBackend, checks, domain, machines, network, rest
from cu_fleet.backends.libvirt.layout import Desk, Layout
from cu_fleet.backends.libvirt.machines import Names
from cu_fleet.guest import network as guest
from cu_fleet.model.errors import ConflictError, UnavailableError
from cu_fleet.model.names import new_id
from cu_fleet.model.profile import Profile
from cu_fleet.testing.libvirtd import PrivateLibvirt
from tests.libvirt import hollow, tiny
from tests.libvirt.outside import NAME, OUTSIDE, Guest, alone, processes, world
from tests.support import command_lines, run, until

SOMEBODY = 47_112  # an ordinary user, as whom a desktop's network runs
NETWORKED = Profile.model_validate({"name": "p", "backend": "libvirt", "network": "full"})


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place that users of desktops can reach; pytest's own are closed."""
    with tempfile.TemporaryDirectory(prefix="cu-fleet-network-", dir="/var/tmp") as one:
        Path(one).chmod(0o711)
        yield Path(one)


def described(profile: Profile, desk: Desk) -> ElementTree.Element:
    machine = domain.Machine.of(profile, "qemu", "q35", Path("/image"), Path("/seed"))
    return ElementTree.fromstring(domain.xml(machine, desk, "a", "f", None))  # noqa: S314  # our own


def test_a_card_is_added_only_where_the_profile_asks_and_leads_to_the_desktops_own_link(tmp_path: Path) -> None:
    layout = Layout(Place(tmp_path / "home", "f"), tmp_path / "sto,re")
    one, two = layout.desk("dk_1"), layout.desk("dk_2")
    assert b"commandline" not in ElementTree.tostring(described(NETWORKED.but(network="none"), one))
    top = described(NETWORKED, one)
    assert network.cards(top)
    names = Names("a", Path("/seed"), None, network=True)
    renamed = machines.renamed(ElementTree.tostring(top, "unicode"), two, names)
    assert str(one.dir.name) not in renamed
    assert f"{tmp_path}/sto,,re/f/desktops/dk_2/run/net/link" in renamed, "QEMU takes two commas for one"
    assert network.place(one)["mac"] != network.place(two)["mac"]


def test_a_saved_machine_wakes_only_with_the_network_its_profile_has_by_now(tmp_path: Path) -> None:
    desk = Layout(Place(tmp_path / "home", "f"), tmp_path).desk("dk_1")
    for has in (True, False):
        top = described(NETWORKED.but(network="full" if has else "none"), desk)
        network.must_be(top, has, desk)
        with pytest.raises(ConflictError, match="its profile says"):
            network.must_be(top, not has, desk)


def test_what_is_missing_is_said_with_the_packages_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path="": None if name == "bwrap" else f"{path}/{name}")
    with pytest.raises(UnavailableError, match=r"need bubblewrap for a network.*apt-get install bubblewrap"):
        checks.equipment(NETWORKED)
    checks.equipment(NETWORKED.but(network="none"))


# a network, without a machine


@pytest.mark.real
@pytest.mark.parametrize("who", ["root", "user"])
def test_whatever_a_guest_sends_no_loopback_hears_it(folder: Path, who: str) -> None:
    alone(_hostile, folder, who, timeout=120)


def _hostile(folder: Path, who: str) -> None:
    desk = _desk(folder)
    with world() as ports:
        if who == "user":
            _become_somebody(desk)
        network.begin(desk, SOMEBODY if who == "root" else None)
        guest = Guest(desk.net / "link")
        network.prove(desk)
        assert guest.tries(OUTSIDE, ports["outside"]) == "connected"
        for host in ("127.0.0.1", "127.0.0.53", "0.0.0.0", "10.0.2.2", "10.0.2.100"):  # noqa: S104
            assert guest.tries(host, ports["loopback"]) == "refused", host
        for host in ("::1", "::ffff:127.0.0.1", "::"):
            port = ports["loopback6" if host == "::1" else "loopback"]
            assert guest.tries(host, port, 0.5) != "connected", host
        assert guest.tries(OUTSIDE, ports["outside"]) == "connected", "and it goes on"
        guest.close()
    run(until(lambda: not processes(str(desk.net))), 60)


def _become_somebody(desk: Desk) -> None:
    """Who has a tun device that is open to all, as on most machines."""
    subprocess.run(["mount", "--bind", "/mnt/tun", str(network.TUN)], check=True)
    os.chown(desk.dir, SOMEBODY, SOMEBODY)
    os.setgroups([])
    os.setresgid(SOMEBODY, SOMEBODY, SOMEBODY)
    os.setresuid(SOMEBODY, SOMEBODY, SOMEBODY)


def _desk(folder: Path) -> Desk:
    desk = Desk("dk_1", folder / "dk_1", "name", "12345678-1234-4234-8234-123456789abc")
    desk.run.mkdir(parents=True)
    desk.dir.chmod(0o711)
    os.chown(desk.run, SOMEBODY, SOMEBODY)
    return desk


@pytest.mark.real
def test_whoever_makes_it_may_die_at_any_step(folder: Path) -> None:
    steps = 0
    while True:
        desk = _desk(folder / str(steps))
        child = os.fork()
        if not child:
            _die_at(desk, steps)
        steps += 1
        _, status = os.waitpid(child, 0)
        run(until(lambda desk=desk: _ended(desk)), 60)
        if not os.WIFSIGNALED(status):
            break
    assert os.waitstatus_to_exitcode(status) == 0
    assert steps > 4


def _die_at(desk: Desk, step: int) -> None:
    left = step

    def seen(event: str, words: tuple[Any, ...]) -> None:
        nonlocal left
        if event in ("os.mkdir", "os.chown", "subprocess.Popen", "os.chdir") or (
            event == "open" and "/ns/" in str(words)
        ):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    code = 1
    try:
        sys.addaudithook(seen)
        network.begin(desk, SOMEBODY)
        code = 0
    finally:
        os._exit(code)


def _ended(desk: Desk) -> bool:
    network.end(desk)
    return not processes(str(desk.net))


@pytest.mark.real
def test_it_is_an_error_when_nobody_connects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_SECONDS_TO_SHUT", 0.2)
    desk = _desk(folder)
    network.begin(desk, SOMEBODY)
    with pytest.raises(UnavailableError, match="did not connect to its network"):
        network.prove(desk)
    network.end(desk)
    monkeypatch.setattr(slirp, "_OWN_TUN", "exit 1")
    with pytest.raises(UnavailableError, match="slirp4netns could not connect it"):
        network.begin(_desk(folder / "other"), SOMEBODY)
    run(until(lambda: not processes(str(folder))))


# the machine's own side


@pytest.mark.real
def test_a_machine_takes_its_place_and_hangs_up_what_it_had() -> None:
    alone(_takes_its_place, timeout=60)


def _takes_its_place() -> None:
    for command in (
        "ip link add eth0 type veth peer name far",
        "ip link set far up",
    ):
        subprocess.run(command.split(), check=True)
    desk = Desk("dk_1", Path("/x"), "name", "12345678-1234-4234-8234-123456789abc")
    guest.connect(network.place(desk))
    with socket.create_server((network.PLACE["address"], 0)) as server, socket.create_server(("127.0.0.1", 0)) as own:
        ends = [socket.create_connection(one.getsockname()) for one in (server, own)]
        others = [one.accept()[0] for one in (server, own)]
        neighbour = ["10.0.2.8", "lladdr", "02:00:00:00:00:08", "dev", "eth0"]
        subprocess.run(["ip", "neighbour", "add", *neighbour], check=True)
        guest.connect(network.place(desk))
        for end in ends:
            end.settimeout(20)
        with pytest.raises(ConnectionError):
            ends[0].recv(1)
        others[1].sendall(b"x")
        assert ends[1].recv(1) == b"x", "what is inside alone goes on"
        for end in (*ends, *others):
            end.close()
    told = subprocess.run(["ip", "-4", "address", "show", "dev", "eth0"], capture_output=True, text=True, check=True)
    assert "inet 10.0.2.15/24" in told.stdout
    link, routes, neighbours = (
        subprocess.run(["ip", *words.split()], capture_output=True, text=True, check=True).stdout
        for words in ("link show dev eth0", "route", "neighbour show dev eth0")
    )
    assert network.place(desk)["mac"] in link
    assert "default via 10.0.2.2 dev eth0" in routes
    assert "10.0.2.8" not in neighbours
    assert Path("/etc/resolv.conf").read_text() == "nameserver 10.0.2.3\n"


# with machines


@pytest.mark.real
@pytest.mark.slow
def test_it_comes_and_goes_with_its_machine(
    libvirtd: PrivateLibvirt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hollow.empty(monkeypatch)
    store = libvirtd.folder / "networked"
    store.mkdir(mode=0o711)
    store.chmod(0o711)
    hollow.make_image(store)
    backend = hollow.Hollow(Place(tmp_path, "networked"), libvirtd.uri, store)
    snapshots = backend.abilities.snapshots
    assert snapshots

    def spec(desktop: str, snapshot: str | None = None) -> Spec:
        return replace(hollow.spec(desktop, snapshot), profile=hollow.PROFILE.but(network="full"))

    def of(desktop: str) -> list[str]:
        return processes(f"{store}/networked/desktops/{desktop}/run/net")

    async def body() -> None:
        one, two = await asyncio.gather(*(hollow.last(backend.start(spec(name))) for name in ("dk_1", "dk_2")))
        assert of("dk_1")
        assert of("dk_2")
        await snapshots.save(one, "sn_1")
        network.prove(backend.desk(one))
        one = await hollow.last(snapshots.restore(one, spec("dk_1", "sn_1")))
        network.prove(backend.desk(one))
        with pytest.raises(ConflictError, match="its profile says none"):
            await hollow.last(backend.start(hollow.spec("dk_3", "sn_1")))
        await backend.stop({"desktop": "dk_3"})
        await snapshots.delete("sn_1")
        await backend.stop(one)
        assert not [words for words in of("dk_1") if "cu-fleet-network" in words]
        assert of("dk_2"), "each has its own"
        os.kill(_qemu(backend.desk(two)), signal.SIGKILL)
        await until(lambda: not of("dk_2"))
        await backend.stop(two)

        begun = backend.layout.desk("dk_4")  # whose maker died before there was a machine
        uid = backend.layout.uids.take(begun.id)
        backend.layout.make(begun, uid)
        await asyncio.to_thread(network.begin, begun, uid)
        [found] = await backend.found()
        await backend.stop(found.handle)
        assert not of("dk_4")
        assert await backend.found() == []

    run(body(), 300)
    run(until(lambda: not processes(f"{store}/")))


def _qemu(desk: Desk) -> int:
    [pid] = [pid for pid, words in command_lines().items() if f" guest={desk.name},debug-threads=on " in words]
    return pid


DHCP = r"""
printf '#!/bin/sh\n[ "$1" = bound ] || exit 0\nip address add $ip/24 dev eth0; ip route add default via $router
echo nameserver $dns >/etc/resolv.conf' >/bound
chmod +x /bound; mkdir -p /etc; ip link set lo up; ip link set eth0 up
udhcpc -q -n -t 20 -i eth0 -s /bound >/dev/tty1 2>&1 &
"""


@pytest.mark.real
@pytest.mark.slow
def test_an_image_of_somebody_elses_gets_its_place_by_dhcp_and_reaches_the_world(
    libvirtd: PrivateLibvirt, folder: Path
) -> None:
    image = tiny.make(folder, modules=("failover", "net_failover", "virtio_net"), first=DHCP)
    alone(_reaches_the_world, libvirtd.uri, image, timeout=600)
    run(until(lambda: not processes(f"{folder}/")), 60)


def _reaches_the_world(uri: str, image: Path) -> None:
    rest._REST = 5.0  # noqa: SLF001  # of a system that does nothing, that is long enough
    profile = Profile.model_validate(
        {
            "name": "theirs",
            "backend": "libvirt-vnc",
            "image": str(image),
            "network": "full",
            "screen": {"width": 1280, "height": 800},
            "limits": {"memory": "256M", "cpus": 1},
            "options": {"firmware": "uefi", "hardware": "virtio", "acceleration": "none"},
        }
    )
    backend = LibvirtVncBackend(Place(image.parent / "home", "reaches"), uri, image.parent)
    snapshots = backend.abilities.snapshots
    assert snapshots

    def spec(desktop: str, snapshot: str | None = None) -> Spec:
        return Spec(desktop, profile, new_id("bt"), desktop, snapshot)

    async def ask(desktop: str, words: str) -> str:
        def work() -> str:
            with tiny.Shell(backend.layout.desk(desktop).console) as shell:
                return shell.ask(words)

        return await asyncio.to_thread(work)

    async def body(ports: dict[str, int]) -> None:
        fetch = f"wget -q -O - http://{NAME}:{ports['outside']}/"
        await asyncio.gather(*(hollow.last(backend.start(spec(name))) for name in ("dk_1", "dk_2")))
        for desktop in ("dk_1", "dk_2"):
            await ask(desktop, "until [ -s /etc/resolv.conf ]; do sleep 1; done")
        assert await ask("dk_1", fetch) == "outside"
        assert await ask("dk_2", fetch) == "outside"
        await ask("dk_2", "nc -l -p 7000 -e echo neighbour & true")
        for where in (f"10.0.2.2 {ports['loopback']}", f"{OUTSIDE} {ports['loopback']}", "10.0.2.15 7000"):
            assert "refused" in await ask("dk_1", f"nc {where} </dev/null 2>&1 || true"), where
        handle = {"desktop": "dk_1", "boot": "b"}
        await snapshots.save(handle, "sn_1")
        assert await ask("dk_1", fetch) == "outside", "it goes on as itself"
        await hollow.last(snapshots.restore(handle, spec("dk_1", "sn_1")))
        assert await ask("dk_1", fetch) == "outside", "and anew"
        await snapshots.delete("sn_1")
        for found in await backend.found():
            await backend.stop(found.handle)

    with world() as ports:
        run(body(ports), 570)
