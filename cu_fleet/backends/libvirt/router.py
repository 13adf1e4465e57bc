"""The router of one machine's network, in a namespace of its own: needs nothing but Python's own library and QEMU.

It is a second QEMU, without any machine, that knows of nothing but its user-mode network and the first one's link,
which is handed over when that has connected. One guest is served: whoever comes later is turned away, once all is up.
When either end hangs up, all of it ends.
"""

import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

LINK = "/tmp/link"  # noqa: S108  # where a folder of the desktop's is shown
_QEMU = """setpriv --pdeathsig=KILL
    qemu-system-x86_64 -machine none -accel tcg,tb-size=1 -nodefaults -no-user-config -display none -qmp stdio
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
    -netdev user,id=world,ipv6=off -netdev hubport,id=a,hubid=0,netdev=world
    -netdev stream,id=guest,server=off,addr.type=fd,addr.str={fd} -netdev hubport,id=b,hubid=0,netdev=guest"""


def _serve(guest: socket.socket) -> subprocess.Popen[bytes]:
    """Returns when it is up, which is when it answers."""
    command = _QEMU.format(fd=guest.fileno()).split()
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, pass_fds=[guest.fileno()], stdin=pipe, stdout=pipe, restore_signals=False)
    assert process.stdin
    assert process.stdout
    process.stdin.write(b'{"execute": "qmp_capabilities"}\n')
    process.stdin.flush()
    if not process.stdout.readline() or b"return" not in process.stdout.readline():
        sys.exit("QEMU makes no network")
    return process


def _hangs_up(guest: socket.socket) -> None:
    ends = select.poll()
    ends.register(guest, select.POLLRDHUP)
    ends.poll()


def _ends_all(work: Callable[..., object], *words: object) -> None:
    def do() -> None:
        try:
            work(*words)
        finally:
            os._exit(0)

    threading.Thread(target=do).start()


def main() -> None:
    print("here", flush=True)
    if not sys.stdin.readline():
        return  # whoever was about to connect the namespace has died
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(LINK)
    listener.listen(1)
    print("up", flush=True)
    guest = listener.accept()[0]
    _ends_all(_hangs_up, guest)
    _ends_all(_serve(guest).wait)
    while True:
        listener.accept()[0].close()


if __name__ == "__main__":
    main()
