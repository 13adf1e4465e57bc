"""Xvfb with x11vnc beside it, in the shape of `xvnc`: the other usual way to a screen without a graphics card.

x11vnc is an X client: it polls the screen it serves, sends what it hears by XTEST, and knows neither fences nor UTF-8.
It runs with the options that have it know its screen within `WITHIN`.
"""

import os
import select
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cu_fleet.rfb.screen import Screen
from tests.rfb.xvnc import Client

PROMPT = ["-xd_area", "0", "-wait", "10", "-defer", "1", "-nonap", "-sb", "0", "-speeds", "lan"]
WITHIN = 0.5
_LISTENS = "00010000"  # of a socket's flags


class X11vnc:
    def __init__(self, folder: Path, *options: str, password: str | None = None, size: str = "1280x800") -> None:
        self.folder = folder
        self.path = folder / "rfb"
        self.options = PROMPT + list(options)
        if password is None:
            self.options.append("-nopw")
        else:
            (folder / "secret").write_text(password)
            self.options += ["-passwdfile", str(folder / "secret")]
        read, write = os.pipe()
        self.x = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{size}x24", "-nolisten", "tcp", "-noreset"],
            pass_fds=[write],
            stderr=subprocess.DEVNULL,
        )
        os.close(write)
        self.process: subprocess.Popen[bytes] | None = None
        number = ""
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while not number.endswith("\n"):  # it comes in pieces
                if not select.select([pipe], [], [], 20)[0] or not (piece := pipe.read(16)):
                    self.stop()
                    raise AssertionError("Xvfb did not start")
                number += piece.decode()
        self.display = f":{number.strip()}"
        try:
            self.serve()
        except BaseException:
            self.stop()
            raise

    def serve(self) -> None:
        """Start x11vnc, at first and again after its death; the X server and what runs on it stay."""
        self.path.unlink(missing_ok=True)
        with (self.folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *("x11vnc", "-display", self.display, "-unixsock", str(self.path), "-rfbport", "0", "-forever"),
                    *("-shared", "-nolookup", "-noipv6", "-norc", *self.options),
                ],
                stdout=log,
                stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(self.folder)},
            )
        deadline = time.monotonic() + 20
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError("x11vnc did not start: " + (self.folder / "log").read_text("utf-8", "replace"))
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.01)

    def _listens(self) -> bool:
        """The socket is there a little before anybody listens at it; the kernel says which it is."""
        sockets = Path("/proc/net/unix").read_text().splitlines()
        return any(line.endswith(f" {self.path}") and line.split()[3] == _LISTENS for line in sockets)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        return sock

    async def screen(self, **more: Any) -> Screen:
        return await Screen.open(self.connect(), **{"within": WITHIN, **more})

    def client(self, script: str, *args: str) -> Client:
        return Client(self.display, script, *args)

    def stop(self) -> None:
        for process in (self.process, self.x):
            if process is None:
                continue
            process.terminate()
            try:
                process.wait(1)  # one in ten is deaf to it
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def x11vnc(*options: str, password: str | None = None, size: str = "1280x800") -> Iterator[X11vnc]:
    with tempfile.TemporaryDirectory(prefix="rfb-") as folder:
        server = X11vnc(Path(folder), *options, password=password, size=size)
        try:
            yield server
        finally:
            server.stop()
