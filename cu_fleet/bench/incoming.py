"""What waking a machine costs at the very least: QEMU alone, begun with libvirt's own words, reading the same state.

No daemon in between, no names or identity of its own, no user, no limits, nobody who proves what woke, nothing on
record; and its disk has been made before the clock runs. It is told to go on as soon as it has read all, and a whole
frame of it ends the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import socket
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cu_fleet.backends.libvirt import LibvirtBackend, disks, machines, saved
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.backends.libvirt.warm import State, seed_of
from cu_fleet.model.errors import UnavailableError
from cu_fleet.rfb.screen import Screen

if TYPE_CHECKING:
    from libvirt import virConnect

_WITHIN = 120.0
_NAP = 0.002


async def first_frame(backend: LibvirtBackend, state: State, base: Path, top: Path) -> float:
    """Wake one, of a state whose disk rests on `base`; the seconds until a whole frame of it was in hand.

    Nothing of it is left afterwards.
    """
    with tempfile.TemporaryDirectory(dir=top, prefix="bare-") as name:
        desk = Desk("bare", Path(name), f"cu-fleet-bare-{secrets.token_hex(4)}", str(uuid.uuid4()))
        desk.run.mkdir()
        await asyncio.to_thread(_disk, state, base, desk)
        words = await backend.hypervisor.do(lambda api: _words(api, state, base, desk))
        with state.memory.open("rb") as memory:
            memory.seek(saved.read(state.memory).at)
            began = time.perf_counter()
            async with _begun([*words, "-incoming", f"fd:{memory.fileno()}"], memory.fileno(), desk) as process:
                await asyncio.wait_for(_gone_on(process, _monitor(desk)), _WITHIN)
                screen = await Screen.open(await _connected(process, desk.screen))
                await screen.frame()
                seconds = time.perf_counter() - began
                await screen.close()
    return seconds


def _disk(state: State, base: Path, desk: Desk) -> None:
    """As a fork's, or as that of who goes back to a snapshot."""
    if state.disk == base:
        disks.overlay(desk.disk, base, None)
    else:
        disks.copy(state.disk, desk.disk, None)


def _monitor(desk: Desk) -> Path:
    return desk.dir / "monitor"


def _words(api: virConnect, state: State, base: Path, desk: Desk) -> list[str]:
    """What libvirt would begin QEMU with, but for what is between the two alone."""
    names = machines.Names("bare", seed_of(base.parent), None)
    said = api.domainXMLToNative("qemu-argv", machines.renamed(saved.read(state.memory).xml, desk, names), 0)
    return bare(said, _monitor(desk))


def bare(said: str, monitor: Path) -> list[str]:
    """The words without libvirt's variables and its secret, and with a monitor that we may speak to."""
    words = shlex.split(said)
    words = words[next(at for at, word in enumerate(words) if word.startswith("/")) :]
    pairs = zip(words, [*words[1:], ""], strict=True)
    secret = [at for at, (one, two) in enumerate(pairs) if one == "-object" and '"secret"' in two]
    kept = [word for at, word in enumerate(words) if at not in secret and at - 1 not in secret]
    ours = f"socket,id=charmonitor,path={monitor},server=on,wait=off"
    return [ours if word.startswith("socket,id=charmonitor,") else word for word in kept]


@asynccontextmanager
async def _begun(words: Sequence[str], fd: int, desk: Desk) -> AsyncIterator[asyncio.subprocess.Process]:
    none = asyncio.subprocess.DEVNULL
    with (desk.dir / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *words, stdin=none, stdout=none, stderr=log, pass_fds=[fd], cwd=desk.dir
        )
    try:
        yield process
    except UnavailableError as e:
        said = (desk.dir / "log").read_text("utf-8", "replace").strip()
        raise UnavailableError(f"{e.what}: {said[-500:]}", code="bare_failed") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _gone_on(process: asyncio.subprocess.Process, monitor: Path) -> None:
    """Return when it has read all, and runs."""
    reader, writer = await asyncio.open_unix_connection(sock=await _connected(process, monitor))
    try:
        await _ask(reader, writer, "qmp_capabilities")
        while True:
            if (await _ask(reader, writer, "query-status"))["status"] != "inmigrate":
                break
            await asyncio.sleep(_NAP)
        await _ask(reader, writer, "cont")
    finally:
        writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str) -> dict[str, str]:
    writer.write(json.dumps({"execute": command}).encode())
    while line := await reader.readline():
        said = json.loads(line)
        if "return" in said:
            return dict(said["return"])
        if "error" in said:
            raise UnavailableError(f"a bare QEMU refused {command}: {said['error'].get('desc')}", code="bare_failed")
    raise UnavailableError("a bare QEMU ended while it read the state", code="bare_failed")


async def _connected(process: asyncio.subprocess.Process, path: Path) -> socket.socket:
    until = time.monotonic() + _WITHIN
    while process.returncode is None and time.monotonic() < until:
        sock = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError):
            sock.connect(os.fspath(path))
            sock.setblocking(False)
            return sock
        sock.close()
        await asyncio.sleep(_NAP)
    raise UnavailableError("a bare QEMU did not come up", code="bare_failed")
