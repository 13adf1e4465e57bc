"""The way to another host: one SSH connection, as its user has set it up, with the far side running at its other end.

Who the host is says `known_hosts`, who we are a key or the agent, and the rest `~/.ssh/config`. Nobody is ever asked
anything: an unknown host is refused. The connection is made when somebody first needs it, and again when it broke;
everybody who comes meanwhile waits for the same attempt, and for a moment hears the same refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cu_fleet.backends.libvirt.far import greeting
from cu_fleet.backends.libvirt.far.address import Address
from cu_fleet.backends.libvirt.far.dialing import SECONDS_TO_ANSWER, dial, in_words, lost
from cu_fleet.backends.libvirt.far.host import Host
from cu_fleet.backends.libvirt.far.talk import Reader, Writer
from cu_fleet.model.errors import FleetError, UnavailableError

if TYPE_CHECKING:
    import asyncssh

log = logging.getLogger(__name__)
COMMAND = (
    """exec sh -c 'PATH="$PATH:$HOME/.local/bin"; """
    """command -v cu-fleet >/dev/null || exit 127; exec cu-fleet serve-machines'"""
)
_SECONDS = 60.0  # until the far side says where it listens
_BACK = 25.0  # seconds that a host which answered before may take to come back
_AGAIN = 0.5
_REFUSED_FOR = 2.0  # seconds for which a refusal is not tried anew
_WINDOW = 1 << 20  # bytes of one stream on their way here
_MOST_SAID = 4000
_MOST_GREETING = 64 << 10
_MOST_LINES = 2000  # of the far side's log that are passed on, for each connection
_PASSING = ("no_host", "host_lost")  # what may be different in a moment


class SshHost(Host):
    def __init__(self, address: Address, fleet: str, abilities: Mapping[str, list[str]]) -> None:
        """`abilities` is what backends over there must have."""
        super().__init__(address.name)
        self.address, self._fleet, self._abilities = address, fleet, dict(abilities)
        self._held: list[_Connection] = []
        self._opening: asyncio.Task[_Connection] | None = None
        self._refused: tuple[float, FleetError] | None = None
        self._known = False  # whether it ever answered
        weakref.finalize(self, _let_go, self._held)

    async def stream(self) -> tuple[Reader, Writer]:
        connection = await self._connected()
        try:
            return await connection.stream()
        except UnavailableError as e:
            if e.code != "host_lost":
                raise
            return await (await self._connected()).stream()  # it broke at this moment

    async def _connected(self) -> _Connection:
        if self._held and self._held[0].works:
            return self._held[0]
        if self._refused and time.monotonic() < self._refused[0]:
            raise _again(self._refused[1])
        if self._opening is None or self._opening.done() or self._opening.get_loop() is not asyncio.get_running_loop():
            self._opening = asyncio.create_task(self._open(), name=f"connect to {self.name}")
            self._opening.add_done_callback(_seen)
        try:
            return await asyncio.shield(self._opening)
        except FleetError as e:
            raise _again(e) from None

    async def _open(self) -> _Connection:
        self._held.clear()
        until = time.monotonic() + (_BACK if self._known else 0)
        while True:
            try:
                made = await _Connection.begin(self.address, self._fleet, self._abilities)
            except FleetError as e:
                if e.code not in _PASSING or time.monotonic() > until:
                    self._refused = (time.monotonic() + _REFUSED_FOR, e)
                    raise
            else:
                self._held.append(made)
                self._known, self._refused = True, None
                return made
            await asyncio.sleep(_AGAIN)


def _again(error: FleetError) -> FleetError:
    """The same, for one more to raise."""
    return type(error)(error.what, remedy=error.remedy, code=error.code, **error.facts)


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _let_go(held: list[_Connection]) -> None:
    for one in held:
        one.cancel()


class _Connection:
    """One that is made, with the far side running. Its task lives as long as both do."""

    def __init__(self, address: Address, fleet: str, abilities: dict[str, list[str]]) -> None:
        self.address, self._fleet, self._abilities = address, fleet, abilities
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._ssh: asyncssh.SSHClientConnection | None = None
        self._socket = ""
        self._said = b""  # on its standard error
        self._proved = False  # that streams can be opened
        self._task = self._loop.create_task(self._run(), name=f"machines on {address.name}")

    @classmethod
    async def begin(cls, address: Address, fleet: str, abilities: dict[str, list[str]]) -> _Connection:
        made = cls(address, fleet, abilities)
        try:
            await made._ready
        except BaseException:
            made._task.cancel()
            await asyncio.wait([made._task])
            raise
        return made

    @property
    def works(self) -> bool:
        gone = self._task.done() or (self._ssh is not None and self._ssh.is_closed())
        return not gone and self._loop is asyncio.get_running_loop()

    def cancel(self) -> None:
        if not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def stream(self) -> tuple[Reader, Writer]:
        import asyncssh

        assert self._ssh
        try:
            async with asyncio.timeout(SECONDS_TO_ANSWER):
                reader, writer = await self._ssh.open_unix_connection(self._socket, window=_WINDOW)
        except asyncssh.ChannelOpenError as e:
            if not self.works:
                raise lost(self.address, str(e)) from None
            if self._proved:
                raise UnavailableError(f"{self.address.name} opens no more streams: {e.reason}", code="busy") from None
            raise UnavailableError(
                f"{self.address.name} opens no stream to its cu-fleet: {e.reason}",
                remedy="its sshd must allow AllowStreamLocalForwarding, and not DisableForwarding",
                code="no_forwarding",
            ) from None
        except (asyncssh.Error, OSError, TimeoutError) as e:
            raise lost(self.address, str(e) or "it says nothing any more") from None
        self._proved = True
        stream = _Stream(reader, writer)
        return stream, stream

    async def _run(self) -> None:
        try:
            await self._connect()
        except FleetError as e:
            self._ended(e)
        except Exception as e:
            log.exception("machines on %s", self.address.name)
            self._ended(lost(self.address, f"{type(e).__name__}: {e}"))
        finally:
            self._ready.cancel()

    def _ended(self, why: FleetError) -> None:
        if self._ready.done():
            log.warning("%s", why)
        else:
            self._ready.set_exception(why)

    async def _connect(self) -> None:
        self._ssh = await dial(self.address)
        try:
            with in_words(self.address):
                process = await self._ssh.create_process(COMMAND, encoding=None, request_pty=False)
                await self._serve(process)
        finally:
            self._ssh.abort()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._ssh.wait_closed()

    async def _serve(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        process.stdin.write(greeting.hello(self.address, self._fleet))
        hearing = asyncio.create_task(self._hear(process), name=f"what {self.address.name} says")
        try:
            self._socket = await self._greeting(process)
            self._ready.set_result(None)
            await self._beat(process)
            await asyncio.wait([hearing], timeout=1.0)
            raise lost(self.address, f"its cu-fleet has ended: {greeting.last_words(self._said)}")
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)

    async def _beat(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        """Give signs of life, until the other side gives none."""
        import asyncssh

        try:
            while not process.stdout.at_eof():
                process.stdin.write(b"\n")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(greeting.BEAT):
                        await process.stdout.read(4096)
        except (asyncssh.Error, OSError) as e:
            raise lost(self.address, str(e)) from None

    async def _greeting(self, process: asyncssh.SSHClientProcess[bytes]) -> str:
        """Where it listens, or why it does not."""
        said = b""
        try:
            async with asyncio.timeout(_SECONDS):
                while not (line := greeting.marked(said)) and len(said) < _MOST_GREETING:
                    if not (more := await process.stdout.read(4096)):
                        await process.wait_closed()
                        raise greeting.ended(self.address, process.exit_status, self._said)
                    said += more
        except TimeoutError:
            raise greeting.failed(self.address, f"it said nothing within {_SECONDS:g} s") from None
        return greeting.listens(line, self.address, self._abilities)

    async def _hear(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        """Its log goes into ours."""
        left, lines = b"", 0
        while data := await process.stderr.read(4096):
            self._said = (self._said + data)[-_MOST_SAID:]
            *whole, left = (left + data).split(b"\n")
            left = left[-_MOST_SAID:]
            for line in whole:
                lines += 1
                if lines <= _MOST_LINES:
                    log.info("on %s: %s", self.address.name, greeting.printable(line[:500]))


class _Stream:
    """A stream whose troubles are those of any other stream."""

    def __init__(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, n: int = -1, /) -> bytes:
        with _as_os_error():
            return await self._reader.read(n)

    def write(self, data: bytes, /) -> None:
        with _as_os_error():
            self._writer.write(data)

    async def drain(self) -> None:
        with _as_os_error():
            await self._writer.drain()

    def write_eof(self) -> None:
        with _as_os_error():
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()


class _as_os_error(contextlib.AbstractContextManager[None]):  # noqa: N801 - it reads as a function
    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        import asyncssh

        if isinstance(error, asyncssh.Error):
            raise ConnectionResetError(str(error)) from None
