"""Between QEMU and passt, in passt's namespace: one program of its own, that needs nothing but Python's own library.

Frames pass as they are, but for one. Where a connection is refused, passt as Debian 12 has it answers with a reset that
acknowledges nothing; nobody who is still connecting may believe such a one, and programs waited for minutes until they
were told. It bears the right number all the same, and so becomes an answer by one bit.

One guest is served. Whoever comes later is turned away, and when either end hangs up, all of it ends.
"""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

LINK = "/tmp/link"  # noqa: S108  # where a folder of the desktop's is shown
_MOST = 1 << 18
_IPV4, _TCP, _RESET, _ACK = b"\x08\x00", 6, 0x04, 0x10


def mend(frames: bytearray) -> int:
    """Mend whole frames in place; returns where the first one begins that is not whole yet."""
    at = 0
    while (end := at + 4 + int.from_bytes(frames[at : at + 4], "big")) <= len(frames) and at + 4 <= len(frames):
        if frames[at + 16 : at + 18] == _IPV4 and frames[at + 27] == _TCP:
            tcp = at + 18 + 4 * (frames[at + 18] & 15)
            if tcp + 20 <= end and frames[tcp + 13] == _RESET:
                _acknowledge(frames, tcp)
        at = end
    return at


def _acknowledge(frames: bytearray, tcp: int) -> None:
    frames[tcp + 13] |= _ACK
    total = (~int.from_bytes(frames[tcp + 16 : tcp + 18], "big") & 0xFFFF) + _ACK
    frames[tcp + 16 : tcp + 18] = (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")


def _to_guest(passt: socket.socket, guest: socket.socket) -> None:
    frames = bytearray()
    while data := passt.recv(_MOST):
        frames += data
        if whole := mend(frames):
            guest.sendall(frames[:whole])
            del frames[:whole]


def _from_guest(passt: socket.socket, guest: socket.socket) -> None:
    while data := guest.recv(_MOST):
        passt.sendall(data)


def _ends_all(work: Callable[..., object], *words: object) -> None:
    def do() -> None:
        try:
            work(*words)
        finally:
            os._exit(0)

    threading.Thread(target=do).start()


def main() -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(LINK)
    listener.listen(1)
    print("here", flush=True)
    if not sys.stdin.readline():
        return  # whoever was about to connect the namespace has died
    passt, far = socket.socketpair()
    command = [*sys.argv[1:], "--fd", str(far.fileno())]
    _ends_all(subprocess.Popen(command, pass_fds=[far.fileno()]).wait)
    far.close()
    guest = listener.accept()[0]
    for work in (_to_guest, _from_guest):
        _ends_all(work, passt, guest)
    while True:
        listener.accept()[0].close()


if __name__ == "__main__":
    main()
