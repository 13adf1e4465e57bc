"""What a desktop costs at the very least: bubblewrap around the same Xvnc, and nothing else.

No home of its own, no window manager, no session bus, no limits, nothing on record, and the whole system visible
inside. The server's options are those of our desktops, so that the difference is what we add; as it comes it would
be slower, since it loads OpenGL.
"""

import asyncio
import contextlib
import socket
import tempfile
import time
from pathlib import Path

from cu_fleet.model.errors import UnavailableError
from cu_fleet.rfb.screen import Screen

_XVNC = """Xvnc :0 -geometry {width}x{height} -depth 24 -nolisten tcp -noreset -rfbport -1 -rfbunixpath /mnt/rfb.sock
    -SecurityTypes None -UseBlacklist=0 -FrameRate 1000 -AlwaysShared -AcceptSetDesktopSize=0"""
_BWRAP = """bwrap --unshare-all --die-with-parent --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp
    --bind {folder} /mnt --"""
_WITHIN = 30.0


async def first_frame(top: Path, width: int, height: int, *, opengl: bool = False) -> float:
    """Start one; the seconds until a whole frame of it was in hand. Nothing of it is left afterwards."""
    with tempfile.TemporaryDirectory(dir=top, prefix="bare-") as name:
        argv = [*(word.format(folder=name) for word in _BWRAP.split())]
        argv += [*_XVNC.format(width=width, height=height).split(), *([] if opengl else ["-extension", "GLX"])]
        none = asyncio.subprocess.DEVNULL
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(*argv, stdin=none, stdout=none, stderr=none)
        try:
            async with asyncio.timeout(_WITHIN):
                screen = await Screen.open(await _connected(process, Path(name) / "rfb.sock"))
                await screen.frame()
            seconds = time.perf_counter() - began
            await screen.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return seconds


async def _connected(process: asyncio.subprocess.Process, path: Path) -> socket.socket:
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
        else:
            return sock
        if process.returncode is not None:
            raise UnavailableError(
                f"bwrap Xvnc ended at once, with {process.returncode}", remedy="cu-fleet doctor", code="no_bare"
            )
        await asyncio.sleep(0.001)
