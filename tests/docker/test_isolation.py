"""From inside one container, nothing of another, of the controller's or of the machine's can be seen or reached."""

import os
import secrets
import socket
import subprocess
from pathlib import Path

import pytest

from cu_fleet.testing.dockerd import PrivateDocker
from tests.attempts import KERNEL
from tests.docker.support import Fleet, in_fleet
from tests.support import until

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_neighbour_cannot_be_seen_or_reached(engine: PrivateDocker, tmp_path: Path) -> None:
    needle = "needle-" + secrets.token_hex(8)

    async def body(fleet: Fleet) -> None:
        neighbour, handle = await fleet.start("dk_b"), await fleet.start("dk_a")
        assert neighbour["uid"] != handle["uid"], "what the kernel counts by user is each desktop's own"
        code, said = await fleet.run(neighbour, ["python3", "-I", "-c", _LIVE, needle])
        assert code == 0, said
        probe = await fleet.tries(neighbour, _NEIGHBOUR, needle)
        assert probe["files"]
        assert probe["abstract socket"] == "connected"
        assert probe["loopback"] == "connected"
        assert probe["System V memory"] == "found", "the probes themselves work"
        assert await fleet.tries(handle, _NEIGHBOUR, needle) == {
            "processes": [],
            "files": [],
            "abstract socket": "ECONNREFUSED",
            "listed sockets": [],
            "loopback": "ECONNREFUSED",
            "System V memory": "ENOENT",
            "hostname": "label-dk-a",
        }

    in_fleet(engine, tmp_path, body)


_LIVE = """
import ctypes, os, socket, sys
needle = sys.argv[1]
for folder in (os.environ["HOME"], os.environ["HOME"] + "/Shared", "/tmp", "/dev/shm", "/var/tmp"):
    open(f"{folder}/{needle}", "w").write(needle)
assert ctypes.CDLL(None).shmget(0x5ec2e7, 4096, 0o1666) >= 0
a = socket.socket(socket.AF_UNIX); a.bind("\\0" + needle); a.listen(5)
t = socket.socket(); t.bind(("127.0.0.1", 5999)); t.listen(5)
if os.fork() == 0:
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for n in (0, 1, 2): os.dup2(null, n)
    for s in (a, t): os.set_inheritable(s.fileno(), True)
    os.execvp("sleep", ["sleep", "7777"])
"""

_NEIGHBOUR = """
needle = sys.argv[1]
def files():
    found = []
    for top, folders, names in os.walk("/", followlinks=False):
        folders[:] = [f for f in folders if (top, f) not in (("/", "proc"), ("/", "sys"), ("/", "usr"))]
        found += [os.path.join(top, n) for n in (*names, *folders) if needle in n]
    return sorted(found)
def shm():
    ctypes.set_errno(0)
    return "found" if libc.shmget(0x5ec2e7, 0, 0) >= 0 else errno.errorcode[ctypes.get_errno()]
attempt("processes", lambda: [p for p in os.listdir("/proc") if p.isdigit()
                              and open(f"/proc/{p}/cmdline", "rb").read().startswith(b"sleep\\x007777")])
attempt("files", files)
attempt("abstract socket", lambda: unix("\\0" + needle))
attempt("listed sockets", lambda: [l for l in open("/proc/net/unix") if needle in l])
attempt("loopback", lambda: tcp("127.0.0.1", 5999))
attempt("System V memory", shm)
attempt("hostname", lambda: os.uname().nodename)
"""


def test_the_host_and_the_controller_cannot_be_seen_or_reached(engine: PrivateDocker, tmp_path: Path) -> None:
    needle = "needle-" + secrets.token_hex(8)

    async def body(fleet: Fleet) -> None:
        (fleet.home / "operator.token").write_text(needle)
        doors = [socket.socket(socket.AF_UNIX), socket.socket()]
        try:
            doors[0].bind("\0" + needle)
            doors[1].bind(("127.0.0.1", 0))
            for door in doors:
                door.listen()
            handle = await fleet.start()
            port = str(doors[1].getsockname()[1])
            got = await fleet.tries(handle, _HOST, needle, str(fleet.home), port, str(os.getpid()), engine.host[7:])
        finally:
            for door in doors:
                door.close()
        assert got == {
            "token": "ENOENT",
            "engine": "ENOENT",
            "abstract socket": "ECONNREFUSED",
            "loopback": "ECONNREFUSED",
            "controller": "ESRCH",
            "/home": ["agent"],
            "/etc/shadow": "EACCES",
            "the key": False,
            "writes": ["EACCES", "EROFS"],
            "devices": ["ENOENT", "ENOENT"],
            "interfaces": ["lo"],
        }

    in_fleet(engine, tmp_path, body)


_HOST = """
needle, home, port, pid, engine = sys.argv[1:]
def write(path):
    try:
        open(path, "w").close()
        return path
    except OSError as e:
        return errno.errorcode[e.errno]
attempt("token", lambda: open(f"{home}/operator.token").read())
attempt("engine", lambda: unix(engine))
attempt("abstract socket", lambda: unix("\\0" + needle))
attempt("loopback", lambda: tcp("127.0.0.1", port))
attempt("controller", lambda: os.kill(int(pid), 0) or "there" if int(pid) > 1000 else "ESRCH")
attempt("/home", lambda: os.listdir("/home"))
attempt("/etc/shadow", lambda: open("/etc/shadow").read())
attempt("the key", lambda: any("key" in names for _, _, names in os.walk("/run")))
attempt("writes", lambda: sorted({write(p) for p in (
    "/x", "/etc/x", "/etc/passwd", "/usr/x", "/run/cu-fleet-init/init.py", "/run/x", "/opt/x", "/var/cache/x")}))
attempt("devices", lambda: [write("/dev/mem"), write("/dev/kvm")] and ["ENOENT" if not os.path.exists(p) else p
                                                                   for p in ("/dev/mem", "/dev/kvm")])
attempt("interfaces", lambda: [name for _, name in socket.if_nameindex()])
"""


def test_what_cuts_across_namespaces_is_refused(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        got = await fleet.tries(handle, KERNEL + _KERNEL)
        assert got == {
            "keyrings": ["EPERM", "EPERM", "EPERM"],
            "listed keys": "",
            "VM sockets": "EPERM",
            "raw packets": "EPERM",
            "bpf": "EPERM",
            "perf": "EPERM",
            "io_uring": "EPERM",
            "userfaultfd": "EPERM",
            "user namespace": "EPERM",
            "mount": "EPERM",
            "no new privileges": "1",
            "capabilities": ["0000000000000000"] * 5,
            "seccomp": "2",
            "kernel settings": "EROFS",
            "device": "EPERM",
            "set-uid programs": [],
        }

    in_fleet(engine, tmp_path, body)


_KERNEL = """
attempt("user namespace", lambda: syscall(272 if x86 else 97, 0x10000000))
attempt("mount", lambda: syscall(165 if x86 else 40, b"none", b"/tmp", b"tmpfs", 0, 0))
status = dict(l.split(":\\t", 1) for l in open("/proc/self/status").read().splitlines())
got["no new privileges"], got["seccomp"] = status["NoNewPrivs"], status["Seccomp"]
got["capabilities"] = [status[n] for n in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]
attempt("kernel settings", lambda: open("/proc/sys/kernel/panic", "w").write("1"))
attempt("device", lambda: os.mknod("/tmp/sda", 0o60600, os.makedev(8, 0)) or "made")
attempt("set-uid programs", lambda: [os.path.join(top, n) for top, _, names in os.walk("/usr") for n in names
                                     if os.lstat(os.path.join(top, n)).st_mode & 0o6000])
"""


def test_user_namespaces_are_given_where_the_profile_says_so(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start(options={"user_namespaces": True})
        inner = "id -u; /usr/sbin/chroot / true && echo chroot"
        code, said = await fleet.sh(handle, f'unshare --user --map-root-user --net --pid --fork sh -c "{inner}"')
        assert (code, said) == (0, "0\nchroot\n")
        assert (await fleet.sh(handle, "unshare --net true"))[0] != 0, "it has no power over its own"

    in_fleet(engine, tmp_path, body)


def test_limits_hold(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start(limits={"memory": "256M", "processes": 40, "cpus": 0.5}, options={"shm": "32M"})
        eats = await fleet.run(handle, ["python3", "-c", "x = bytearray(400 << 20); print(len(x))"])
        assert eats[0] == 137, "the greedy program is ended, not the desktop"
        _, said = await fleet.sh(handle, "head -c 64M /dev/zero 2>&- >/dev/shm/x; stat -c %s /dev/shm/x")
        assert int(said) <= 32 << 20, said
        forks = await fleet.sh(handle, "for n in $(seq 60); do sleep 30 >/dev/null 2>&1 & done; echo all")
        assert "all" not in forks[1], forks
        assert "ork" in forks[1], forks
        found = await fleet.ask(lambda api: api.inspect_container(fleet.name()))
        host = found["HostConfig"]
        assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (256 << 20, 256 << 20, 40)
        assert host["CpuQuota"] / host["CpuPeriod"] == 0.5
        assert (await fleet.backend.endpoint(handle)) is not None

    in_fleet(engine, tmp_path, body)


def test_what_is_left_behind_inside_is_reaped(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        await fleet.sh(handle, "for n in 1 2 3 4 5; do setsid sh -c 'sleep 0.1 &' & done; wait")

        async def zombies() -> str:
            return (await fleet.sh(handle, "grep -l '^State:.Z' /proc/[0-9]*/status; ps ax | grep -c '[s]leep 0.1'"))[1]

        async def none() -> bool:
            return await zombies() == "0\n"

        await until(none)

    in_fleet(engine, tmp_path, body)


def test_a_network_reaches_out_but_neither_a_neighbour_nor_loopback(engine: PrivateDocker, tmp_path: Path) -> None:
    with subprocess.Popen(
        engine.beside("python3", "-c", _SERVE), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout
        outside, loopback = server.stdout.readline().split()

        async def body(fleet: Fleet) -> None:
            neighbour, handle = await fleet.start("dk_b", network="full"), await fleet.start("dk_a", network="full")
            code, said = await fleet.sh(neighbour, "hostname -I")
            assert code == 0, said
            serves = "import socket,time; s = socket.socket(); s.bind(('', 5999)); s.listen(); time.sleep(600)"
            await fleet.sh(neighbour, 'setsid -f python3 -c "$1" </dev/null >/dev/null 2>&1', serves)
            own = await fleet.tries(neighbour, _OWN)
            assert own == {"own": "connected"}, "the neighbour does serve"
            got = await fleet.tries(handle, _NETWORK, outside, loopback, said.split()[0])
            assert got["outside"] == "connected"
            assert got["loopback"] == "ECONNREFUSED"
            assert got["neighbour"] in ("ETIMEDOUT", "timed out", "EHOSTUNREACH", "ENETUNREACH")
            alone = await fleet.tries(await fleet.start("dk_c"), _NETWORK, outside, loopback, said.split()[0])
            assert alone == {"outside": "ENETUNREACH", "loopback": "ECONNREFUSED", "neighbour": "ENETUNREACH"}

        try:
            in_fleet(engine, tmp_path, body)
        finally:
            server.kill()


_SERVE = """
import socket, sys
sockets = []
for host in ("192.0.2.1", "127.0.0.1"):
    s = socket.socket(); s.bind((host, 0)); s.listen(); sockets.append(s)
print(*(s.getsockname()[1] for s in sockets), flush=True)
sys.stdin.read()
"""

_OWN = """
import time
for _ in range(100):
    attempt("own", lambda: tcp("127.0.0.1", 5999))
    if got["own"] == "connected": break
    time.sleep(0.05)
"""

_NETWORK = """
outside, loopback, neighbour = sys.argv[1:]
attempt("outside", lambda: tcp("192.0.2.1", outside))
attempt("loopback", lambda: tcp("127.0.0.1", loopback))
attempt("neighbour", lambda: tcp(neighbour, 5999))
"""


def test_another_fleets_desktops_are_not_touched(engine: PrivateDocker, tmp_path: Path) -> None:
    async def body(fleet: Fleet) -> None:
        handle = await fleet.start()
        other = Fleet(tmp_path / "other", engine)
        try:
            await other.start()
            assert [found.desktop for found in await other.backend.found()] == ["dk_1"]
            await other.backend.stop({"desktop": "dk_1"})
        finally:
            await other.end()
        assert (await fleet.sh(handle, "echo here"))[1] == "here\n"

    in_fleet(engine, tmp_path, body)
