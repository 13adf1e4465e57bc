"""The far side: does what it is asked, with backends of its own, one stream for each call.

The end of a stream is the end of what was asked on it: a call is cancelled as if whoever made it had been cancelled
here, and a command is ended. Desktops live on.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

from cu_fleet.backends.base import Backend, Process
from cu_fleet.backends.libvirt.far import homes, words
from cu_fleet.backends.libvirt.far.talk import ERR, IN, OUT, Talk, first_of, splice
from cu_fleet.backends.libvirt.far.words import Seen, Words
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import BrokenError, FleetError, InvalidError, UnavailableError, UnsupportedError
from cu_fleet.threads import in_thread

log = logging.getLogger(__name__)
_MOST = 1000  # streams at once
_SECONDS_TO_ASK = 30.0
_SECONDS_TO_END = 15.0
Work = Callable[[Talk, Words], Awaitable[object]]


async def _nothing() -> None:
    """Nobody else is at it."""


class Serving:
    """`alone` returns once nobody else serves this fleet, before anything of it is touched."""

    def __init__(
        self, backends: Mapping[str, Backend], folder: Path, alone: Callable[[], Awaitable[None]] = _nothing
    ) -> None:
        self.backends, self.homes, self._alone = backends, folder, alone
        self.beside: dict[str, Work] = {"has_home": self._has_home, "lay_home": self._lay_home}  # of no desktop
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """For `asyncio.start_unix_server`."""
        if len(self._tasks) >= _MOST:
            writer.close()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="a call")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.close())  # also of one that never began

    async def close(self) -> None:
        """End all that is asked for."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_SECONDS_TO_END)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with Talk(reader, writer, "the controller", serves=True) as talk:
            with contextlib.suppress(TimeoutError):
                await first_of([self._answer(talk), talk.over()], "answer")

    async def _answer(self, talk: Talk) -> None:
        async with asyncio.timeout(_SECONDS_TO_ASK):
            asked = await talk.heard()
        do = str(asked.pop("do", ""))
        try:
            done = await self._do(do, talk, asked)
            if do not in _TALKS:
                await talk.say(words.answer(do, done))
        except FleetError as e:
            await talk.say(words.refusal(e))
        except Exception as e:
            log.exception("%s failed", do)
            failed = BrokenError(f"cu-fleet failed over there: {type(e).__name__}: {e}", code="host_failed")
            await talk.say(words.refusal(failed))

    async def _do(self, do: str, talk: Talk, asked: Words) -> object:
        name = str(asked.pop("backend", ""))
        if work := self.beside.get(do):
            return await work(talk, asked)
        if (backend := self.backends.get(name)) is None or do not in VERBS:
            raise UnsupportedError(f"no {name} here can {do}", code="unsupported")
        if do != "check":
            await self._alone()
        if do in _CALLS:
            return await _CALLS[do](backend, asked)
        await (_TALKS[do](backend, talk, asked) if do in _TALKS else _each(talk, _MADE[do](backend, asked)))
        return None

    async def _has_home(self, talk: Talk, asked: Words) -> bool:
        del talk
        return await in_thread(homes.has, self.homes, str(asked["home"]))

    async def _lay_home(self, talk: Talk, asked: Words) -> None:
        data = bytearray()
        async for chunk in talk.chunks(IN):
            data += chunk
            if len(data) > 2 * homes.MOST:
                raise InvalidError("a home has no end", code="large")
        await in_thread(homes.lay, self.homes, str(asked["home"]), bytes(data))


# handles


async def _each(talk: Talk, handles: AsyncGenerator[Handle, None]) -> None:
    """The next is made only when the one before has been written down by whoever asks."""
    async with aclosing(handles):
        await talk.heard()
        async for handle in handles:
            await talk.say({"handle": handle})
            await talk.heard()


async def _started(backend: Backend, asked: Words) -> AsyncGenerator[Handle, None]:
    async for handle in _closing(backend.start(words.spec_of(asked["spec"]))):
        yield handle


async def _restored(backend: Backend, asked: Words) -> AsyncGenerator[Handle, None]:
    ability = _has(backend, "snapshots")
    async for handle in _closing(ability.restore(_handle(asked), words.spec_of(asked["spec"]))):
        yield handle


async def _closing(handles: AsyncIterator[Handle]) -> AsyncGenerator[Handle, None]:
    try:
        async for handle in handles:
            yield handle
    finally:
        if isinstance(handles, AsyncGenerator):
            await handles.aclose()


def _has(backend: Backend, ability: str) -> Any:
    found = getattr(backend.abilities, ability)
    if found is None:
        raise UnsupportedError(f"backend {backend.name} has no {ability}", code=f"no_{ability}")
    return found


def _handle(asked: Words) -> Handle:
    return words.handle_of(asked["handle"])


# calls


async def _stop(backend: Backend, asked: Words) -> None:
    await backend.stop(_handle(asked))


async def _endpoint(backend: Backend, asked: Words) -> Seen | None:
    found = await backend.endpoint(_handle(asked))
    return Seen(found.where, found.password, found.helped, found.within) if found else None


async def _found(backend: Backend, asked: Words) -> object:
    del asked
    return await backend.found()


async def _check(backend: Backend, asked: Words) -> object:
    said = asked.get("profile")
    return await backend.check(words.profiles_of([said])[0] if said else None)


async def _save(backend: Backend, asked: Words) -> object:
    return await _has(backend, "snapshots").save(_handle(asked), str(asked["snapshot"]))


async def _delete(backend: Backend, asked: Words) -> None:
    await _has(backend, "snapshots").delete(str(asked["snapshot"]))


async def _saved(backend: Backend, asked: Words) -> object:
    del asked
    return await _has(backend, "snapshots").saved()


async def _listing(backend: Backend, asked: Words) -> object:
    return await _has(backend, "files").listing(_handle(asked), str(asked["path"]))


async def _remove(backend: Backend, asked: Words) -> None:
    await _has(backend, "files").remove(_handle(asked), str(asked["path"]))


async def _tidy(backend: Backend, asked: Words) -> object:
    del asked
    return await _has(backend, "tidy").tidy()


def _of_handle(ability: str, verb: str) -> "Callable[[Backend, Words], Awaitable[object]]":
    async def call(backend: Backend, asked: Words) -> object:
        return await getattr(_has(backend, ability), verb)(_handle(asked))

    return call


# what goes on for a while


async def _put(backend: Backend, talk: Talk, asked: Words) -> None:
    """Not the end of a stream but the end of its channel says that the file is whole."""
    files, mode = _has(backend, "files"), int(asked["mode"])
    size = await files.put(_handle(asked), str(asked["path"]), talk.chunks(IN), mode=mode)
    await talk.say(words.answer("put", size))


async def _get(backend: Backend, talk: Talk, asked: Words) -> None:
    try:
        async for chunk in _has(backend, "files").get(_handle(asked), str(asked["path"])):
            await talk.write(OUT, chunk)
    except FleetError:
        await talk.end(OUT)
        raise
    await talk.end(OUT)
    await talk.say(words.answer("get", None))


async def _screen(backend: Backend, talk: Talk, asked: Words) -> None:
    handle = _handle(asked)
    if (endpoint := await backend.endpoint(handle)) is None:
        raise UnavailableError(f"the screen of desktop {handle.get('desktop')} is gone", code="screen_lost")
    with await endpoint.connect() as sock:
        await talk.say(words.answer("screen", None))
        await splice(talk, sock, to=IN, back=OUT)


async def _exec(backend: Backend, talk: Talk, asked: Words) -> None:
    argv, env, cwd = [str(word) for word in asked["argv"]], asked["env"], asked["cwd"]
    process: Process = await _has(backend, "exec").exec(_handle(asked), argv, env=env, cwd=cwd)
    try:
        await talk.say(words.answer("exec", None))
        works = [_feed(talk, process), _tell(talk, process), _watch(talk, process), _obey(talk, process)]
        async with asyncio.TaskGroup() as all_of_it:
            for number, work in enumerate(works):
                all_of_it.create_task(work, name=f"command {number}")
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
    finally:
        await process.kill()


async def _feed(talk: Talk, process: Process) -> None:
    """What it takes no more is read all the same, so that the other side hears of it."""
    deaf = False
    async for data in talk.chunks(IN):
        if not deaf:
            try:
                await process.write(data)
            except FleetError as e:
                deaf = True
                await talk.say({"deaf": words.refusal(e)["error"]})
    if not deaf:
        await process.close_stdin()


async def _tell(talk: Talk, process: Process) -> None:
    async for number, data in process.output():
        await talk.write(OUT if number == 1 else ERR, data)
    await talk.end(OUT)
    await talk.end(ERR)


async def _watch(talk: Talk, process: Process) -> None:
    try:
        code = await process.wait()
    except FleetError as e:
        await talk.say(words.refusal(e))
    else:
        await talk.say({"exit": code})


async def _obey(talk: Talk, process: Process) -> None:
    while True:
        if (await talk.heard()).get("kill"):
            await process.kill()


_MADE = {"start": _started, "restore": _restored}
_TALKS = {"put": _put, "get": _get, "screen": _screen, "exec": _exec}
_CALLS: dict[str, Callable[[Backend, Words], Awaitable[object]]] = {
    "stop": _stop,
    "endpoint": _endpoint,
    "found": _found,
    "check": _check,
    "save": _save,
    "delete": _delete,
    "saved": _saved,
    "listing": _listing,
    "remove": _remove,
    "tidy": _tidy,
    "freeze": _of_handle("freeze", "freeze"),
    "thaw": _of_handle("freeze", "thaw"),
    "logs": _of_handle("logs", "logs"),
    "usage": _of_handle("meter", "usage"),
    "room": _of_handle("disk", "room"),
    "used": _of_handle("disk", "used"),
}
VERBS = frozenset((*_MADE, *_TALKS, *_CALLS))  # of one backend
