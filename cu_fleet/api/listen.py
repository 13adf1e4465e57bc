"""The two listening sockets, made by hand because both have a catch.

A unix socket's address holds 108 bytes, a home's path may be longer: it is bound through `/proc/self/fd/N/`, a short
name for the open folder. Its mode is set on the socket before it has a name, so that there is no moment in which
others could connect; and no umask, which belongs to the whole process, is touched.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cu_fleet.model.errors import InvalidError, UnavailableError

BACKLOG = 512


@contextmanager
def unix_listener(path: Path) -> Iterator[socket.socket]:
    """Listen at `path`, in place of a stale socket: the caller holds the home's lock, so nobody listens there."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            os.fchmod(listener.fileno(), 0o600)
            with suppress(FileNotFoundError):
                os.unlink(path.name, dir_fd=folder)
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            try:
                listener.listen(BACKLOG)
                listener.setblocking(False)
                yield listener
            finally:
                with suppress(FileNotFoundError):
                    os.unlink(path.name, dir_fd=folder)
    finally:
        os.close(folder)


@contextmanager
def tcp_listener(host: str, port: int, *, fallback: bool) -> Iterator[socket.socket]:
    """Listen at host and port; with `fallback`, at any free port if that one is taken."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as e:
        raise InvalidError(f"cannot listen on {host!r}: {e.strerror}", remedy="set CU_FLEET_HOST", host=host) from None
    # The protocol is named, for only then do event loops turn Nagle's algorithm off on what is accepted.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as e:
            if e.errno != errno.EADDRINUSE or not fallback:
                raise _cannot_listen(host, port, e) from None
            listener.bind((address[0], 0))
            listener.listen(BACKLOG)
        listener.setblocking(False)
        yield listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not bound
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _cannot_listen(host: str, port: int, error: OSError) -> UnavailableError:
    if error.errno != errno.EADDRINUSE:
        return UnavailableError(
            f"cannot listen on {host}:{port}: {error.strerror}", remedy="choose another: --host, --port", port=port
        )
    holder = holder_of(port)
    by = f" by {holder[1]} (process {holder[0]})" if holder else ""
    return UnavailableError(
        f"port {port} on {host} is in use{by}",
        remedy="stop that program, or choose another port: --port N (0: any free one)",
        code="port_in_use",
        port=port,
        pid=holder[0] if holder else None,
    )


def holder_of(port: int) -> tuple[int, str] | None:
    """Pid and name of the process that listens on a TCP port, as far as this user may see it."""
    inodes = {f"socket:[{inode}]" for inode in _listening(port)}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if str(link.readlink()) in inodes:
                process = link.parent.parent
                return int(process.name), (process / "comm").read_text().strip()
    return None


def _listening(port: int) -> Iterator[str]:
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):
            for row in Path(table).read_text().splitlines()[1:]:
                fields = row.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]
