"""The doors of a desktop, as the controller goes through them: its RFB socket and its exec socket.

Both lie in a folder that the inside can write, so nothing there is trusted: a name is opened relative to the folder
without following links, must be a socket of the desktop's own, and is connected to by descriptor, which also serves
homes whose path is longer than a socket's may be. Whatever is read is bounded.
"""

import array
import asyncio
import contextlib
import os
import socket
import stat
import weakref
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from cu_fleet.guest.init import MOST_REQUEST, pack
from cu_fleet.model.errors import BrokenError, InvalidError, UnavailableError

_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINE = 4096
_SECONDS = 10.0  # for an answer that a working desktop gives at once
Via = Callable[[str], socket.socket]  # another way to a door of this name than through the folder


class Desk(Protocol):
    """As much of a desktop as its doors need."""

    @property
    def id(self) -> str: ...

    @property
    def run(self) -> Path:
        """The folder with its sockets and its log, as seen out here."""
        ...


def connect(desk: Desk, name: str, uid: int) -> socket.socket:
    """A connected, non-blocking socket."""
    fds: list[int] = []
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        fds.append(os.open(desk.run, _PATH | os.O_DIRECTORY))
        fds.append(os.open(name, _PATH, dir_fd=fds[0]))
        _check(os.fstat(fds[1]), uid, f"{name} of desktop {desk.id}")
        sock.connect(f"/proc/self/fd/{fds[1]}")
    except OSError as e:
        sock.close()
        raise UnavailableError(f"desktop {desk.id} does not answer: {name}: {e.strerror}", code="no_answer") from None
    except BaseException:
        sock.close()
        raise
    finally:
        for fd in fds:
            os.close(fd)
    return sock


def _check(found: os.stat_result, uid: int, what: str) -> None:
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid != uid:
        raise BrokenError(f"{what} is not a socket of its own", code="not_its_socket")


async def _line(sock: socket.socket) -> str:
    """One line of the exec door, which sends no more than we ask for."""
    loop, line = asyncio.get_running_loop(), b""
    while not line.endswith(b"\n"):
        if len(line) >= _MOST_LINE:
            raise BrokenError("a desktop's exec door talks nonsense", code="exec_nonsense")
        with contextlib.suppress(ConnectionResetError):
            if byte := await loop.sock_recv(sock, 1):
                line += byte
                continue
        return ""
    return line.decode("utf-8", "replace").strip()


async def ping(desk: Desk, uid: int, via: Via | None = None) -> tuple[str, str]:
    """The nonce of the start that is running, and the size of its screen; empty until it is up."""
    with via("exec.sock") if via else connect(desk, "exec.sock", uid) as sock:
        try:
            async with asyncio.timeout(_SECONDS):
                await _send(sock, pack([["ping"]]), [])
                word, _, rest = (await _line(sock)).partition(" ")
        except TimeoutError:
            raise UnavailableError(f"desktop {desk.id} does not answer: is it frozen?", code="no_answer") from None
    boot, _, size = rest.partition(" ")
    if word != "boot":
        raise UnavailableError(f"desktop {desk.id} does not answer: its exec door is closed", code="no_answer")
    return boot, size


async def _send(sock: socket.socket, body: bytes, fds: Sequence[int]) -> None:
    """Descriptors travel with the first bytes; they fit, as nothing was sent before."""
    data = len(body).to_bytes(4, "big") + body
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sent = sock.sendmsg([data], beside)
        if sent < len(data):
            await asyncio.get_running_loop().sock_sendall(sock, data[sent:])
    except OSError as e:
        raise UnavailableError(f"the exec door was shut in our face: {e.strerror}", code="no_answer") from None


def asked(argv: Sequence[str], env: Mapping[str, str] | None, cwd: str | None) -> bytes:
    """How init, or whoever stands for it in a machine, is asked to run a command."""
    words = [f"{name}={value}" for name, value in (env or {}).items()]
    if not argv or any("\0" in word for word in (*argv, *words, cwd or "")):
        raise InvalidError("a command has at least one word, and no word has a NUL", code="bad_command")
    body = pack([["run", cwd or ""], words, list(argv)])
    if len(body) > MOST_REQUEST:
        raise InvalidError(f"a command may have {MOST_REQUEST} bytes, this has {len(body)}", code="too_large")
    return body


async def run(
    desk: Desk,
    uid: int,
    argv: Sequence[str],
    env: Mapping[str, str] | None,
    cwd: str | None,
    via: Via | None = None,
) -> "Command":
    body = asked(argv, env, cwd)
    sock = via("exec.sock") if via else connect(desk, "exec.sock", uid)
    (stdin, to), (out, stdout), (err, stderr) = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
    try:
        for fd in (stdin, stdout, stderr):
            os.fchown(fd, uid, uid if os.geteuid() == 0 else -1)  # programs open /dev/stderr anew
        async with asyncio.timeout(_SECONDS):
            await _send(sock, body, [stdin, stdout, stderr])
            return Command(desk.id, sock, await _line(sock), to, {1: out, 2: err})
    except BaseException as e:
        _forget({to, out, err}, sock)
        if isinstance(e, TimeoutError):
            raise UnavailableError(f"desktop {desk.id} does not answer: is it frozen?", code="no_answer") from None
        raise
    finally:
        for fd in (stdin, stdout, stderr):
            os.close(fd)


class Command:
    """A command inside a desktop. Its descriptors close when it has ended and was read, is killed, or is forgotten."""

    def __init__(self, desktop: str, sock: socket.socket, said: str, stdin: int, outputs: dict[int, int]) -> None:
        self.desktop = desktop
        self._sock = sock
        self._stdin: int | None = stdin
        self._outputs = outputs
        self._waiting = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._code: int | None = None
        self._waits: dict[int, asyncio.Event] = {}
        self._owned = {stdin, *outputs.values()}
        self._hear(said)
        for fd in self._owned:
            os.set_blocking(fd, False)
        self._forgotten = weakref.finalize(self, _forget, self._owned, sock)

    def _hear(self, said: str) -> None:
        word, _, number = said.partition(" ")
        if word == "exit" and number.isdecimal():
            self._code = int(number) & 255
            self._sock.close()
        elif word != "pid":
            raise UnavailableError(
                f"the command on desktop {self.desktop} was lost with it" + (f": {said}" if said else ""), code="lost"
            )

    def _release(self, fd: int) -> None:
        if fd in self._owned:
            self._owned.remove(fd)
            os.close(fd)

    async def write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            if self._stdin is None:
                raise UnavailableError("the command's input is closed", code="stdin_closed")
            try:
                left = left[os.write(self._stdin, left[:65536]) :]
            except BlockingIOError:
                await self._until([self._stdin], writing=True)
            except BrokenPipeError:
                await self.close_stdin()

    async def close_stdin(self) -> None:
        if self._stdin is not None:
            fd, self._stdin = self._stdin, None
            self._release(fd)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        async with self._reading:
            while self._outputs:
                for number, fd in list(self._outputs.items()):
                    try:
                        data = os.read(fd, 65536)
                    except BlockingIOError:
                        continue
                    if data:
                        yield number, data
                    else:
                        del self._outputs[number]
                        self._release(fd)
                if self._outputs:
                    await self._until(list(self._outputs.values()))

    async def wait(self) -> int:
        async with self._waiting:
            while self._code is None:
                self._hear(await _line(self._sock))
        await self.close_stdin()
        return self._code

    async def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(OSError):
                self._sock.send(b"k")
            if not await self._over():
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)  # says the same once more, and wakes who waits
                await self._over()
        self._outputs.clear()
        self._stdin = None
        self._wake()
        self._forgotten()

    async def _over(self) -> bool:
        """Whether it is known to have ended, or to be lost with its desktop."""
        try:
            async with asyncio.timeout(_SECONDS):
                await self.wait()
        except TimeoutError:
            return False
        except (UnavailableError, BrokenError):
            pass
        return True

    async def _until(self, fds: list[int], *, writing: bool = False) -> None:
        """Wait until one of these can be read, or written, or all is over."""
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        for fd in fds:
            (loop.add_writer if writing else loop.add_reader)(fd, ready.set)
            self._waits[fd] = ready
        try:
            await ready.wait()
        finally:
            self._wake(fds)

    def _wake(self, fds: Sequence[int] | None = None) -> None:
        loop = asyncio.get_running_loop()
        for fd in list(self._waits) if fds is None else fds:
            if waiting := self._waits.pop(fd, None):
                loop.remove_reader(fd)
                loop.remove_writer(fd)
                waiting.set()


def _forget(fds: set[int], sock: socket.socket) -> None:
    for fd in fds:
        os.close(fd)
    fds.clear()
    sock.close()


async def screen_size(sock: socket.socket) -> tuple[int, int]:
    """The size of the screen that answers here, by RFB itself."""
    loop = asyncio.get_running_loop()

    async def read(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await loop.sock_recv(sock, size - len(data))
            if not more:
                raise UnavailableError("the screen hung up", code="no_screen")
            data += more
        return data

    if not (await read(12)).startswith(b"RFB 003.008"):
        raise BrokenError("what answers is no RFB 3.8 server", code="not_rfb")
    await loop.sock_sendall(sock, b"RFB 003.008\n")
    await read((await read(1))[0])
    await loop.sock_sendall(sock, b"\x01")  # no authentication: who can connect is who may
    if await read(4) != bytes(4):
        raise BrokenError("the screen refuses us", code="not_rfb")
    await loop.sock_sendall(sock, b"\x01")
    head = await read(4)
    return int.from_bytes(head[:2], "big"), int.from_bytes(head[2:], "big")


def read_log(desk: Desk, most: int = 64 << 10) -> str:
    """The end of the desktop's log, which lies where the inside can put anything."""
    try:
        run = os.open(desk.run, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        fd = os.open("log", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=run)
    except OSError:
        return ""
    finally:
        os.close(run)
    try:
        size = os.fstat(fd).st_size
        return os.pread(fd, most, max(0, size - most)).decode("utf-8", "replace")
    except OSError:
        return ""  # a folder, a socket, a pipe
    finally:
        os.close(fd)
