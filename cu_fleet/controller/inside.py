"""What reaches into a desktop beside its screen: files in its slot, the guest helper, programs, commands.

All of it takes the same checks as an action, and is on record. `exec` is for operators: code inside a desktop is held
by the desktop's walls, not by gates. An agent starts only what its profile lists.

What was read is handed out only if the caller may still see it then, and what is sent is taken in only while it may
still be sent: by then the desktop may be another's.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

from cu_fleet.backends.base import FileInfo, Files, Process
from cu_fleet.controller.acting import Acting
from cu_fleet.controller.actor import Actors
from cu_fleet.controller.core import Core, stale
from cu_fleet.controller.helper import SOURCE, Helper
from cu_fleet.controller.helpers import Helpers, cannot, exec_of
from cu_fleet.controller.permit import allowed
from cu_fleet.model.access import Caller, Role
from cu_fleet.model.audit import redacted
from cu_fleet.model.desktop import RUNNING, Desktop, Stage
from cu_fleet.model.errors import (
    ConflictError,
    FleetError,
    InvalidError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from cu_fleet.model.lease import Lease
from cu_fleet.rfb.hands import no_button
from cu_fleet.stores.base import Tx

_CLIPBOARD_MOST = 1 << 20
_WITHIN = 15.0  # seconds for any answer of the helper
_DRAWN = 8.0  # seconds for X to pass on what was drawn
_LATE = 2.0  # seconds after which it has told what did not arrive
_HEARD = 5.0  # seconds for a window manager's
_STAYS = 1.0  # seconds after which a program that was started is taken to stay
log = logging.getLogger(__name__)


class Inside:
    def __init__(self, core: Core, actors: Actors, acting: Acting) -> None:
        self.core = core
        self.actors = actors
        self.acting = acting
        self.helpers = Helpers(core, SOURCE)

    # files

    async def put_file(
        self, who: Caller, lease_id: str, path: str, data: AsyncIterator[bytes], mode: int, *, intent: str | None = None
    ) -> int:
        lease, desktop, files = await self._files(who, lease_id)
        size = await files.put(desktop.handle, path, self._while_allowed(who, lease_id, data), mode=mode)
        await self._record("file.put", who, lease, {"path": path, "bytes": size}, intent=intent)
        return size

    async def get_file(
        self, who: Caller, lease_id: str, path: str, *, intent: str | None = None
    ) -> AsyncIterator[bytes]:
        """The file's bytes; what cannot be read is refused before the first of them."""
        lease, desktop, files = await self._files(who, lease_id, look=True)
        chunks = files.get(desktop.handle, path)
        first = await anext(chunks, b"")
        await self.looked("file.get", who, lease, {"path": path}, intent)
        return self._while_allowed(who, lease_id, _with_first(first, chunks), look=True)

    async def files(self, who: Caller, lease_id: str, path: str) -> list[FileInfo]:
        _, desktop, files = await self._files(who, lease_id, look=True)
        found = await self.core.bounded(files.listing(desktop.handle, path), "list files")
        await self.acting.allowed(who, lease_id, look=True)
        return found

    async def remove_file(self, who: Caller, lease_id: str, path: str) -> None:
        if not path.strip("/"):
            raise InvalidError("say which file to remove", code="no_path")
        lease, desktop, files = await self._files(who, lease_id)
        await self.core.bounded(files.remove(desktop.handle, path), "remove a file")
        await self._record("file.removed", who, lease, {"path": path})

    async def _files(self, who: Caller, lease_id: str, *, look: bool = False) -> tuple[Lease, Desktop, Files]:
        lease, desktop = await self.acting.allowed(who, lease_id, look=look)
        files = self.core.abilities(desktop).files
        if files is None:
            raise cannot(desktop, "files")
        return lease, desktop, files

    async def _while_allowed(
        self, who: Caller, lease_id: str, data: AsyncIterator[bytes], *, look: bool = False
    ) -> AsyncIterator[bytes]:
        """The data, until the caller may no more; asked once more at the end, when all of it has come."""
        try:
            async for chunk in data:
                await self.acting.seats.of(who, lease_id, look=look)
                yield chunk
            await self.acting.allowed(who, lease_id, look=look)
        finally:
            if isinstance(data, AsyncGenerator):
                await data.aclose()

    # the helper

    async def windows(self, who: Caller, lease_id: str, *, intent: str | None = None) -> list[dict[str, object]]:
        lease, desktop = await self.acting.allowed(who, lease_id, look=True)
        answer = await self._ask(desktop, "windows")
        await self.looked("windows", who, lease, {}, intent)
        windows = answer.get("windows")
        return windows if isinstance(windows, list) else []

    async def focus(self, who: Caller, lease_id: str, window: int, *, intent: str | None = None) -> None:
        await self._do(who, lease_id, "focus", {"window": window}, intent=intent)

    async def launch(
        self, who: Caller, lease_id: str, name: str, args: Sequence[str], *, intent: str | None = None
    ) -> dict[str, object]:
        """Start one of the programs that the profile lists."""
        lease, desktop = await self.acting.allowed(who, lease_id)
        offered = self.core.profile(desktop.profile).launch
        if name not in offered:
            raise NotFoundError(
                f'profile "{desktop.profile}" has no program "{name}" to launch; only {", ".join(offered) or "none"}',
                code="not_launchable",
            )
        argv, env = [*offered[name].command, *args], dict(self.core.profile(desktop.profile).env)
        facts: dict[str, object] = {"name": name, "args": list(args)}
        return await self._do(who, lease.id, "launch", {"argv": argv, "env": env}, facts=facts, intent=intent)

    async def _begun(self, desktop: Desktop, argv: Sequence[str]) -> dict[str, object]:
        """Started where no helper of ours can watch over it."""
        process = await exec_of(self.core, desktop).exec(desktop.handle, argv)
        try:
            async with asyncio.timeout(_STAYS):
                code = await process.wait()
        except TimeoutError:
            return {}
        said = b"".join([data async for _, data in process.output()])[-500:].decode("utf-8", "replace").strip()
        await process.kill()
        if code:
            raise UnavailableError(f"{argv[0]!r} ended at once with {code}: {said}", code="launch_failed")
        return {}

    async def clipboard_get(self, who: Caller, lease_id: str, *, intent: str | None = None) -> str:
        lease, desktop = await self.acting.allowed(who, lease_id, look=True)
        text = str((await self._ask(desktop, "clipboard_get")).get("text", ""))
        facts: dict[str, object] = {"text": redacted(text, self.core.redaction_key)}
        await self.looked("clipboard.get", who, lease, facts, intent)
        return text

    async def clipboard_set(self, who: Caller, lease_id: str, text: str, *, intent: str | None = None) -> None:
        if len(text.encode()) > _CLIPBOARD_MOST:
            raise InvalidError(f"the clipboard takes at most {_CLIPBOARD_MOST} bytes", code="too_large")
        facts: dict[str, object] = {"text": redacted(text, self.core.redaction_key)}
        await self._do(who, lease_id, "clipboard_set", {"text": text}, facts=facts, intent=intent)

    async def _do(
        self,
        who: Caller,
        lease_id: str,
        do: str,
        args: dict[str, object],
        *,
        facts: dict[str, object] | None = None,
        intent: str | None = None,
    ) -> dict[str, object]:
        """Something the helper does for a caller: intent, deed and result, in the actor's turn."""
        lease, desktop = await self.acting.allowed(who, lease_id)
        actor = self.actors.of(desktop.id)
        async with actor.turn:
            await self.acting.allowed(who, lease_id)
            actor.check()
            entry = await self._record(do, who, lease, facts if facts is not None else args, intent=intent)
            began, result = time.monotonic(), "ok"
            try:
                return await self._ask(desktop, do, **args)
            except FleetError as e:
                result = e.code
                raise
            finally:
                await self._record(f"{do}.done", who, lease, {}, of=entry, result=result, began=began)

    async def _ask(self, desktop: Desktop, do: str, **args: object) -> dict[str, object]:
        argv = args.get("argv")
        if do == "launch" and isinstance(argv, list) and not self.core.abilities(desktop).helper:
            return await self.core.bounded(self._begun(desktop, argv), "start a program")
        helper = await self.helpers.of(desktop)
        return await helper.call(do, timeout=_WITHIN, **args)

    # what the actor reaches a desktop by, beside its screen's server

    async def paste(self, desktop_id: str, text: str, press: Callable[[], None]) -> None:
        """How text that keys cannot carry reaches the desktop: its clipboard. Returns when a program has taken it."""
        await (await self._helper_of(desktop_id)).paste(text, press)

    async def button(self, desktop_id: str, name: str, down: bool, x: int, y: int) -> None:
        try:
            await (await self._helper_of(desktop_id)).call("button", name=name, down=down, x=x, y=y)
        except UnsupportedError as e:
            raise no_button(name) from e

    async def lift(self, desktop_id: str) -> None:
        await (await self._helper_of(desktop_id)).call("lift")

    async def heard(self, desktop_id: str, presses: int) -> bool:
        try:
            answer = await (await self._helper_of(desktop_id)).call("heard", timeout=_HEARD, presses=presses)
        except FleetError as e:
            log.warning("desktop %s: whether its window manager has heard of a click is not known: %s", desktop_id, e)
            return False
        return answer.get("heard") is True

    async def arrived(
        self, desktop_id: str, wanted: Mapping[str, int], place: tuple[int, int], within: float, of: object
    ) -> Mapping[str, object] | None:
        try:
            helper = await self._helper_of(desktop_id)
            return await helper.call(
                "arrived", timeout=within + _LATE, wanted=dict(wanted), place=list(place), within=within, of=of
            )
        except FleetError as e:
            log.warning("desktop %s: what of its input has arrived is not known: %s", desktop_id, e)
            return None

    async def drawn(self, desktop_id: str) -> bool:
        desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, desktop_id))
        if desktop.stage is not Stage.HELD or desktop.frozen:
            return True  # a first picture, to be sure that there is one; or nobody draws
        try:
            await (await self.helpers.of(desktop)).call("drawn", timeout=_DRAWN)
        except FleetError as e:
            log.warning("desktop %s: whether all that was drawn is shown is not known: %s", desktop_id, e)
            return False
        return True

    async def _helper_of(self, desktop_id: str) -> Helper:
        return await self.helpers.of(await self.core.read(lambda tx: self.core.get_desktop(tx, desktop_id)))

    # operators

    async def exec(
        self, who: Caller, key: str, argv: Sequence[str], *, cwd: str | None, env: Mapping[str, str] | None
    ) -> Process:
        """Run a command inside a desktop."""
        who.needs(Role.OPERATOR)
        if not argv:
            raise InvalidError("say what to run", code="no_command")
        desktop = await self._running(key)
        facts: dict[str, object] = {"argv": list(argv), "cwd": cwd}
        await self.core.note(lambda tx: self.core.record(tx, "exec", who.who, desktop=desktop, facts=facts))
        return await self.core.bounded(
            exec_of(self.core, desktop).exec(desktop.handle, argv, cwd=cwd, env=env), "run a command"
        )

    async def logs(self, who: Caller, key: str) -> str:
        who.needs(Role.OBSERVER)
        desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, key))
        logs = self.core.backend(desktop.backend).abilities.logs
        if logs is None:
            raise cannot(desktop, "logs")
        return await self.core.bounded(logs.logs(desktop.handle), "show its logs")

    async def freeze(self, who: Caller, key: str, *, frozen: bool) -> Desktop:
        """Hold all processes of a desktop still, or let them go on."""
        who.needs(Role.OPERATOR)
        desktop = await self._running(key)
        ability = self.core.backend(desktop.backend).abilities.freeze
        if ability is None:
            raise cannot(desktop, "freezing")
        async with self.actors.of(desktop.id).turn:
            if frozen:
                await self._mark_frozen(who, desktop.id, True)
                await self.core.bounded(ability.freeze(desktop.handle), "freeze")
            else:
                await self.core.bounded(ability.thaw(desktop.handle), "thaw")
                await self._mark_frozen(who, desktop.id, False)
        return await self.core.read(lambda tx: self.core.get_desktop(tx, desktop.id))

    async def _mark_frozen(self, who: Caller, desktop_id: str, frozen: bool) -> None:
        def work(tx: Tx) -> None:
            desktop = self.core.get_desktop(tx, desktop_id)
            if desktop.stage not in RUNNING:
                raise stale(desktop)
            tx.put(desktop.but(frozen=frozen))
            self.core.record(tx, "desktop.frozen" if frozen else "desktop.thawed", who.who, desktop=desktop)
            self.core.touch(desktop_id)

        await self.core.change(work)

    async def _running(self, key: str) -> Desktop:
        desktop = await self.core.read(lambda tx: self.core.get_desktop(tx, key))
        if desktop.stage not in RUNNING:
            raise ConflictError(
                f"desktop {desktop.id} does not run: it is {desktop.stage.value}",
                code="not_running",
                stage=desktop.stage.value,
            )
        return desktop

    async def looked(
        self, what: str, who: Caller, lease: Lease, facts: dict[str, object], intent: str | None = None
    ) -> None:
        """Written down, if the caller may still see what was read."""

        def work(tx: Tx) -> None:
            allowed(self.core, tx, who, lease.id, look=True)
            self.core.record(tx, what, who.who, lease=lease, facts=facts, intent=intent)

        await self.core.note(work)

    async def _record(
        self,
        what: str,
        who: Caller,
        lease: Lease,
        facts: dict[str, object],
        *,
        of: int | None = None,
        result: str | None = None,
        began: float | None = None,
        intent: str | None = None,
    ) -> int:
        seconds = None if began is None else round(time.monotonic() - began, 6)
        return await self.core.note(
            lambda tx: self.core.record(
                tx, what, who.who, lease=lease, facts=facts, intent=intent, of=of, result=result, seconds=seconds
            )
        )


async def _with_first(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        if first:
            yield first
        async for chunk in rest:
            yield chunk
    finally:
        if isinstance(rest, AsyncGenerator):
            await rest.aclose()
