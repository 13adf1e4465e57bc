"""A filter on system calls, handed to bubblewrap as BPF.

Namespaces do not hold everything: keyrings and VM sockets cut across them, and much of the kernel that no desktop
program needs is where its holes were found. What Chromium's own sandbox, D-Bus and GTK need stays open, `unshare`
and `clone` above all. Calls of a foreign architecture are refused whole, as their numbers mean other things.
"""

import errno
import platform
import socket
import struct

_TABLE = {  # x86_64, aarch64; None where the architecture has no such call
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "acct": (163, 89),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "lookup_dcookie": (212, 18),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "userfaultfd": (323, 282),
    "uselib": (134, None),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
_SOCKET, _IOCTL = (41, 198), (16, 29)
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)  # no VM sockets, Bluetooth, …
_IOCTLS = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX put words into another's terminal
_ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_Line = tuple[int, int, int, int]  # opcode, how far to jump if true, and if not, and a constant
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF opcodes
_NR, _ARCHITECTURE, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in seccomp_data; the low halves of arguments
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def program(machine: str = "") -> bytes | None:
    """The filter for this machine; None for an architecture whose numbers we do not know."""
    known = _ARCH.get(machine or platform.machine())
    if known is None:
        return None
    column, audit = known
    code = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, audit), _refuse(errno.ENOSYS), (_LOAD, 0, 0, _NR)]
    if column == 0:
        code += [(_AT_LEAST, 0, 1, _X32), _refuse(errno.ENOSYS)]
    for numbers in _TABLE.values():
        if (number := numbers[column]) is not None:
            code += [(_EQUAL, 0, 1, number), _refuse(errno.ENOSYS)]
    code += _argument(_SOCKET[column], _ARG0, _FAMILIES, allow=True, code=errno.EAFNOSUPPORT)
    code += _argument(_IOCTL[column], _ARG1, _IOCTLS, allow=False, code=errno.EPERM)
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("<HBBI", *line) for line in code)


def _refuse(code: int) -> _Line:
    return _RETURN, 0, 0, _ERRNO | code


def _argument(number: int, at: int, values: tuple[int, ...], *, allow: bool, code: int) -> list[_Line]:
    """For one call: allow it only with these values of an argument, or refuse it with them."""
    listed, other = (_RETURN, 0, 0, _ALLOW), _refuse(code)
    if not allow:
        listed, other = other, listed
    tests: list[_Line] = [(_LOAD, 0, 0, at)]
    for n, value in enumerate(values):
        tests.append((_EQUAL, len(values) - n, 0, value))
    return [(_EQUAL, 0, len(tests) + 2, number), *tests, other, listed]
