"""What lies ready for a desktop's container before it starts, and how it begins.

The home comes as an archive, a clean one or a snapshot's, which the container's first shell has unpacked as the
desktop's own user into volumes of its own, while the X server boots and Python loads: so nothing is written with more
rights than the desktop has itself. That shell then stays as the process that reaps; init runs beside it and tells on a
pipe, made before the start, how far it has come. When init ends, the shell does, and the container with it.

Init comes compiled too: an image whose Python understands that saves as much time as its own start takes.
"""

import importlib.util
import marshal
import os
from functools import cache
from pathlib import Path

from cu_fleet.backends import inside
from cu_fleet.backends.base import Spec
from cu_fleet.backends.docker.layout import FAR, Desk, write
from cu_fleet.backends.inside import HOME
from cu_fleet.backends.tree import wipe
from cu_fleet.guest import init as guest

SLOT = "/run/cu-fleet-slot"
STATE = "state.tar"
FAR_STATE = "/home/.begin"  # beside the home, in its volume: a folder that the desktop's user can remove
_STATUS = "status"
_BEGIN = f"""import os, sys
sys.path.insert(0, "{guest.SETUP}")
import init
os.waitpid(int(sys.argv.pop()), 0)[1] and sys.exit("cu-fleet: the home could not be laid out")
init.main()"""
_NEAR = f"""state={guest.SETUP}/{STATE} used=
exec >>{guest.RUN}/log 2>&1
"""
# What a far desktop says goes into the engine's log, where it outlives its container's memory.
_FAR = f"""state={FAR_STATE}/{STATE} used={FAR_STATE}
mkfifo -m 600 {guest.RUN}/{_STATUS} && : >{guest.RUN}/log || exit
exec 7<>{guest.RUN}/{_STATUS}
"""
_SCRIPT = f"""trap 'exit 143' TERM
( exec 7>&- 8<>{guest.RUN}/{_STATUS} 9</dev/null </dev/null
umask 022
"$@" 8>&- 9>&- & screen=$!
{{ tar --extract --file=$state --directory=/ --preserve-permissions --delay-directory-restore \
    --no-overwrite-dir --xattrs --xattrs-include='user.*' &&
rm -rf {HOME}/Shared $used && ln -s {SLOT} {HOME}/Shared; }} 8>&- 9>&- &
exec /usr/bin/python3 -I -S -c '{_BEGIN}' $screen $! ) &
wait $!"""


def script(*, far: bool) -> str:
    return (_FAR if far else _NEAR) + _SCRIPT


def prepare(desk: Desk, spec: Spec, uid: int, template: Path | None) -> None:
    """Make the folders that the container sees; the slot is left as it is."""
    make_run(desk, uid)
    if not desk.slot.exists():
        _own(desk.slot, uid)
    os.mkfifo(desk.run / _STATUS, 0o600)
    os.chown(desk.run / _STATUS, uid, -1)
    desk.init.mkdir(mode=0o755)
    for name, data in (system_files(spec, uid) | own_files(spec)).items():
        (desk.init / name).parent.mkdir(exist_ok=True)
        write(desk.init / name, data)
    if spec.snapshot is None:
        write(desk.init / STATE, clean_state(template))


def make_run(desk: Desk, uid: int) -> None:
    """Begin with an empty folder for its sockets, and nothing of an earlier start."""
    desk.dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    folder = os.open(desk.dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wipe(folder, desk.run.name)
        wipe(folder, desk.init.name)
    finally:
        os.close(folder)
    _own(desk.run, uid)


def mark(desk: Desk, *, far: bool) -> None:
    """Before anything else is made of it: there is a desktop, and where its engine is."""
    desk.dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    if far:
        write(desk.dir / FAR, b"")
    else:
        (desk.dir / FAR).unlink(missing_ok=True)


def system_files(spec: Spec, uid: int) -> dict[str, bytes]:
    """What lies below /etc."""
    return {
        **{name: text.encode() for name, text in inside.accounts(uid).items()},
        "hosts": f"127.0.0.1\tlocalhost {inside.hostname(spec.label)}\n::1\tlocalhost\n".encode(),
        "machine-id": inside.machine_id().encode(),
    }


def own_files(spec: Spec) -> dict[str, bytes]:
    """What lies in init's folder."""
    return {
        "config": inside.config(spec.profile, spec.boot),
        "openbox.xml": inside.OPENBOX.encode(),
        **_init(),
    }


@cache
def _init() -> dict[str, bytes]:
    """The program, and beside it where Python looks what our own Python makes of it, to be used as it is (PEP 552)."""
    code = marshal.dumps(compile(inside.INIT, f"{guest.SETUP}/init.py", "exec", dont_inherit=True))
    unchecked = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
    return {"init.py": inside.INIT.encode(), importlib.util.cache_from_source("init.py"): unchecked + code}


def _own(folder: Path, uid: int) -> None:
    folder.mkdir(mode=0o700)
    if os.geteuid() == 0:
        os.chown(folder, uid, uid)


def clean_state(template: Path | None) -> bytes:
    """An archive of what a fresh desktop has; what the profile's folder says wins over the built-in."""
    return inside.home(template) if template else _plain_state()


@cache
def _plain_state() -> bytes:
    return inside.home(None)


def open_status(desk: Desk) -> int:
    """The reading end of the pipe on which init tells how far it is; at its end the container has ended."""
    return os.open(desk.run / _STATUS, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
