"""An engine as from another machine: its files are hidden from it, and it is reached over a network that can fail."""

import asyncio
import datetime
import getpass
import ipaddress
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cu_fleet.testing.dockerd import PrivateDocker


class Relay:
    """A port on loopback that leads to a socket elsewhere, as slow as one likes, until it is cut. In a thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.delay = 0.0  # seconds, each way
        self.carried = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay")

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def host(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Also again, at the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def cut(self, *, listening: bool = False) -> None:
        """Break all connections; unless `listening`, also refuse new ones."""
        asyncio.run_coroutine_threadsafe(self._cut(listening), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self, listening: bool) -> None:
        if self._server and not listening:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            there, back = await self.reach()
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(self._carry(reader, back), name="relay there")
                    both.create_task(self._carry(there, writer), name="relay back")
            finally:
                back.transport.abort()
        except* (OSError, asyncio.CancelledError):  # cut, which is what it is for
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1000)

        async def late() -> None:
            while True:
                at, data = await queue.get()
                if (left := at - loop.time()) > 0:
                    await asyncio.sleep(left)
                if not data:
                    writer.write_eof()
                    return
                writer.write(data)
                await writer.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(late(), name="relay late")
            while data := await reader.read(65536):
                self.carried += len(data)
                await queue.put((loop.time() + self.delay, data))
            await queue.put((loop.time() + self.delay, b""))


class SshServer(Relay):
    """A real sshd for this user alone, one for each connection, and a client who knows its key."""

    def __init__(self, path: str, folder: Path) -> None:
        super().__init__(path)
        self.folder = folder
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        (folder / "sshd").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nPidFile none\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        (folder / "ssh_config").write_text(
            f"Host *\nIdentityFile {folder}/user\nIdentitiesOnly yes\nIdentityAgent none\n"
            f"UserKnownHostsFile {folder}/known\nGlobalKnownHostsFile none\n"
        )
        (folder / "bin").mkdir()
        (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
        (folder / "bin/ssh").chmod(0o755)
        Path("/run/sshd").mkdir(exist_ok=True)
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def host(self) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.path}"

    @property
    def search(self) -> str:
        """PATH, with this client before all others."""
        return f"{self.folder}/bin:{os.environ['PATH']}"

    def introduce(self) -> None:
        """Let the client know the server's key, as its user would."""
        key = (self.folder / "host.pub").read_text()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.port} {key}")

    async def reach(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(sock=self._serve_one())

    def _serve_one(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        words = ["/usr/sbin/sshd", "-i", "-e", "-f", f"{self.folder}/sshd"]
        with (self.folder / "sshd.log").open("ab") as log, theirs:
            self._children.append(subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=log))
        return ours

    async def _cut(self, listening: bool) -> None:
        await super()._cut(listening)
        while self._children:
            child = self._children.pop()
            child.kill()
            child.wait()


class Certificates:
    """An authority, a server on loopback and a client, each a pair of files as docker wants them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._write("ca", self._key, self._signed("ca", self._key))
        for name in ("server", "client"):
            key = ec.generate_private_key(ec.SECP256R1())
            self._write(name, key, self._signed(name, key))
        (folder / "user").mkdir()
        for name, end in (("ca.pem", "ca.pem"), ("client.pem", "cert.pem"), ("client-key.pem", "key.pem")):
            (folder / "user" / end).write_bytes((folder / name).read_bytes())

    def options(self) -> dict[str, str]:
        """Of dockerd."""
        return {
            "tlsverify": "true",
            "tlscacert": f"{self.folder}/ca.pem",
            "tlscert": f"{self.folder}/server.pem",
            "tlskey": f"{self.folder}/server-key.pem",
        }

    def _signed(self, name: str, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject, issuer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one)]) for one in (name, "ca"))
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(hours=1))
        made = made.not_valid_after(now + datetime.timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=name == "ca", path_length=None), critical=True)
        here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        made = made.add_extension(x509.SubjectAlternativeName([here]), critical=False)
        return made.sign(self._key, hashes.SHA256())

    def _write(self, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        pem = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(pem))
        form = serialization.PrivateFormat.PKCS8
        (self.folder / f"{name}-key.pem").write_bytes(key.private_bytes(pem, form, plain))


def hide(engine: PrivateDocker, folder: Path) -> None:
    """Let the engine see something else where this folder is, as on another machine."""
    subprocess.run(engine.beside("mount", "-t", "tmpfs", "tmpfs", str(folder)), check=True)


def unhide(engine: PrivateDocker, folder: Path) -> None:
    subprocess.run(engine.beside("umount", "--lazy", str(folder)), check=True)
