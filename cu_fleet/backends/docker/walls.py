"""What a container may do and have: nothing but what a desktop needs.

An ordinary user without any capability, who can gain none; a filter on system calls; a read-only system; its own
processes, users' names, IPC and host name; no network, or one of its own that nobody else is in; bounds on memory,
processes, CPU time and shared memory. It writes to two volumes (its home and /tmp), two small memory file systems,
its slot and its run folder.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cu_fleet.backends import inside
from cu_fleet.backends.base import Spec
from cu_fleet.backends.docker import seccomp
from cu_fleet.backends.docker.begin import SLOT, script
from cu_fleet.backends.docker.engine import short_log
from cu_fleet.backends.docker.layout import Desk
from cu_fleet.backends.docker.options import Options, image, options
from cu_fleet.guest import init as guest
from cu_fleet.model.profile import Profile

if TYPE_CHECKING:
    from docker import APIClient

_OWN_FILES = ("group", "machine-id", "passwd")
_PERIOD = 100_000  # microseconds; a quota is not refused for asking more CPUs than the machine has
_HEALTHY = f"""import socket, sys
s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect("{guest.RUN}/rfb.sock"); sys.exit(s.recv(3) != b"RFB")"""
_SECOND = 10**9


def container(
    api: APIClient, desk: Desk, spec: Spec, uid: int, labels: dict[str, str], *, polled: bool = False
) -> dict[str, Any]:
    """The arguments with which the desktop's container is created; `polled`: of an image whose screen is x11vnc's."""
    profile, own = spec.profile, options(spec.profile)
    screen = inside.polled_screen if polled else inside.screen
    return {
        "image": image(profile),
        "name": desk.name,
        "command": ["/bin/sh", "-c", script(far=desk.far), desk.name, *screen(profile, spec.label, opengl=own.opengl)],
        "entrypoint": [],
        "user": f"{uid}:{uid}",
        "working_dir": "/",
        "hostname": inside.hostname(spec.label),
        "environment": inside.environment(profile, uid),
        "labels": labels,
        "network_disabled": profile.network == "none",  # faster than an engine's network without anything in it
        "healthcheck": {
            "test": ["CMD", "/usr/bin/python3", "-I", "-c", _HEALTHY],
            "interval": 60 * _SECOND,
            "timeout": 10 * _SECOND,
            "retries": 2,
        },
        "host_config": api.create_host_config(
            mounts=_mounts(desk, profile), tmpfs=_memory(desk, uid),
            **_powers(own, far=desk.far), **limits(profile, own.shm),
            network_mode=desk.name if profile.network == "full" else "none",
            log_config=short_log("1m"),
        ),
    }  # fmt: skip


def _powers(own: Options, *, far: bool) -> dict[str, Any]:
    """Far, our own files lie in its system, which nobody inside can change either."""
    return powers(user_namespaces=own.user_namespaces) | {"read_only": not far}


def powers(*, user_namespaces: bool) -> dict[str, Any]:
    return {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true", f"seccomp={seccomp.program(user_namespaces=user_namespaces)}"],
        "ipc_mode": "private",
        "restart_policy": {"Name": "no"},
        "oom_score_adj": 200,
    }


def powers_to_read() -> dict[str, Any]:
    """Of a container of our own that reads what desktops wrote: the right to read all files that it sees, no more."""
    return {
        "cap_drop": ["ALL"],
        "cap_add": ["DAC_READ_SEARCH"],
        "security_opt": [
            "no-new-privileges:true",
            f"seccomp={seccomp.program(user_namespaces=False, by_handle=False)}",
        ],
        "read_only": True,
    }


def limits(profile: Profile, shm: int) -> dict[str, Any]:
    from docker.types import Ulimit

    most = profile.limits
    return {
        "mem_limit": most.memory,
        "memswap_limit": most.memory,  # of both together: no swap
        "pids_limit": most.processes,
        "cpu_period": _PERIOD,
        "cpu_quota": max(1000, int(most.cpus * _PERIOD)),
        "shm_size": shm,
        "ulimits": [Ulimit(name="core", soft=0, hard=0)],
    }


def _mounts(desk: Desk, profile: Profile) -> list[Any]:
    from docker.types import Mount

    if desk.far:
        return [Mount(to, name, type="volume") for name, to in (desk.volumes | {desk.slot_volume: SLOT}).items()]
    files = (*_OWN_FILES, *(["hosts"] if profile.network == "none" else []))  # the engine writes it for a network
    own = [(f"/etc/{name}", desk.init / name, True) for name in files]
    folders = [(guest.RUN, desk.run, False), (guest.SETUP, desk.init, True), (SLOT, desk.slot, False)]
    return [
        *(Mount(to, str(path), type="bind", read_only=ro) for to, path, ro in [*own, *folders]),
        *(Mount(to, name, type="volume") for name, to in desk.volumes.items()),
    ]


def _memory(desk: Desk, uid: int) -> dict[str, str]:
    own = f"mode=0700,uid={uid},gid={uid},size=64m"
    run = {guest.RUN: own} if desk.far else {"/run": "mode=0755,size=64m"}
    return {
        **run,
        f"/run/user/{uid}": own,
        "/tmp/.X11-unix": "mode=1777,size=1m",  # noqa: S108  # its own
        "/var/tmp": "mode=1777,size=256m",  # noqa: S108
    }
