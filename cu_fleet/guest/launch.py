"""Starting a program inside a desktop so that it is nobody's child.

It outlives the helper and whoever started that. The process between us tells what became of it within a moment: its
number, and how it ended if it has.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cu_fleet.guest.terms import Answer


class Launch:
    """A program on its way. It becomes nobody's child, so that it outlives this helper and whoever started that.

    The process between us tells what became of it within a moment: its number, and how it ended if it has.
    """

    type = "launch"

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        self.told: Answer = {}
        self.data = b""
        self.fd, tell = os.pipe()
        self.between = os.fork()
        if self.between == 0:
            try:
                self.start(argv, env, cwd, tell)
            finally:
                os._exit(0)
        os.close(tell)

    def start(self, argv: list[str], env: dict[str, str], cwd: str, tell: int) -> None:
        def say(**facts: object) -> None:
            os.write(tell, json.dumps(facts).encode() + b"\n")

        null = subprocess.DEVNULL
        try:
            child = subprocess.Popen(
                argv, stdin=null, stdout=null, stderr=null, start_new_session=True, cwd=cwd, env=env
            )
            say(pid=child.pid)
            with contextlib.suppress(subprocess.TimeoutExpired):
                say(ended=child.wait(0.1))
        except FileNotFoundError:
            say(code="not_found", error="there is no such program in this desktop")
        except (OSError, ValueError) as e:
            say(error=str(e))

    def fileno(self) -> int:
        return self.fd

    def read(self) -> bool:
        """Take in what is told; False when that is all."""
        more = os.read(self.fd, 4096)
        self.data += more
        if more:
            return True
        for line in self.data.splitlines():
            self.told.update(json.loads(line))
        os.close(self.fd)
        os.waitpid(self.between, 0)
        return False
