"""What is tried from inside desktops, whoever made them, that they must not get.

Each attempt's outcome goes into `got`, which is printed as JSON: an exception's name and errno count as one.
"""

TRY = """
import ctypes, errno, fcntl, json, os, pty, socket, sys, termios
libc = ctypes.CDLL(None, use_errno=True)
got = {}
def attempt(name, work):
    try:
        got[name] = work()
    except OSError as e:
        got[name] = errno.errorcode.get(e.errno, str(e))
def syscall(*args):
    ctypes.set_errno(0)
    result = libc.syscall(*args)
    return errno.errorcode[ctypes.get_errno()] if result < 0 else "done"
def unix(path):
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(path)
    return "connected"
def tcp(host, port):
    socket.create_connection((host, int(port)), 5).close()
    return "connected"
"""
KERNEL = """
import platform
x86 = platform.machine() == "x86_64"
attempt("keyrings", lambda: [syscall(250 if x86 else 219, 0, -3, 1), syscall(249 if x86 else 218, b"user", b"a", 0, 0),
                             syscall(248 if x86 else 217, b"user", b"a", b"b", 1, -4)])
attempt("listed keys", lambda: open("/proc/keys").read())
attempt("VM sockets", lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) and "made")
attempt("raw packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW) and "made")
attempt("bpf", lambda: syscall(321 if x86 else 280, 0, 0, 0))
attempt("perf", lambda: syscall(298 if x86 else 241, 0, 0, -1, -1, 0))
attempt("io_uring", lambda: syscall(425, 1, 0))
attempt("userfaultfd", lambda: syscall(323 if x86 else 282, 1))
"""
