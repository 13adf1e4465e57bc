"""Commands inside a machine by its guest agent, which can begin one and say how it ended, and reads and writes files.

So a command's output goes to files in a folder of its own in the guest, which are read while they grow; and what it is
to read must be there before it begins: it begins when its input is closed, or when somebody waits for it without having
written any. Whether it has ended is asked again and again, after pauses that grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cu_fleet.backends.libvirt.agent import FROZEN, Agent, ended, pauses
from cu_fleet.guest.init import MOST_REQUEST
from cu_fleet.model.errors import FleetError, InvalidError, UnavailableError, UnsupportedError

NO_SHELL = "no_shell"
_KILLED = 137
_SECONDS_TO_END = 10.0
# sh -c this FOLDER USER CWD N NAME=VALUE… WORD…; without a folder nobody will ask what it says
_BEGIN = r"""
d=$0 user=$1 cwd=$2 n=$3; shift 3
HOME=~root; [ -d "$HOME" ] || HOME=/; export HOME
while [ "$n" -gt 0 ]; do export "$1"; shift; n=$((n - 1)); done
if [ "$d" ]; then
  [ -d "$d" ] || mkdir -m 700 "$d" || exit 126
  [ -e "$d/0" ] || : >"$d/0"
  exec <"$d/0" >"$d/1" 2>"$d/2"
else exec </dev/null >/dev/null 2>&1
fi
if [ "$user" ]; then exec su -s /bin/sh -c 'cd "${0:-$HOME}" || exit 126; exec "$@"' "$user" -- "$cwd" "$@"; fi
cd "${cwd:-$HOME}" || exit 126
exec "$@"
"""
_KILL = r"""
end() { kill -STOP "$1"; for one in $(cat "/proc/$1/task/"*/children); do end "$one"; done; kill -KILL "$1"; }
end "$0" 2>/dev/null; exit 0
"""


def words(folder: str, argv: Sequence[str], user: str, cwd: str | None, env: Mapping[str, str]) -> list[str]:
    own = [f"{name}={value}" for name, value in env.items()]
    made = ["sh", "-c", _BEGIN, folder, user, cwd or "", str(len(own)), *own, *argv]
    if not argv or any("\0" in word for word in made):
        raise InvalidError("a command has at least one word, and no word has a NUL", code="bad_command")
    if (size := sum(len(word.encode()) for word in made)) > MOST_REQUEST:
        raise InvalidError(f"a command may have {MOST_REQUEST} bytes, this has {size}", code="too_large")
    return made


class Command:
    """A command, as `backends.base.Process` says, but that nothing can be written to it once it runs."""

    def __init__(
        self,
        agent: Agent,
        argv: Sequence[str],
        *,
        user: str = "",
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        fed: bool = False,
    ) -> None:
        """`fed`: it does not begin before its input is closed."""
        self.agent, self._fed = agent, fed
        self._folder = f"/tmp/.cu-fleet-{secrets.token_hex(8)}"  # noqa: S108  # nobody can guess it
        self._words = words(self._folder, argv, user, cwd, env or {})
        self._closed = asyncio.Event()
        self._one = asyncio.Lock()  # who begins it, or asks
        self._input: int | None = None
        self._pid: int | None = None
        self._code: int | None = None
        self._dropped = False

    async def write(self, data: bytes) -> None:
        if self._pid is not None or self._closed.is_set():
            raise UnsupportedError(
                f"desktop {self.agent.desk.id} runs commands by a guest agent, which takes their input only before "
                "they begin",
                remedy="give the whole input with the command",
                code="no_stdin",
            )
        self._fed = True
        async with self._one:
            if self._input is None:
                await self.agent.run(["mkdir", "-m", "700", self._folder])
                self._input = await self.agent.open(f"{self._folder}/0", "wb")
            await self.agent.write(self._input, data)

    async def close_stdin(self) -> None:
        self._closed.set()
        await self._begin()

    async def _begin(self) -> None:
        if self._fed:
            await self._closed.wait()
        async with self._one:
            if self._pid is None and self._code is None:
                if self._input is not None:
                    await self.agent.close(self._input)
                    self._input = None
                await self._ask_to_begin()

    async def _ask_to_begin(self) -> None:
        try:
            await self.agent.ask("exec", self._born, path=self._words[0], arg=self._words[1:])
        except UnavailableError as e:
            if e.code != "agent_refused":
                raise
            raise UnsupportedError(
                f"desktop {self.agent.desk.id} has no shell, by which its guest agent would run commands: {e.what}",
                code=NO_SHELL,
            ) from None

    def _born(self, said: Any) -> None:
        self._pid = int(said["pid"])

    async def wait(self) -> int:
        await self._begin()
        for pause in pauses():
            await self._look()
            if self._code is not None:
                break
            await asyncio.sleep(pause)
        assert self._code is not None
        return self._code

    async def _look(self) -> None:
        """Whether it has ended; the agent says so once."""
        async with self._one:
            if self._code is not None:
                return
            try:
                await self.agent.ask_awake("exec-status", self._hear, pid=self._pid)
            except UnavailableError as e:
                raise UnavailableError(
                    f"the command on desktop {self.agent.desk.id} was lost with it: {e.what}", code="lost"
                ) from None

    def _hear(self, said: Any) -> None:
        self._code = ended(said)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        handles: dict[int, int] = {}
        try:
            await self._begin()
            waiting = pauses()
            while not self._dropped:
                await self._look()
                over, heard = self._code is not None, False
                for number in (1, 2):
                    async for data in self._more(number, handles):
                        heard = True
                        yield number, data
                if over:
                    break
                waiting = pauses() if heard else waiting
                await asyncio.sleep(next(waiting))
        except UnavailableError:
            return  # `wait` says what happened
        finally:
            with contextlib.suppress(FleetError):
                for handle in handles.values():
                    await self.agent.close(handle)
        await self._drop()

    async def _more(self, number: int, handles: dict[int, int]) -> AsyncIterator[bytes]:
        """What has come since."""
        if number not in handles:
            try:
                handles[number] = await self.agent.open(f"{self._folder}/{number}", "rb")
            except UnavailableError as e:
                if e.code not in ("agent_refused", FROZEN):
                    raise
                return  # it has not come so far
        last = False
        while not last and not self._dropped:
            data, last = await self.agent.read(handles[number])
            if data:
                yield data

    async def kill(self) -> None:
        if self._pid is None:
            self._code = _KILLED if self._code is None else self._code
        elif self._code is None:
            with contextlib.suppress(FleetError, TimeoutError):
                async with asyncio.timeout(_SECONDS_TO_END):
                    await self.agent.run(["sh", "-c", _KILL, str(self._pid)])
                    await self.wait()
        await self._drop()

    async def _drop(self) -> None:
        """Its files are not needed any more."""
        if not self._dropped and (self._pid is not None or self._input is not None):
            self._dropped = True
            with contextlib.suppress(FleetError, TimeoutError):
                if self._input is not None:
                    await self.agent.close(self._input)
                await self.agent.run(["rm", "-rf", self._folder])
        self._dropped = True
