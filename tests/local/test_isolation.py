"""From inside one desktop, nothing of another and nothing of the controller's can be seen or reached."""

# In a test, nobody else waits for the loop.
# ruff: noqa: ASYNC240

import ctypes
import json
import os
import secrets
import socket
from pathlib import Path

import pytest

from cu_fleet.backends.local import demands
from cu_fleet.model.desktop import Handle
from cu_fleet.model.errors import FleetError
from tests.attempts import KERNEL, TRY
from tests.local.support import WHO, Fleet, in_fleet, left_of
from tests.support import command_lines, until

pytestmark = pytest.mark.real


async def attempts(fleet: Fleet, handle: Handle, script: str, *args: str) -> dict[str, object]:
    code, said = await fleet.python(handle, TRY + script + "\nprint(json.dumps(got))", *args)
    assert code == 0, said
    got: dict[str, object] = json.loads(said.splitlines()[-1])
    return got


@WHO
def test_a_neighbour_cannot_be_seen_or_reached(who: str) -> None:
    needle = "needle-" + secrets.token_hex(8)

    async def body(fleet: Fleet) -> None:
        neighbour, handle = await fleet.start("dk_b"), await fleet.start("dk_a")
        code, said = await fleet.python(neighbour, _LIVE, needle)
        assert code == 0, said

        async def clip() -> bool:
            return needle in (await fleet.sh(neighbour, "xclip -o -selection clipboard"))[1]

        await until(clip)
        pid = next(pid for pid, words in command_lines().items() if words.startswith("sleep 7777"))
        got = await attempts(fleet, handle, _NEIGHBOUR, needle, str(pid), str(fleet.home))
        assert got == {
            "processes": [],
            "environments": [],
            "files": [],
            "its folder": False,
            "abstract socket": "ECONNREFUSED",
            "listed sockets": [],
            "X displays": ["X0"],
            "loopback": "ECONNREFUSED",
            "System V memory": "ENOENT",
            "POSIX memory": [],
            "clipboard": False,
            "its hostname": False,
            "kill": "ESRCH",
            "ptrace": "ESRCH",
            "its memory": "ENOENT",
        }

    in_fleet(who, body)


_LIVE = """
import ctypes, os, socket, subprocess, sys
needle = sys.argv[1]
for folder in (os.environ["HOME"], os.environ["HOME"] + "/Shared", "/tmp", "/dev/shm"):
    open(f"{folder}/{needle}", "w").write(needle)
libc = ctypes.CDLL(None)
shm = libc.shmget(0x5ec2e7, 4096, 0o1666)
assert shm >= 0
if os.fork() == 0:
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    a = socket.socket(socket.AF_UNIX); a.bind("\\0" + needle); a.listen(5)
    t = socket.socket(); t.bind(("127.0.0.1", 5999)); t.listen(5)
    x = subprocess.Popen(["xclip", "-selection", "clipboard"], stdin=subprocess.PIPE, stdout=null, stderr=null)
    x.communicate(needle.encode())
    for n in (0, 1, 2): os.dup2(null, n)
    for s in (a, t): os.set_inheritable(s.fileno(), True)
    os.execvpe("sleep", ["sleep", "7777", needle[:0] or "1"], os.environ | {"NEEDLE": needle})
"""

_NEIGHBOUR = """
needle, pid, home = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def environments():
    found = []
    for p in os.listdir("/proc"):
        if p.isdigit() and int(p) not in (os.getpid(),):
            try:
                if b"NEEDLE=" in open(f"/proc/{p}/environ", "rb").read(): found.append(p)
            except OSError:
                pass
    return found
def files():
    found = []
    for top, folders, names in os.walk("/", followlinks=False):
        folders[:] = [f for f in folders if (top, f) not in (("/", "proc"), ("/", "usr"), ("/", "opt"))]
        found += [os.path.join(top, n) for n in (*names, *folders) if needle in n]
    return found
def shm():
    ctypes.set_errno(0)
    return "found" if libc.shmget(0x5ec2e7, 0, 0) >= 0 else errno.errorcode[ctypes.get_errno()]
def memory():
    return open(f"/proc/{pid}/mem", "rb").read(1) and "read"
def ptrace():
    ctypes.set_errno(0)
    return "attached" if libc.ptrace(16, pid, 0, 0) >= 0 else errno.errorcode[ctypes.get_errno()]
attempt("processes", lambda: [p for p in os.listdir("/proc") if p.isdigit()
                              and open(f"/proc/{p}/cmdline", "rb").read().startswith(b"sleep\\x007777")])
attempt("environments", environments)
attempt("files", files)
attempt("its folder", lambda: os.path.exists(home))
attempt("abstract socket", lambda: unix("\\0" + needle))
attempt("listed sockets", lambda: [l for l in open("/proc/net/unix") if needle in l])
attempt("X displays", lambda: os.listdir("/tmp/.X11-unix"))
attempt("loopback", lambda: tcp("127.0.0.1", 5999))
attempt("System V memory", shm)
attempt("POSIX memory", lambda: os.listdir("/dev/shm"))
attempt("clipboard", lambda: needle in os.popen("xclip -o -selection clipboard 2>&1").read())
attempt("its hostname", lambda: os.uname().nodename == "label-1")
attempt("kill", lambda: os.kill(pid, 9))
attempt("ptrace", ptrace)
attempt("its memory", memory)
"""


@WHO
def test_the_host_and_the_controller_cannot_be_seen_or_reached(who: str) -> None:
    needle = "needle-" + secrets.token_hex(8)

    async def body(fleet: Fleet) -> None:
        (fleet.home / "operator.token").write_text(needle)
        host_file = Path("/tmp") / needle
        host_file.write_text(needle)
        doors = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.socket()]
        libc = ctypes.CDLL(None)
        shm = libc.shmget(0x5EC2E8, 4096, 0o1666)
        try:
            doors[0].bind(str(fleet.home / "controller.sock"))
            doors[1].bind("\0" + needle)
            doors[2].bind(("127.0.0.1", 0))
            for door in doors:
                door.listen()
            handle = await fleet.start()
            port = str(doors[2].getsockname()[1])
            got = await attempts(fleet, handle, _HOST, needle, str(fleet.home), port, str(os.getpid()))
        finally:
            for door in doors:
                door.close()
            host_file.unlink()
            libc.shmctl(shm, 0, None)
        assert got == {
            "token": "ENOENT",
            "controller's socket": "ENOENT",
            "abstract socket": "ECONNREFUSED",
            "loopback": "ECONNREFUSED",
            "/tmp": "ENOENT",
            "System V memory": "ENOENT",
            "controller's root": "ENOENT",
            "controller": "ESRCH",
            "top": ["bin", "dev", "etc", "home", "opt", "proc", "run", "sbin", "tmp", "usr", "var"],
            "/home": ["agent"],
            "/run": ["cu-fleet", "cu-fleet-init", "user"],
            "/var": ["cache", "run", "tmp"],
            "/etc/shadow": "ENOENT",
            "terminal": "ENXIO",
            "writes": ["EROFS"],
        }

    in_fleet(who, body)


_HOST = """
needle, home, port, pid = sys.argv[1:]
def shm():
    ctypes.set_errno(0)
    return "found" if libc.shmget(0x5ec2e8, 0, 0) >= 0 else errno.errorcode[ctypes.get_errno()]
def write(path):
    try:
        open(path, "w").close()
        return path
    except OSError as e:
        return errno.errorcode[e.errno]
attempt("token", lambda: open(f"{home}/operator.token").read())
attempt("controller's socket", lambda: unix(f"{home}/controller.sock"))
attempt("abstract socket", lambda: unix("\\0" + needle))
attempt("loopback", lambda: tcp("127.0.0.1", port))
attempt("/tmp", lambda: open(f"/tmp/{needle}").read())
attempt("System V memory", shm)
attempt("controller's root", lambda: os.listdir(f"/proc/{pid}/root"))
attempt("controller", lambda: os.kill(int(pid), 0))
attempt("top", lambda: sorted({*os.listdir("/"), "opt"} - {"lib", "lib32", "lib64", "libx32"}))
attempt("/home", lambda: os.listdir("/home"))
attempt("/run", lambda: sorted(os.listdir("/run")))
attempt("/var", lambda: sorted(os.listdir("/var")))
attempt("/etc/shadow", lambda: open("/etc/shadow").read())
attempt("terminal", lambda: os.open("/dev/tty", os.O_RDWR))
attempt("writes", lambda: sorted({write(p) for p in ("/x", "/etc/x", "/etc/passwd", "/usr/x", "/home/x",
                                                     "/run/cu-fleet-init/init.py", "/var/cache/fontconfig/x")}))
"""


@WHO
def test_what_cuts_across_namespaces_is_refused(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        got = await attempts(fleet, handle, KERNEL + _KERNEL)
        assert got == {
            "keyrings": ["ENOSYS", "ENOSYS", "ENOSYS"],
            "listed keys": "EACCES",
            "VM sockets": "EAFNOSUPPORT",
            "raw packets": "EAFNOSUPPORT",
            "bpf": "ENOSYS",
            "perf": "ENOSYS",
            "io_uring": "ENOSYS",
            "userfaultfd": "ENOSYS",
            "another's terminal": "EPERM",
            "32-bit calls": "ENOSYS",
            "no new privileges": "1",
            "capabilities": "0000000000000000",
            "kernel settings": "EACCES",
            "device": "EPERM",
        } | ({} if os.uname().machine == "x86_64" else {"32-bit calls": got["32-bit calls"]})
        nested = "unshare --user --map-root-user --net --mount --pid --fork sh -c 'ip link; umount /etc; ls /oldroot'"
        code, said = await fleet.sh(handle, nested)
        assert "lo:" in said, "Chromium's own sandbox needs user namespaces"
        assert "umount: /etc: not mounted" in said or "must be superuser" in said or "Invalid argument" in said
        assert code != 0

    in_fleet(who, body)


_KERNEL = """
def sti():
    master, slave = pty.openpty()
    return fcntl.ioctl(slave, termios.TIOCSTI, b"x") or "pushed"
attempt("another's terminal", sti)
attempt("32-bit calls", lambda: syscall(0x40000000 + 39))
status = dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines())
got["no new privileges"], got["capabilities"] = status["NoNewPrivs"], status["CapEff"]
attempt("kernel settings", lambda: open("/proc/sys/kernel/panic", "w").write("1"))
attempt("device", lambda: os.mknod("/tmp/sda", 0o60600, os.makedev(8, 0)) or "made")
"""


@WHO
def test_chromium_keeps_its_own_sandbox(who: str) -> None:
    if demands.which("chromium") is None:
        pytest.skip("chromium is not installed here")

    async def body(fleet: Fleet) -> None:
        handle = await fleet.start(limits={"processes": 1024, "memory": "3G"})
        await fleet.sh(handle, "setsid -f chromium --disable-gpu --no-first-run </dev/null >/dev/null 2>&1 about:blank")
        renderers = "for p in $(pgrep -f '^[^ ]*chromium .*type=renderer'); do readlink /proc/$p/ns/pid; done"

        async def rendering() -> list[str]:
            return (await fleet.sh(handle, renderers))[1].split()

        own = (await fleet.sh(handle, "readlink /proc/self/ns/pid"))[1].strip()
        assert own not in await until(rendering, 40)
        assert (await fleet.sh(handle, "ps axo args | grep -c '[n]o-sandbox'"))[1] == "0\n"

    in_fleet(who, body)


@WHO
def test_hiding_from_the_controller_does_not_save_a_process(who: str) -> None:
    """It unlocks the lock, blanks the arguments that name it, and ends init; `stop` must still end all of it."""

    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        code, said = await fleet.python(handle, _HIDE)
        assert code == 0, said
        pids = {pid for pid, words in command_lines().items() if words.startswith("sleep 8888")}
        assert pids
        await fleet.backend.stop(handle)
        assert not pids & {pid for pid, _ in command_lines().items()}
        assert not Path(f"/proc/{handle['pid']}").exists()
        assert left_of(fleet.id, fleet.home) == []

    in_fleet(who, body)


_HIDE = """
import ctypes, fcntl, os, struct
libc = ctypes.CDLL(None)
fd = libc.syscall(438, os.pidfd_open(1), 5, 0)  # pidfd_getfd: bubblewrap's hold on the lock
if fd >= 0:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", fcntl.F_UNLCK, 0, 0, 0, 0))
fields = open("/proc/1/stat").read().rpartition(")")[2].split()
start, end = int(fields[45]), int(fields[46])
with open("/proc/1/mem", "r+b", buffering=0) as memory:
    memory.seek(start)
    memory.write(b"x" * (end - start))
assert b"cu-fleet/" not in open("/proc/1/cmdline", "rb").read()
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        for n in (0, 1, 2): os.dup2(null, n)
        os.execvp("sleep", ["sleep", "8888"])
"""


@WHO
def test_imitating_a_neighbours_marker_does_not_matter(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        neighbour, handle = await fleet.start("dk_b"), await fleet.start("dk_a")
        marker = f"cu-fleet/{fleet.id}/dk_b"
        await fleet.sh(handle, f"setsid -f sh -c 'sleep 6666; true' {marker} >/dev/null 2>&1 </dev/null")
        fake = f"cu-fleet/{fleet.id}/dk_phantom"
        await fleet.sh(handle, f"setsid -f sh -c 'sleep 6666; true' {fake} >/dev/null 2>&1 </dev/null")
        assert {f.desktop for f in await fleet.backend.found()} == {"dk_a", "dk_b"}
        await fleet.backend.stop(neighbour)
        assert (await fleet.sh(handle, "pgrep -fc '[s]leep 6666; true'"))[1] == "2\n"

    in_fleet(who, body)


@WHO
def test_logs_are_read_without_following_what_was_planted(who: str) -> None:
    async def body(fleet: Fleet) -> None:
        secret = fleet.home / "operator.token"
        secret.write_text("the-token")
        handle = await fleet.start()
        logs = fleet.backend.abilities.logs
        assert logs is not None
        assert "vncext" in await logs.logs(handle)
        for plant in (f"ln -s {secret} $L", "mkfifo $L", "mkdir $L", "ln -s /dev/zero $L", "ln -s . $L"):
            await fleet.sh(handle, f"L=/run/cu-fleet/log; rm -rf $L; {plant}")
            assert await logs.logs(handle) == ""
        await fleet.sh(handle, "L=/run/cu-fleet/log; rm -rf $L; truncate -s 3G $L; echo end >> $L")
        said = await logs.logs(handle)
        assert said.endswith("end\n")
        assert len(said) <= 64 << 10

    in_fleet(who, body)


def test_an_exec_door_that_lies_cannot_hold_or_flood_us() -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        await fleet.sh(handle, 'setsid -f python3 -c "$1" </dev/null >/dev/null 2>&1', _LIAR)
        ability = fleet.backend.abilities.exec
        assert ability is not None

        async def lied() -> str:
            try:
                await ability.exec(handle, ["true"])
            except Exception as e:  # noqa: BLE001  # its class is what is asserted
                return type(e).__name__
            return ""

        async def is_nonsense() -> bool:
            return await lied() == "BrokenError"

        await until(is_nonsense)

    in_fleet("user", body)


_LIAR = """
import os, socket
os.unlink("/run/cu-fleet/exec.sock")
s = socket.socket(socket.AF_UNIX); s.bind("/run/cu-fleet/exec.sock"); s.listen(5)
while True:
    c, _ = s.accept()
    try:
        for _ in range(100000): c.sendall(b"x" * 65536)
    except OSError:
        pass
"""


def network_address() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            s.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network to reach")
        return str(s.getsockname()[0])


async def refused_for_want_of_a_tun(fleet: Fleet) -> None:
    """Where the tun device is closed to ordinary users, their desktops get no network, and hear why."""
    with pytest.raises(FleetError, match=str(demands.TUN)):
        await fleet.start(network="full")


@WHO
def test_a_network_reaches_out_but_not_the_hosts_loopback(who: str) -> None:
    if who == "user" and demands.TUN.stat().st_mode & 0o006 != 0o006:
        in_fleet(who, refused_for_want_of_a_tun)
        return
    outside = network_address()
    needle = "needle-" + secrets.token_hex(8)

    async def body(fleet: Fleet) -> None:
        doors = [socket.socket(), socket.socket(), socket.socket(socket.AF_UNIX)]
        doors[0].bind(("127.0.0.1", 0))
        doors[1].bind((outside, 0))
        doors[2].bind("\0" + needle)
        for door in doors:
            door.listen()
        try:
            handle = await fleet.start(network="full")
            ports = [str(door.getsockname()[1]) for door in doors[:2]]
            got = await attempts(fleet, handle, _NETWORK, ports[0], outside, ports[1], needle)
        finally:
            for door in doors:
                door.close()
        assert got["outside"] == "connected"
        assert got["abstract socket"] == "ECONNREFUSED"
        assert set(got["loopback"]) <= {"ECONNREFUSED", "ENETUNREACH", "ETIMEDOUT"}  # type: ignore[call-overload]
        quiet = await fleet.start(network="none")
        assert (await fleet.sh(quiet, "ls /sys/class/net /proc/sys/net/ipv4/conf 2>/dev/null"))[1].split() == [
            "/proc/sys/net/ipv4/conf:",
            "all",
            "default",
            "lo",
        ]

    in_fleet(who, body)


_NETWORK = """
port, outside, outside_port, needle = sys.argv[1:]
attempt("outside", lambda: tcp(outside, outside_port))
attempt("abstract socket", lambda: unix("\\0" + needle))
loopback = []
for host in ("127.0.0.1", "10.0.2.2"):
    attempt("loopback", lambda: tcp(host, port))
    loopback.append(got["loopback"])
got["loopback"] = loopback
"""
