"""Servers of one's own for tests, of this machine's own packages: begun in a temporary folder, and gone with it.

One that is `Enclosed` lives in namespaces, held by one process that ends with whoever started it: so the server, what
it has started, and its mounts vanish together, and no other one here is touched. The server alone can be killed and
begun anew while what it has started runs on, as in an accident.

All of it is begun from a thread that lasts: the kernel ends it when the thread that started it ends.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import ClassVar, NoReturn, Self

import pytest

from cu_fleet.model.errors import UnavailableError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def lacking(programs: Mapping[str, str]) -> str:
    """Which packages are missing, in words, given the one of each program; empty if none is."""
    packages = sorted({package for program, package in programs.items() if shutil.which(program, path=PATH) is None})
    return f"not installed: {' '.join(packages)}" if packages else ""


def refuse(reason: str) -> NoReturn:
    """For a test that needs what cannot be had: a failure in CI, a skip elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Server:
    """A subclass says how it is begun, and when it answers."""

    name: ClassVar[str]
    code: ClassVar[str]  # of the error when it cannot be had
    deadline: ClassVar[float] = 60.0  # seconds to start or stop

    def __init__(self, prefix: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=prefix))
        self._daemon: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._prepare()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        """Of the server itself, as seen here."""
        assert self._daemon
        return self._daemon.pid

    def _prepare(self) -> None:
        """Before it is begun for the first time."""

    def start(self) -> None:
        raise AssertionError(f"{type(self).__name__} must say how it is begun")

    def _answers(self) -> bool:
        raise AssertionError(f"{type(self).__name__} must say when it is up")

    def _begin(self, words: Sequence[str], env: Mapping[str, str], fds: Sequence[int] = ()) -> None:
        """Return when it answers."""
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                words, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, pass_fds=fds
            )
        until = monotonic() + self.deadline
        while not self._answers():
            if not self._runs or monotonic() > until:
                raise UnavailableError(f"{self.name} did not start: {self.log[-2000:]}", code=self.code)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._daemon.wait(0.02)

    def kill(self) -> None:
        """End the server alone, as an accident does; what it has started runs on."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, pid = self._daemon, self.pid if self._runs else 0
        self._daemon = None
        if process and pid:
            os.kill(pid, how)
            try:
                process.wait(self.deadline)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    @property
    def _runs(self) -> bool:
        return self._daemon is not None and self._daemon.poll() is None

    def remove(self) -> None:
        """End all of it and remove its files."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self.folder)


class Enclosed(Server):
    """What is begun here is nsenter, which waits for the server."""

    spaces: ClassVar[Sequence[str]]  # beside that of processes: names that both unshare and nsenter know

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self._holder: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return _child(super().pid)

    def _hold(self, script: str, *words: str) -> None:
        """Make the namespaces. In there a script runs as long as they shall last, and says `up`."""
        unshare = ["unshare", *self.spaces, "--pid", "--mount-proc", "--fork", "--kill-child"]
        self._holder = subprocess.Popen(
            ["setpriv", "--pdeathsig=KILL", *unshare, "sh", "-c", script, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={"PATH": PATH},
        )
        assert self._holder.stdout
        if self._holder.stdout.readline() != b"up\n":
            raise UnavailableError(f"namespaces for {self.name} cannot be made here", code=self.code)

    def beside(self, *command: str) -> list[str]:
        """The command that runs another where the server is."""
        assert self._holder
        return ["nsenter", f"--target={_child(self._holder.pid)}", *self.spaces, "--pid", *command]

    def remove(self) -> None:
        self._end(signal.SIGKILL)
        if self._holder:
            self._holder.kill()
            self._holder.communicate()
        self._leave()
        super().remove()

    def _leave(self) -> None:
        """What there is to do when nothing of it runs any more."""


def _child(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
