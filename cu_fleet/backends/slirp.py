"""The way out of a network namespace: slirp4netns, which lets nobody at this machine's loopback.

Whoever begins it hands it the namespaces as descriptors, which nothing else can come to stand for. It brings the
loopback up in there, as bubblewrap does: whoever comes second may fail at that, so bubblewrap must be through with it.
"""

import fcntl
from collections.abc import Sequence
from dataclasses import dataclass

_NS_GET_USERNS = 0xB701
_OWN_TUN = """mount -t tmpfs tmpfs /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun &&
exec "$@" """  # the machine's own may be closed to all but root


@dataclass(frozen=True)
class Ends:
    """Its descriptors, by their numbers in its own process."""

    net: int
    user: int  # the namespace that owns it
    ready: int  # where it says that all is up
    tether: int  # at whose end it ends


def owner(net: int) -> int:
    """The user namespace that a network namespace belongs to, as a new descriptor."""
    return fcntl.ioctl(net, _NS_GET_USERNS)


def command(fds: Ends, marker: str, uid: int | None) -> list[str]:
    """Whatever process of it there is bears the marker; in the end it runs as this user, if one is given."""
    words = ["slirp4netns", "--configure", "--mtu=65520", "--disable-host-loopback", "--enable-seccomp"]
    words += [f"--ready-fd={fds.ready}", f"--exit-fd={fds.tether}", "--netns-type=path"]
    words += [f"--userns-path=/proc/self/fd/{fds.user}", f"/proc/self/fd/{fds.net}", "tap0"]
    marked = [*dropped(uid), *named(marker, words)]
    if uid is None:
        return marked
    return ["unshare", "--mount", "--propagation", "slave", "sh", "-c", _OWN_TUN, marker, *marked]


def dropped(uid: int | None) -> list[str]:
    """What runs the words after it as this user."""
    return [] if uid is None else ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]


def named(marker: str, words: Sequence[str]) -> list[str]:
    """The same program, whose own name for itself is the marker."""
    return ["bash", "-c", 'exec -a "$0" "$@"', marker, *words]
