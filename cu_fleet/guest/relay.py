"""Passes what comes at a desktop's socket on to a port, beside a container in which nothing is ours.

    python3 -I -S -c SOURCE PORT

It shares that container's network and nothing else, and says nothing of its own: whoever connects while nobody listens
at the port is hung up on.
"""

import os
import socket
import sys
import threading
from contextlib import suppress

DOOR = "/run/cu-fleet/rfb.sock"
_MOST = 16  # connections at once
_CHUNK = 256 << 10
_SECONDS = 10.0


def reach(port: int) -> socket.socket:
    try:
        return socket.create_connection(("127.0.0.1", port), _SECONDS)
    except OSError:
        return socket.create_connection(("::1", port), _SECONDS)


def pass_on(near: socket.socket, far: socket.socket) -> None:
    """One way of a connection, until either side ends; then both ways end."""
    data = memoryview(bytearray(_CHUNK))
    with suppress(OSError):
        while size := near.recv_into(data):
            far.sendall(data[:size])
    for one in (near, far):
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def serve(near: socket.socket, port: int, room: threading.Semaphore) -> None:
    with room, near, suppress(OSError), reach(port) as far:
        far.settimeout(None)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=pass_on, args=(far, near), daemon=True)
        back.start()
        pass_on(near, far)
        back.join()


def main(port: int, path: str = DOOR) -> None:
    room = threading.Semaphore(_MOST)
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108  # pathlib would cost every one of them a megabyte
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path)
        door.listen(_MOST)
        while True:
            threading.Thread(target=serve, args=(door.accept()[0], port, room), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]))
