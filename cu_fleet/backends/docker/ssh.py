"""An engine behind SSH: its socket brought here by the OpenSSH client, as a socket of our own.

The client is the one its users know: it takes their configuration, keys, agent and jump hosts, and checks the host's
key as it always does. It never asks anybody anything: what would be asked fails, with what the client says. One
connection carries all there is; it ends with us, and is made anew when it was cut and somebody needs it.
"""

import contextlib
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from pathlib import Path
from urllib.parse import urlsplit

from cu_fleet.model.errors import InvalidError, UnavailableError

_SOCKET = "/var/run/docker.sock"
_SECONDS = 30.0
# A connection that carries nothing back for 15 seconds is cut.
_OPTIONS = [
    "BatchMode=yes",
    "ConnectTimeout=15",
    "ControlPath=none",
    "ExitOnForwardFailure=yes",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "StreamLocalBindUnlink=yes",
    "StreamLocalBindMask=0177",
]


class Forward:
    def __init__(self, host: str) -> None:
        self.host = host
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._client: subprocess.Popen[bytes] | None = None
        self.times = 0  # that it was connected

    def socket(self) -> str:
        """Where the engine's socket is now, here; connects if nothing is connected."""
        with self._lock:
            if self._client is None or self._client.poll() is not None:
                self._connect()
            return f"{self._folder}/sock"

    def _connect(self) -> None:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="cu-fleet-ssh-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        sock, said = self._folder / "sock", self._folder / "said"
        sock.unlink(missing_ok=True)
        with said.open("wb") as log:
            client = subprocess.Popen(command(self.host, sock), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        ended = weakref.finalize(self, _end, client)
        until = time.monotonic() + _SECONDS
        while not sock.exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.wait(0.02)
            if client.returncode is not None or time.monotonic() > until:
                ended()
                raise _refused(self.host, said.read_text("utf-8", "replace"))
        self._client, self.times = client, self.times + 1


def command(host: str, sock: Path) -> list[str]:
    """The kernel ends the client with the thread that started it, which lasts as long as this engine is used."""
    parts = urlsplit(host)
    if not parts.hostname or parts.hostname.startswith("-") or (parts.username or "").startswith("-"):
        raise InvalidError(
            f"{host} names no host", remedy="give ssh://user@host, or ssh://user@host:22/path/of/docker.sock"
        )
    words = ["setpriv", "--pdeathsig=KILL", "ssh", "-N", "-T", *(f"-o{option}" for option in _OPTIONS)]
    words += ["-L", f"{sock}:{parts.path.rstrip('/') or _SOCKET}"]
    words += [f"-p{parts.port}"] if parts.port else []
    words += ["-l", parts.username] if parts.username else []
    return [*words, "--", parts.hostname]


def _end(client: "subprocess.Popen[bytes]") -> None:
    client.kill()
    client.wait()


def _refused(host: str, said: str) -> UnavailableError:
    what = "; ".join(line.strip() for line in said.splitlines() if line.strip()) or f"no answer in {_SECONDS:.0f} s"
    return UnavailableError(
        f"the Docker engine at {host} does not answer: {what[-500:]}",
        remedy=f"see whether `ssh -o BatchMode=yes {host}` lets you in; its host key must be known",
        code="no_engine",
    )
