"""A plain Xvnc on a unix socket, and programs inside it that draw and listen."""

import json
import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.modes import ECB

from cu_fleet.rfb.screen import Screen

PYTHON = "/usr/bin/python3"  # the one that has python3-xlib
HERE = Path(__file__).parent


class Xvnc:
    def __init__(self, folder: Path, *options: str, password: str | None = None) -> None:
        self.path = folder / "rfb"
        security = ["-SecurityTypes", "None"]
        if password is not None:
            (folder / "secret").write_bytes(_obscured(password))
            security = ["-SecurityTypes", "VncAuth", "-PasswordFile", str(folder / "secret")]
        read, write = os.pipe()
        self._log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [
                *("Xvnc", "-displayfd", str(write), "-rfbunixpath", str(self.path), "-rfbport", "-1"),
                *("-geometry", "1280x800", "-depth", "24", "-nolisten", "tcp", "-noreset", "-FrameRate", "1000"),
                *(*security, *options),
            ],
            pass_fds=[write],
            stdout=self._log,
            stderr=self._log,
        )
        os.close(write)
        number = ""
        with os.fdopen(read, "rb", buffering=0) as pipe:
            while not number.endswith("\n"):  # it comes in pieces
                if not select.select([pipe], [], [], 20)[0] or not (piece := pipe.read(16)):
                    self.stop()
                    raise AssertionError("Xvnc did not start: " + (folder / "log").read_text("utf-8", "replace"))
                number += piece.decode()
        self.display = f":{number.strip()}"

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        return sock

    async def screen(self, **more: Any) -> Screen:
        return await Screen.open(self.connect(), **more)

    def client(self, script: str, *args: str) -> "Client":
        return Client(self.display, script, *args)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Client:
    """A script in the desktop: answers each line of JSON with one, and can be asked for what it saw."""

    def __init__(self, display: str, script: str, *args: str) -> None:
        self.process = subprocess.Popen(
            [PYTHON, str(HERE / script), *args],
            env={"DISPLAY": display, "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "XAUTHORITY": "/dev/null"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.read()  # it is there

    def ask(self, question: object) -> Any:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"{self.process.args!r} ended with {self.process.wait()}")
        return json.loads(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        self.process.kill()
        self.process.wait()


def _obscured(password: str) -> bytes:
    """As vncpasswd writes it: DES with a key that all know."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in bytes([23, 82, 107, 6, 35, 78, 88, 7]))
    encryptor = Cipher(TripleDES(key * 3), ECB()).encryptor()  # noqa: S305 - it is what VNC does
    return encryptor.update(password.encode().ljust(8, b"\0")) + encryptor.finalize()


@contextmanager
def xvnc(*options: str, password: str | None = None) -> Iterator[Xvnc]:
    with tempfile.TemporaryDirectory(prefix="rfb-") as folder:
        server = Xvnc(Path(folder), *options, password=password)
        try:
            yield server
        finally:
            server.stop()
