"""The guest agent of an image that is not ours: QEMU's own, which distributions have as qemu-guest-agent.

libvirt speaks to it for us, over a channel that it alone has: it finds the beginning of an answer after whatever was
left in the channel by a saved state or a controller that died, gives an answer 10 MiB and a time, and connects again
when it was restarted itself. Whatever the agent says may be a lie: it is checked, and no more than a lie about its own
desktop.

It is asked for two things of its own accord: the clock, which stood while a state lay on the disk, and a secret that
was left inside when the state was saved, in a file of memory (`/run`): what does not know it is another state.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cu_fleet.backends.libvirt import machines
from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.model.errors import BrokenError, UnavailableError, UnsupportedError

if TYPE_CHECKING:
    from libvirt import virConnect

log = logging.getLogger(__name__)
T = TypeVar("T")
FROZEN = "frozen"
NEEDED = ("exec", "exec-status", "file-open", "file-read", "file-write", "file-close", "set-time")  # guest-…
_CHUNK = 32 << 10  # bytes of a file in one message; of messages of 256 KiB, QEMU 7.2 was seen to lose parts
_SECONDS = 20  # for any one answer; what takes longer is begun, and asked for again
_SECONDS_TO_COME = 90.0  # after a machine has come to rest
_SECONDS_TO_RUN = 60.0  # for what we run ourselves
_PAUSES = (0.01, 1.4, 0.5)  # the first, how they grow, the longest
_MOST_SAID = 500
_PLACES = ("/run/cu-fleet", r"C:\Windows\Temp\cu-fleet")  # the first that there is


class Agent:
    """Of one desktop's machine. Without a state: what is asked may be asked by any number at the same time."""

    def __init__(self, hypervisor: Hypervisor, desk: Desk) -> None:
        self.hypervisor, self.desk = hypervisor, desk

    async def ask(self, command: str, hear: Callable[[Any], T], **arguments: object) -> T:
        """What `hear` makes of the answer. It has heard it even if nobody waits for that any more."""
        words = json.dumps({"execute": f"guest-{command}", "arguments": arguments})

        def work(api: virConnect) -> T:
            answer = _answer(api, self.desk, words)
            try:
                return hear(json.loads(answer)["return"])
            except (LookupError, TypeError, ValueError, AttributeError, RecursionError):
                raise BrokenError(
                    f"the guest agent of desktop {self.desk.id} answers guest-{command} with nonsense",
                    code="agent_nonsense",
                ) from None

        return await self.hypervisor.do(work)

    async def ask_awake(self, command: str, hear: Callable[[Any], T], **arguments: object) -> T:
        """The same, of a machine that may be frozen for a while."""
        for pause in pauses():
            try:
                return await self.ask(command, hear, **arguments)
            except UnavailableError as e:
                _insist(e, FROZEN)
            await asyncio.sleep(pause)
        raise AssertionError("there always is another pause")

    # who it is

    async def come(self, image: str) -> None:
        """Return when it answers, and knows all that is asked of it."""
        until = time.monotonic() + _SECONDS_TO_COME
        while True:
            try:
                known = await self.ask("info", _commands)
                break
            except UnavailableError as e:
                if e.code != "no_answer":
                    raise
                if time.monotonic() > until:
                    raise UnavailableError(
                        f"no guest agent answers in a machine of {image}",
                        remedy="install qemu-guest-agent in the image and let it start there, or leave out agent: true",
                        code="no_agent",
                    ) from None
            await asyncio.sleep(0.5)
        if missing := [f"guest-{name}" for name in NEEDED if f"guest-{name}" not in known]:
            raise UnsupportedError(
                f"the guest agent in {image} does not do {', '.join(missing)}",
                remedy="allow it there (some distributions do not: see /etc/sysconfig/qemu-ga), or leave agent out",
                code="agent_refuses",
            )

    async def become(self, was: str, boot: str) -> None:
        """It must know who it was, and from now on is another."""
        said = await self._secret()
        if said != was:
            raise BrokenError(
                f"desktop {self.desk.id} woke as something else than what was saved: its guest agent does not know "
                "the secret that was left in it",
                code="wrong_state",
            )
        await self.set_clock()
        await self.leave(boot)

    async def leave(self, secret: str) -> None:
        """Leave it where a saved memory will have it."""
        refused: UnavailableError | None = None
        for place in _PLACES:
            try:
                handle = await self.open(place, "wb")
                break
            except UnavailableError as e:
                refused = e
                _insist(e, "agent_refused")
        else:
            assert refused
            raise refused
        try:
            await self.write(handle, secret.encode())
        finally:
            await self.close(handle)

    async def _secret(self) -> str:
        for place in _PLACES:
            try:
                handle = await self.open(place, "rb")
            except UnavailableError as e:
                _insist(e, "agent_refused")
                continue
            try:
                return (await self.read(handle))[0].decode("utf-8", "replace")
            finally:
                await self.close(handle)
        return ""

    async def set_clock(self) -> None:
        """By the agent, or, where that lacks a program to set the board's clock by, by the system's own."""
        try:
            await self.ask("set-time", lambda _: None, time=time.time_ns())
        except UnavailableError as e:
            try:
                _insist(e, "agent_refused")
                await self.run(["date", "-u", "-s", f"@{time.time():.0f}"])
            except UnavailableError as again:
                log.warning("the clock of desktop %s is wrong: %s; %s", self.desk.id, e, again)

    # files, in pieces

    async def open(self, path: str, mode: str) -> int:
        return await self.ask("file-open", int, path=path, mode=mode)

    async def close(self, handle: int) -> None:
        await self.ask("file-close", lambda _: None, handle=handle)

    async def read(self, handle: int) -> tuple[bytes, bool]:
        """The next of it, and whether that was the last there is now."""
        return await self.ask_awake("file-read", _piece, handle=handle, count=_CHUNK)

    async def write(self, handle: int, data: bytes) -> None:
        for at in range(0, len(data), _CHUNK):
            piece = data[at : at + _CHUNK]
            words = base64.b64encode(piece).decode()
            count = await self.ask("file-write", lambda said: int(said["count"]), handle=handle, **{"buf-b64": words})
            if count != len(piece):
                raise UnavailableError(
                    f"desktop {self.desk.id} has written {count} bytes of {len(piece)}: is its disk full?",
                    code="file_failed",
                )

    # commands

    async def begin(self, argv: Sequence[str]) -> int:
        """Start it, and hear no more of it than how it ends."""
        return await self.ask("exec", lambda said: int(said["pid"]), path=argv[0], arg=list(argv[1:]))

    async def run(self, argv: Sequence[str]) -> None:
        """Run something short of ours, to its end."""
        pid, until = await self.begin(argv), time.monotonic() + _SECONDS_TO_RUN
        for pause in pauses():
            if (code := await self.ask("exec-status", ended, pid=pid)) is not None or time.monotonic() > until:
                break
            await asyncio.sleep(pause)
        if code != 0:
            how = "does not end" if code is None else f"ended with {code}"
            raise UnavailableError(f"{argv[0]} on desktop {self.desk.id} {how}", code="command_failed")


def pauses() -> Iterator[float]:
    """Between two questions whether something has ended: growing."""
    pause, grows, most = _PAUSES
    while True:
        yield pause
        pause = min(most, pause * grows)


def ended(said: Any) -> int | None:
    """The exit code, if it has."""
    if said["exited"] is not True:
        return None
    return int(said["exitcode"]) & 255 if "exitcode" in said else 128 + (int(said.get("signal", 9)) & 127)


def _commands(said: Any) -> set[str]:
    return {str(one["name"]) for one in said["supported_commands"] if one["enabled"] is True}


def _piece(said: Any) -> tuple[bytes, bool]:
    data = base64.b64decode(str(said.get("buf-b64", "")), validate=True)
    return data, said["eof"] is True or not data


def _insist(e: UnavailableError, *codes: str) -> None:
    if e.code not in codes:
        raise e


def _answer(api: virConnect, desk: Desk, words: str) -> str:
    import libvirt
    import libvirt_qemu

    domain = machines.must_run(api, desk)
    try:
        return str(libvirt_qemu.qemuAgentCommand(domain, words, _SECONDS, 0))
    except libvirt.libvirtError as e:
        raise _refusal(e, desk, libvirt) or e from None


def _refusal(e: Exception, desk: Desk, libvirt: Any) -> UnavailableError | None:
    code, said = e.get_error_code(), str(e)  # type: ignore[attr-defined]
    _, agents, why = said.partition("unable to execute QEMU agent command ")
    if agents:
        why = "".join(c for c in why[:_MOST_SAID] if c.isprintable())
        return UnavailableError(f"the guest agent of desktop {desk.id} refused {why}", code="agent_refused")
    if code in (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED):
        return UnavailableError(f"the guest agent of desktop {desk.id} does not answer: {said}", code="no_answer")
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return UnavailableError(f"desktop {desk.id} stands still at this moment: {said}", code=FROZEN)
    return None
