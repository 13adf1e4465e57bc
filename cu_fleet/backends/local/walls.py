"""What a desktop may see of this machine, as an allow-list, and the arguments that tell bubblewrap so.

Programs and libraries, /opt, and those entries of /etc that programs need to start and that hold nothing personal:
all read-only. Its own home, /tmp, slot and run directory: writable. Nothing else of the host's files exists inside,
neither /var, /root, /home, /srv, /mnt and /run nor the fleet's home, which may therefore not lie in what is shown.
"""

import functools
import os
import stat
import subprocess
from pathlib import Path

from cu_fleet.backends import inside
from cu_fleet.backends.inside import HOME, UID, environment, hostname
from cu_fleet.backends.local import demands
from cu_fleet.backends.local.layout import Desk, write
from cu_fleet.guest import init as guest
from cu_fleet.model.errors import InvalidError
from cu_fleet.model.profile import Profile

_TMP = "/tmp"  # noqa: S108  # the desktop's own
_X_SOCKETS = f"{_TMP}/.X11-unix"
_ROOTS = ("/usr", "/opt")
_MERGED = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr on most machines
_SHM = "/dev/shm"  # noqa: S108  # the desktop's own
_SCRATCH = str(256 << 20)  # most that /run, and as much that /var, may hold; it is the desktop's memory
# A shell starts Xvnc and then becomes init, so that neither waits for the other's loading.
_BEGIN = f"""exec </dev/null >>{guest.RUN}/log 2>&1
for f in /tmp/.X*-lock; do if [ -e "$f" ] || [ -L "$f" ]; then rm -rf "$f"; fi; done
"$@" 8>&- 9>&- & exec {demands.PYTHON} -I -S {guest.SETUP}/init.pyc $!"""
# Compiled beforehand, by the same Python: that takes longer than all else that init does until the screen is up.
_COMPILE = """import importlib.util, marshal, sys
code = compile(sys.stdin.buffer.read(), "init.py", "exec", optimize=2)
sys.stdout.buffer.write(importlib.util.MAGIC_NUMBER + bytes(12) + marshal.dumps(code))"""


_SHOWN = {name: Path(name).resolve() for name in (*_ROOTS, *_MERGED, "/etc")}


def refuse_home(home: Path) -> None:
    really = home.resolve()
    for name, shown in _SHOWN.items():
        if really.is_relative_to(shown):
            raise InvalidError(
                f"the fleet's home {home} lies in {name}, which desktops can read",
                remedy="set CU_FLEET_HOME to a folder elsewhere",
                code="home_shown",
            )


def prepare(desk: Desk, profile: Profile, label: str, boot: str) -> None:
    """Write the files that are made anew for each start."""
    own = desk.dir / "init"
    own.mkdir(mode=0o755, exist_ok=True)
    host = hostname(label)
    for name, text in {
        **inside.accounts(UID),
        "hosts": f"127.0.0.1\tlocalhost {host}\n::1\tlocalhost ip6-localhost\n",
        "hostname": f"{host}\n",
        "machine-id": inside.machine_id(),
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        "resolv.conf": "nameserver 10.0.2.3\n" if profile.network == "full" else "",
        "timezone": f"{profile.timezone}\n",
    }.items():
        write(own / name, text)
    (own / "localtime").unlink(missing_ok=True)
    (own / "localtime").symlink_to(f"/usr/share/zoneinfo/{profile.timezone}")
    write(own / "config", inside.config(profile, boot))
    write(own / "openbox.xml", inside.OPENBOX)
    write(own / "init.pyc", _compiled(inside.INIT, demands.PYTHON.stat().st_mtime_ns))


@functools.lru_cache(maxsize=1)
def _compiled(text: str, python: int) -> bytes:  # another Python understands another code
    command = [str(demands.PYTHON), "-I", "-c", _COMPILE]
    return subprocess.run(command, input=text.encode(), check=True, stdout=subprocess.PIPE, env={}).stdout


def arguments(folder: Path, etc: Path, profile: Profile, label: str) -> list[str]:
    """bubblewrap's own arguments; `folder` is where it finds the desktop's files."""
    args = ["--unshare-user", "--uid", str(UID), "--gid", str(UID), "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    args += ["--unshare-net", "--unshare-cgroup-try", "--new-session", "--hostname", hostname(label)]
    args += ["--die-with-parent"]  # of its first process with bubblewrap outside, which itself is nobody's child by now
    for path in (Path(name) for name in (*_ROOTS, *_MERGED)):
        if path.is_symlink():
            args += ["--symlink", str(path.readlink()), str(path)]
        elif path.exists():
            args += ["--ro-bind", str(path), str(path)]
    args += ["--ro-bind", str(etc), "/etc", "--perms", "0755", "--dir", "/home"]
    args += ["--dev", "/dev", "--perms", "1777", "--size", str(profile.limits.memory // 2), "--tmpfs", _SHM]
    args += ["--remount-ro", "/dev", "--proc", "/proc", "--ro-bind", "/dev/null", "/proc/keys"]
    args += ["--size", _SCRATCH, "--tmpfs", "/run", "--size", _SCRATCH, "--tmpfs", "/var"]
    args += ["--perms", "1777", "--dir", "/var/tmp", "--symlink", "/run", "/var/run"]  # noqa: S108  # inside
    args += ["--ro-bind-try", "/var/cache/fontconfig", "/var/cache/fontconfig"]
    args += ["--perms", "0700", "--dir", f"/run/user/{UID}"]
    args += ["--bind", str(folder / "state/home"), HOME, "--bind", str(folder / "slot"), f"{HOME}/Shared"]
    args += ["--bind", str(folder / "state/tmp"), _TMP, "--perms", "1777", "--tmpfs", _X_SOCKETS]
    args += ["--bind", str(folder / "run"), guest.RUN, "--ro-bind", str(folder / "init"), guest.SETUP]
    args += ["--remount-ro", "/", "--chdir", HOME]
    for name, value in environment(profile).items():
        args += ["--setenv", name, value]
    return args


def command(desk: Desk, profile: Profile, label: str) -> list[str]:
    """What runs inside."""
    words = inside.screen(profile, label, opengl=demands.options(profile).opengl)
    return ["/bin/sh", "-c", _BEGIN, desk.marker, *words]


def clear_way(desk: Desk) -> None:
    """Make sure that what others are mounted on are folders, whatever the inside left in a state that it keeps."""
    for folder, name in (("home", "Shared"), ("tmp", ".X11-unix")):
        fd = os.open(desk.state / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                os.unlink(name, dir_fd=fd)
        except FileNotFoundError:
            pass
        finally:
            os.close(fd)
