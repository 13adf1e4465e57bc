"""A TPM for machines that ask for it: a program of its own for each, which ends with its machine.

libvirt would start that program as a user whom machines that run as users of their own cannot reach. So we do, as the
machine's, and libvirt is told where it listens; it lets go when QEMU does. What a TPM keeps is in the machine's saved
memory and comes back with it, so a fork, a snapshot and a rollback have it without a copy of ours. All forks of one
state thus have its seeds, as they have what was sealed with them; no manufacturer has signed its keys.
"""

import os
import shutil
import subprocess
from pathlib import Path

from cu_fleet.backends.libvirt import processes
from cu_fleet.backends.libvirt.layout import Desk
from cu_fleet.model.errors import UnavailableError

_PROGRAM = "swtpm"
_TOOLS = ("swtpm_setup", "swtpm_ioctl")  # without which libvirt takes no TPM, though it needs none of them for ours
_SECONDS = 30.0


def need() -> str:
    program, *tools = map(shutil.which, (_PROGRAM, *_TOOLS))
    if program is None or None in tools:
        raise UnavailableError(
            f"{_PROGRAM} is not installed, or not with its tools",
            remedy="apt-get install swtpm swtpm-tools",
            code="missing_program",
        )
    return program


def begin(desk: Desk, uid: int | None) -> None:
    """Returns when it listens."""
    program = need()
    state = _state(desk)
    state.mkdir(mode=0o700)
    if uid is not None:
        os.chown(state, uid, uid)
    command = [program, "socket", "--tpm2", "--terminate", "--daemon", "--tpmstate", _kept_in(desk)]
    command += ["--ctrl", f"type=unixio,path={desk.tpm},mode=0600"]
    try:
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
            user=uid,
            group=uid,
            extra_groups=None if uid is None else [],
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,
            umask=0o077,
        )
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"the TPM of desktop {desk.id} did not come up", code="no_tpm") from None
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip()[-500:]
        raise UnavailableError(f"the TPM of desktop {desk.id} did not come up: {said}", code="no_tpm")


def end(desk: Desk) -> None:
    """For one whose machine never came to use it; the others have ended by themselves."""
    if _state(desk).exists():
        processes.end(os.fsencode(_kept_in(desk)))


def _kept_in(desk: Desk) -> str:
    return f"dir={_state(desk)},mode=0600"


def _state(desk: Desk) -> Path:
    return desk.run / "tpm-state"
