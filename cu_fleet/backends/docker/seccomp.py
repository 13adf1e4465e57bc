"""The filter on system calls, as an engine takes it: an allow-list.

`default-seccomp.json` is what the Moby project ships (github.com/moby/profiles, Apache-2.0), in a version that also
keeps VM sockets and io_uring closed, which cut across namespaces; older engines' own lists leave both open. Programs
that build a sandbox themselves, Chromium first, need user namespaces, and get them only where a profile says so.
"""

import json
from functools import cache
from importlib.resources import files

# What Chromium's sandbox calls inside and for a user namespace of its own, where it has privileges over nothing else.
_FOR_SANDBOXES = ["chroot", "clone", "unshare"]


@cache
def program(*, user_namespaces: bool, by_handle: bool = True) -> str:
    """`by_handle`: who may read all files may also open files that it does not see."""
    found = json.loads(files("cu_fleet.backends.docker").joinpath("default-seccomp.json").read_text("ascii"))
    if user_namespaces:
        found["syscalls"].append({"names": _FOR_SANDBOXES, "action": "SCMP_ACT_ALLOW"})
    if not by_handle:
        found["syscalls"] = [rule for rule in found["syscalls"] if "open_by_handle_at" not in rule["names"]]
    return json.dumps(found)
