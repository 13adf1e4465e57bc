"""A network for one test, with a world outside and much to be kept from; and the worst guest there can be.

`alone(work, …)` runs `work` in a process of its own, in network and mount namespaces of its own: its loopback is this
machine's there, 203.0.113.5 the world outside, and the resolver listens where only this machine itself reaches it. At
/mnt/tun is a device that is open to all.
"""

import contextlib
import ctypes
import multiprocessing
import socket
import struct
import subprocess
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.support import command_lines

OUTSIDE, RESOLVER, NAME = "203.0.113.5", "127.0.0.53", "cu-fleet.test"
_NEWNS, _NEWNET = 0x20000, 0x40000000
_FORKS = multiprocessing.get_context("forkserver")


def alone(work: Callable[..., None], *words: Any, timeout: float) -> None:
    hears, says = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_there, args=(says, work, words), name=work.__name__)
    process.start()
    says.close()
    said = "it did not end in time"
    if hears.poll(timeout):
        with contextlib.suppress(EOFError):
            said = "it died"
            said = hears.recv()
    process.kill() if said else process.join()
    process.join()
    if said:
        pytest.fail(said, pytrace=False)


def _there(says: Connection, work: Callable[..., None], words: tuple[Any, ...]) -> None:
    try:
        assert ctypes.CDLL(None).unshare(_NEWNS | _NEWNET) == 0, "namespaces need root"
        _do("mount --make-rprivate /", "mount -t tmpfs tmpfs /mnt")
        Path("/mnt/resolv.conf").write_text(f"nameserver {RESOLVER}\n")
        _do("mount --bind /mnt/resolv.conf /etc/resolv.conf", "mknod -m 666 /mnt/tun c 10 200")
        _do("ip link set lo up", f"ip address add {OUTSIDE}/32 dev lo")
        work(*words)
        says.send("")
    except BaseException:  # noqa: BLE001  # it is told to the test
        says.send(traceback.format_exc())


def _do(*commands: str) -> None:
    for command in commands:
        subprocess.run(command.split(), check=True)


@contextlib.contextmanager
def world() -> Iterator[dict[str, int]]:
    """Servers outside, and at both loopbacks: by name, the ports of those who say their name to everybody."""
    with contextlib.ExitStack() as stack:
        ports = {}
        for name, host in (("outside", OUTSIDE), ("loopback", "127.0.0.1"), ("loopback6", "::1")):
            server = stack.enter_context(socket.create_server((host, 0), family=_family(host)))
            threading.Thread(target=_serve, args=(server, name), daemon=True).start()
            ports[name] = server.getsockname()[1]
        resolver = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        resolver.bind((RESOLVER, 53))
        threading.Thread(target=_resolve, args=(resolver,), daemon=True).start()
        yield ports


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _serve(server: socket.socket, name: str) -> None:
    held = []
    with contextlib.suppress(OSError):
        while True:
            one, _ = server.accept()
            one.sendall(f"HTTP/1.0 200 OK\r\n\r\n{name}\n".encode())
            one.shutdown(socket.SHUT_WR)
            held.append(one)


def _resolve(resolver: socket.socket) -> None:
    """Every name is one of the world outside, and of IPv4."""
    with contextlib.suppress(OSError):
        while True:
            asked, who = resolver.recvfrom(512)
            end = asked.index(b"\0", 12) + 5
            address = asked[end - 4 : end - 2] == b"\0\1"
            answer = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(OUTSIDE)
            head = asked[:2] + struct.pack("!HHHHH", 0x8180, 1, int(address), 0, 0)
            resolver.sendto(head + asked[12:end] + (answer if address else b""), who)


def processes(mark: str) -> list[str]:
    """What runs and has this in its arguments."""
    return [words for words in command_lines().values() if mark in words]


class Guest:
    """In QEMU's place: whoever is root in a machine can send any frame."""

    MAC, IP = bytes.fromhex("020000000001"), "10.0.2.15"

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self._rest = b""
        self._port = 40_000
        self._router = self._found_router()

    def close(self) -> None:
        self._sock.close()

    def tries(self, host: str, port: int, seconds: float = 10.0) -> str:
        """What comes of the first packet of a connection to there."""
        self._port += 1
        self._send(0x86DD if ":" in host else 0x0800, _syn(host, self._port, port))
        until = time.monotonic() + seconds
        while frame := self._frame(until):
            answer = _flags(frame, self._port)
            if answer is not None:
                return {0x12: "connected", 0x14: "refused"}.get(answer, f"something with flags {answer:#x}")
        return "silence"

    def _found_router(self) -> bytes:
        who = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 1, self.MAC, _ip(self.IP), bytes(6), _ip("10.0.2.2"))
        self._router = b"\xff" * 6
        self._send(0x0806, who)
        frame = self._frame(time.monotonic() + 20)
        assert frame, "nobody is there"
        assert frame[12:14] == b"\x08\x06"
        return frame[6:12]

    def _send(self, kind: int, data: bytes) -> None:
        frame = self._router + self.MAC + struct.pack("!H", kind) + data
        self._sock.sendall(struct.pack("!I", len(frame)) + frame)

    def _frame(self, until: float) -> bytes:
        while True:
            size = struct.unpack("!I", self._rest[:4])[0] if len(self._rest) >= 4 else 1 << 20
            if len(self._rest) >= 4 + size:
                frame, self._rest = self._rest[4 : 4 + size], self._rest[4 + size :]
                return frame
            self._sock.settimeout(max(until - time.monotonic(), 0.001))
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                return b""
            assert data, "the router has hung up"
            self._rest += data


def _ip(host: str) -> bytes:
    return socket.inet_pton(_family(host), host)


def _syn(host: str, source: int, port: int) -> bytes:
    six = ":" in host
    ours, theirs = _ip("fd00::100" if six else Guest.IP), _ip(host)
    tcp = struct.pack("!HHIIBBHHH", source, port, 1000, 0, 6 << 4, 2, 65000, 0, 0) + b"\x02\x04\x05\xb4"
    checked = ours + theirs + struct.pack("!II" if six else "!HH", *((len(tcp), 6) if six else (6, len(tcp))))
    tcp = tcp[:16] + _sum(checked + tcp) + tcp[18:]
    if six:
        return struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + ours + theirs + tcp
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 1, 0x4000, 64, 6, 0, ours, theirs)
    return head[:10] + _sum(head) + head[12:] + tcp


def _sum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def _flags(frame: bytes, port: int) -> int | None:
    """The flags of a TCP segment for this port of ours; None if it is something else."""
    at = {b"\x08\x00": 14 + 20, b"\x86\xdd": 14 + 40}.get(frame[12:14])
    if at is None or len(frame) < at + 14 or frame[at + 2 : at + 4] != struct.pack("!H", port):
        return None
    return frame[at + 13]
