"""The way to another host: one SSH connection, as its user has set it up, with the far side running at its other end.

Who the host is says `known_hosts`, who we are a key or the agent, and the rest `~/.ssh/config`. Nobody is ever asked
anything: an unknown host is refused. The connection is made when somebody first needs it, and again when it broke;
everybody who comes meanwhile waits for the same attempt, and for a moment hears the same refusal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import time
import weakref
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cu_fleet import __version__
from cu_fleet.backends.libvirt.far.address import Address
from cu_fleet.backends.libvirt.far.beside import BEAT, MARK
from cu_fleet.backends.libvirt.far.host import Host
from cu_fleet.backends.libvirt.far.talk import Reader, Writer
from cu_fleet.backends.libvirt.far.words import VERSION, Words, refusal_of
from cu_fleet.model.errors import FleetError, InvalidError, UnavailableError

if TYPE_CHECKING:
    import asyncssh

log = logging.getLogger(__name__)
COMMAND = (
    """exec sh -c 'PATH="$PATH:$HOME/.local/bin"; """
    """command -v cu-fleet >/dev/null || exit 127; exec cu-fleet serve-machines'"""
)
_SECONDS_TO_CONNECT = 15.0
_SECONDS = 60.0  # until the far side says where it listens
_KEEPALIVE = (5, 3)  # seconds between two signs of life, and how many may stay away
_BACK = 25.0  # seconds that a host which answered before may take to come back
_AGAIN = 0.5
_REFUSED_FOR = 2.0  # seconds for which a refusal is not tried anew
_WINDOW = 1 << 20  # bytes of one stream on their way here
_MOST_SAID = 4000
_MOST_GREETING = 64 << 10
_MOST_LINES = 2000  # of the far side's log that are passed on, for each connection
_GLOBAL = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
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
            async with asyncio.timeout(_SECONDS_TO_CONNECT):
                reader, writer = await self._ssh.open_unix_connection(self._socket, window=_WINDOW)
        except asyncssh.ChannelOpenError as e:
            if not self.works:
                raise _lost(self.address, str(e)) from None
            if self._proved:
                raise UnavailableError(f"{self.address.name} opens no more streams: {e.reason}", code="busy") from None
            raise UnavailableError(
                f"{self.address.name} opens no stream to its cu-fleet: {e.reason}",
                remedy="its sshd must allow AllowStreamLocalForwarding, and not DisableForwarding",
                code="no_forwarding",
            ) from None
        except (asyncssh.Error, OSError, TimeoutError) as e:
            raise _lost(self.address, str(e) or "it says nothing any more") from None
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
            self._ended(_lost(self.address, f"{type(e).__name__}: {e}"))
        finally:
            self._ready.cancel()

    def _ended(self, why: FleetError) -> None:
        if self._ready.done():
            log.warning("%s", why)
        else:
            self._ready.set_exception(why)

    async def _connect(self) -> None:
        await asyncio.to_thread(_load)
        with _in_words(self.address):
            self._ssh = await _dial(self.address)
        try:
            with _in_words(self.address):
                process = await self._ssh.create_process(COMMAND, encoding=None, request_pty=False)
                await self._serve(process)
        finally:
            self._ssh.abort()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2.0):
                    await self._ssh.wait_closed()

    async def _serve(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        hello = {"version": __version__, "speaks": VERSION, "fleet": self._fleet, "hypervisor": self.address.hypervisor}
        process.stdin.write(json.dumps(hello).encode() + b"\n")
        hearing = asyncio.create_task(self._hear(process), name=f"what {self.address.name} says")
        try:
            self._socket = await self._greeting(process)
            self._ready.set_result(None)
            await self._beat(process)
            await asyncio.wait([hearing], timeout=1.0)
            raise _lost(self.address, f"its cu-fleet has ended: {self._words()}")
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
                    async with asyncio.timeout(BEAT):
                        await process.stdout.read(4096)
        except (asyncssh.Error, OSError) as e:
            raise _lost(self.address, str(e)) from None

    async def _greeting(self, process: asyncssh.SSHClientProcess[bytes]) -> str:
        """Where it listens, or why it does not."""
        said = b""
        try:
            async with asyncio.timeout(_SECONDS):
                while not (line := _marked(said)) and len(said) < _MOST_GREETING:
                    if not (more := await process.stdout.read(4096)):
                        await process.wait_closed()
                        raise self._missing(process.exit_status)
                    said += more
        except TimeoutError:
            raise self._failed(f"it said nothing within {_SECONDS:g} s") from None
        try:
            greeting = json.loads(line)
            self._believe(greeting)
            return str(greeting["socket"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise self._failed(f"it says {line[:200]!r}") from None

    def _believe(self, greeting: Words) -> None:
        theirs = greeting.get("version")
        if (theirs, greeting.get("speaks")) != (__version__, VERSION):
            raise self._other_version(f"is cu-fleet {str(theirs)[:40]}")
        if "error" in greeting:
            raise refusal_of(greeting["error"], self.address.name)
        if greeting["abilities"] != self._abilities:
            raise self._other_version("can do other things, though it says to be the same")

    def _other_version(self, what: str) -> UnavailableError:
        return UnavailableError(
            f"what runs on {self.address.name} {what}, and here is cu-fleet {__version__}",
            remedy=f'install the same over there: pip install "cu-fleet-controller[libvirt]=={__version__}"',
            code="other_version",
        )

    def _missing(self, code: int | None) -> UnavailableError:
        if code == 127:
            return UnavailableError(
                f"there is no cu-fleet on {self.address.name}, neither in the PATH of its sshd nor in ~/.local/bin",
                remedy=f'install it over there: pip install "cu-fleet-controller[libvirt]=={__version__}"',
                code="no_fleet_there",
            )
        if b"No such command" in self._said:
            return self._other_version("knows nothing of serving machines")
        return self._failed(f"it ended with {code}: {self._words()}")

    def _failed(self, why: str) -> UnavailableError:
        return UnavailableError(
            f"cu-fleet on {self.address.name} did not begin: {why}",
            remedy=f"see what this says: {self.address.by_hand} cu-fleet doctor",
            code="host_failed",
        )

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
                    log.info("on %s: %s", self.address.name, _printable(line[:500]))

    def _words(self) -> str:
        return _printable(self._said[-500:]) or "without a word"


def _printable(said: bytes) -> str:
    return "".join(c if c.isprintable() else " " for c in said.decode("utf-8", "replace")).strip()


def _marked(said: bytes) -> bytes:
    """The line that counts, once it is whole."""
    _, mark, rest = said.partition(MARK.encode())
    line, end, _ = rest.partition(b"\n")
    return line if mark and end else b""


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


# the first steps, and what can go wrong with them


def _load() -> None:
    """It takes a third of a second, for which nobody else has to wait."""
    try:
        import_module("asyncssh")
    except ImportError:
        raise UnavailableError(
            "machines on another host need a package that is not installed",
            remedy='pip install "cu-fleet-controller[ssh]"',
            code="missing_package",
        ) from None


async def _dial(address: Address) -> asyncssh.SSHClientConnection:
    import asyncssh

    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    own: dict[str, Any] = {"host": address.host}
    own |= {"port": address.port} if address.port else {}
    own |= {"username": address.user} if address.user else {}
    own |= {"client_keys": [address.keyfile]} if address.keyfile else {}
    options = await asyncssh.SSHClientConnectionOptions.construct(**own)
    known = [address.known_hosts] if address.known_hosts else _known(options.known_hosts)
    async with asyncio.timeout(2 * _SECONDS_TO_CONNECT):
        return await asyncssh.connect(
            **own,
            known_hosts=known,
            connect_timeout=_SECONDS_TO_CONNECT,
            login_timeout=_SECONDS_TO_CONNECT,
            keepalive_interval=_KEEPALIVE[0],
            keepalive_count_max=_KEEPALIVE[1],
            agent_forwarding=False,
            x11_forwarding=False,
            password=None,
        )


def _known(configured: Any) -> list[str] | bytes:
    """The user's own, and this machine's; never none, which would mean that every host is trusted."""
    own = [Path(str(one)).expanduser() for one in configured or ()] or [Path("~/.ssh/known_hosts").expanduser()]
    there = [str(path) for path in dict.fromkeys([*own, *map(Path, _GLOBAL)]) if path.is_file()]
    return there or b"# nobody is known\n"


@contextlib.contextmanager
def _in_words(address: Address) -> Iterator[None]:
    import asyncssh

    by_hand = address.by_hand.replace("ssh ", "ssh -o BatchMode=yes ", 1)
    try:
        yield
    except asyncssh.HostKeyNotVerifiable as e:
        raise UnavailableError(
            f"{address.name} is not known, or not by this key: {e.reason}",
            remedy=f"compare its key and accept it by hand, once: {address.by_hand}; if it was known before, "
            "find out first why its key is another",
            code="unknown_host",
        ) from None
    except asyncssh.PermissionDenied as e:
        raise UnavailableError(
            f"{address.name} does not let us in: {e.reason}",
            remedy=f"a key, or your agent, must do without a password: {by_hand} true",
            code="permission_denied",
        ) from None
    except socket.gaierror as e:
        raise _unreachable(address, f"there is no such name: {e.strerror}", by_hand) from None
    except (asyncssh.Error, OSError, TimeoutError) as e:
        said = getattr(e, "strerror", None) or str(e)
        raise _unreachable(address, said or "no answer in time", by_hand) from None
    except ValueError as e:  # of the configuration, or a key
        raise InvalidError(
            f"your SSH configuration cannot be used for {address.name}: {e}",
            remedy="mend ~/.ssh/config, or the key that it names",
            code="bad_ssh_config",
        ) from None


def _unreachable(address: Address, why: str, by_hand: str) -> UnavailableError:
    return UnavailableError(
        f"{address.name} cannot be reached: {why}",
        remedy=f"see whether it is up, and lets you in: {by_hand} true",
        code="no_host",
    )


def _lost(address: Address, why: str) -> UnavailableError:
    return UnavailableError(f"the connection to {address.name} broke: {why}", code="host_lost")
