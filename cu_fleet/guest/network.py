"""A machine's place in its network, which it is told of when it wakes, as somebody new or where it was saved before.

The network is another than that of the state it woke from, though it looks the same: what was connected is not any
more and hears so at once, and no neighbour is known.
"""

import fcntl
import socket
import struct
import subprocess
from pathlib import Path

CARD = b"eth0"
RESOLVER = "/etc/resolv.conf"
_SIOCADDRT, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x890B, 0x8914, 0x8916, 0x891C
_SIOCSIFHWADDR = 0x8924
_UP, _ETHER, _ROUTE_UP, _GATEWAY = 1, 1, 1, 2


def bring_up_card() -> None:
    """Its driver is there before the machine is saved, whatever else is still being looked for.

    What is written anew at every waking is no affair of a disk's.
    """
    subprocess.run(["modprobe", "virtio_net"], stdin=subprocess.DEVNULL, check=True)
    Path(f"{RESOLVER}.new").symlink_to("/run/cu-fleet-resolver")
    Path(f"{RESOLVER}.new").replace(RESOLVER)


def connect(who: dict[str, str]) -> None:
    hang_up(who["address"])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as kernel:

        def tell(request: int, value: bytes) -> None:
            fcntl.ioctl(kernel, request, struct.pack("16s24s", CARD, value))

        tell(_SIOCSIFFLAGS, struct.pack("H", 0))  # so that routes and neighbours are forgotten
        tell(_SIOCSIFHWADDR, struct.pack("H6s", _ETHER, bytes.fromhex(who["mac"].replace(":", ""))))
        tell(_SIOCSIFADDR, _address(who["address"]))
        tell(_SIOCSIFNETMASK, _address(who["netmask"]))
        tell(_SIOCSIFFLAGS, struct.pack("H", _UP))
        everywhere, router = _address("0.0.0.0"), _address(who["gateway"])  # noqa: S104  # a route, not a listener
        route = struct.pack("8x16s16s16sH62x", everywhere, router, everywhere, _ROUTE_UP | _GATEWAY)
        fcntl.ioctl(kernel, _SIOCADDRT, route)
    Path(RESOLVER).write_text(f"nameserver {who['resolver']}\n")


def hang_up(address: str) -> None:
    """End the connections that a saved machine had, of which nobody at the other end knows any more."""
    ours = socket.inet_aton(address)[::-1].hex().upper()
    if f" {ours}:" in Path("/proc/net/tcp").read_text():
        subprocess.run(["ss", "--kill", "--tcp", "src", address], stdout=subprocess.DEVNULL, check=True)


def _address(dotted: str) -> bytes:
    return struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(dotted))
