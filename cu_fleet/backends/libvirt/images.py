"""Golden images: found, and made of the distribution's packages, without mounting a disk.

The packages are those of every desktop's image (`images/desktop`), but for its X server, and those that make a machine
(`images/vm-desktop`). What mmdebstrap makes of them is an archive; a shell script that is root, if only in a user
namespace of its own, makes a disk of that. The kernel lies beside the disk, unpacked: under emulation, unpacking it
takes longer than all else it does before it finds its disk.

What an image's name stands for may change, the image itself never: saved machines rest on its disk, block by block.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import lzma
import os
import secrets
import shutil
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from cu_fleet.backends.libvirt.layout import Layout, drop
from cu_fleet.model.errors import BrokenError, NotFoundError, UnavailableError
from cu_fleet.model.names import check_name

Say = Callable[[str], None]
RECIPES = Path(str(files("cu_fleet").joinpath("images"))).resolve()
NAMES = ("vm-desktop",)
_SUITE, _TOO = "bookworm", subprocess.STDOUT
_SIZE = "8G"  # of the disk, as the machine sees it
_NOT_HERE = {"tigervnc-standalone-server"}
_HEARD: dict[str, Any] = {"capture_output": True, "text": True, "env": {"PATH": os.defpath, "LC_ALL": "C"}}


@dataclass(frozen=True)
class Golden:
    """An image as it lies in the store."""

    name: str
    dir: Path
    recipe: str  # what it was made of; empty: it is not there
    size_bytes: int = 0
    created: str = ""

    @property
    def current(self) -> bool:
        return self.recipe == recipe()


def recipe() -> str:
    """Changes with everything an image is made of, but for the packages' own versions."""
    parts = [RECIPES / "setup", RECIPES / "desktop/packages", *sorted((RECIPES / "vm-desktop").iterdir())]
    data = b"\0".join([*(part.read_bytes() for part in parts), repr([_SUITE, _SIZE]).encode()])
    return hashlib.sha256(data).hexdigest()[:16]


def look(layout: Layout, name: str) -> Golden:
    folder = (layout.images / check_name("image", name)).resolve()
    try:
        about = json.loads((folder / "about.json").read_text("utf-8"))
    except FileNotFoundError:
        return Golden(name, folder, "")
    return Golden(name, folder, about["recipe"], (folder / "disk.qcow2").stat().st_blocks * 512, about["created"])


def need(layout: Layout, name: str) -> Golden:
    found = look(layout, name)
    if not found.recipe:
        remedy = f"cu-fleet image build {name}" if name in NAMES else f"there are {', '.join(NAMES)}"
        raise UnavailableError(f"there is no image {name} for machines", remedy=remedy, code="no_image", image=name)
    return found


def build(layout: Layout, name: str, say: Say, created: str) -> Golden:
    """Make an image beside the one there is. `adopt` puts it in its place. Blocks for minutes."""
    if name not in NAMES:
        raise NotFoundError(f"there is no recipe for an image {name}", remedy=f"there are {', '.join(NAMES)}")
    for program, package in {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "qemu-img": "qemu-utils"}.items():
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            raise UnavailableError(
                f"{program} is not installed", remedy=f"apt-get install {package}", code="missing_program"
            )
    _refuse_without_ids()
    new = layout.folder(layout.images / f".{name}.{secrets.token_hex(4)}")
    try:
        _bootstrap(new, say)
        say("making the disk")
        _run(_as_root(["sh", str(RECIPES / "vm-desktop/disk"), str(new), _SIZE]), say)
        (new / "vmlinux").write_bytes(unpacked((new / "vmlinuz").read_bytes()))
        for path in new.iterdir():
            path.chmod(0o444)
        (new / "about.json").write_text(json.dumps({"recipe": recipe(), "created": created}))
    except BaseException:
        discard(new)
        raise
    return Golden(name, new, recipe(), (new / "disk.qcow2").stat().st_blocks * 512, created)


def adopt(layout: Layout, new: Golden) -> Golden:
    """Give a new image its name. The old one stays where it is, for what rests on it: see `tidying`."""
    name, token = layout.images / new.name, secrets.token_hex(4)
    place, link = layout.images / f"{new.name}.{token}", layout.images / f".{new.name}.{token}.link"
    new.dir.rename(place)
    if name.is_dir() and not name.is_symlink():
        name.rename(layout.images / f"{new.name}.{secrets.token_hex(4)}")
    link.symlink_to(place.name)
    link.replace(name)
    return look(layout, new.name)


def packages() -> list[str]:
    lists = (RECIPES / "desktop/packages", RECIPES / "vm-desktop/packages")
    words = [w for one in lists for line in one.read_text("utf-8").splitlines() for w in line.partition("#")[0].split()]
    return [word for word in words if word not in _NOT_HERE]


def _bootstrap(folder: Path, say: Say) -> None:
    """Make the file system, and lay it out in `folder` as it comes, while the last of it is still being packed."""
    into = "/tmp/image"  # noqa: S108  # of the new file system
    wanted, machine = folder / "packages", folder / "machine"
    wanted.write_text("\n".join(packages()) + "\n")
    machine.write_bytes((RECIPES / "vm-desktop/setup").read_bytes())
    command = ["mmdebstrap", "--format=tar", "--variant=minbase", "--aptopt=Acquire::Languages none"]
    command += ["--dpkgopt=force-unsafe-io"]  # what a power failure would leave half-made is made anew
    command += [f"--include={','.join(packages())}"]
    command += [f'--essential-hook=sh {RECIPES / "vm-desktop/before"} "$1"']
    command += [f'--customize-hook=mkdir -p "$1{into}"']
    command += [f"--customize-hook=copy-in {RECIPES / 'setup'} {wanted} {machine} {into}"]
    command += [f'--customize-hook=chroot "$1" sh {into}/setup {into}/packages']
    command += [f'--customize-hook=chroot "$1" sh {into}/machine']
    command += [f'--customize-hook=rm -r "$1{into}"', _SUITE, "-"]
    root = folder / "root"
    root.mkdir()
    lay = ["tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", f"--directory={root}"]
    lay += ["--exclude=./dev/*"]  # which a kernel makes, and no ordinary user can
    with subprocess.Popen(_as_root(lay), stdin=subprocess.PIPE) as laying:
        _run(command, lambda line: say(line[2:].strip()) if line.startswith("I:") else None, laying.stdin)
        assert laying.stdin
        laying.stdin.close()
    if laying.returncode:
        raise UnavailableError(f"the image could not be laid out in {root}: is the disk full?", code="image_failed")
    wanted.unlink()
    machine.unlink()


def _as_root(command: list[str]) -> list[str]:
    """As root, if only over ids that are ours anyway."""
    return command if os.geteuid() == 0 else ["unshare", "--map-root-user", "--map-auto", *command]


def _refuse_without_ids() -> None:
    """A system has files of many owners: an ordinary user needs ids to stand for them."""
    if os.geteuid() == 0:
        return
    another = ["setpriv", "--reuid=1", "--regid=1", "--clear-groups", "true"]
    tried = subprocess.run(_as_root(another), check=False, **_HEARD)
    if tried.returncode:
        raise UnavailableError(
            f"an image cannot be built by a user without ids to give to its files: {tried.stderr.strip()}",
            remedy="apt-get install uidmap && "
            f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {getpass.getuser()}, or build it as root",
            code="no_ids",
        )


def discard(folder: Path) -> None:
    """Remove what is half made, whose files may be of ids that only stand for ours."""
    if os.geteuid() != 0:
        subprocess.run(_as_root(["rm", "-rf", "--", str(folder)]), check=False, **_HEARD)
    drop(folder)


def _run(command: list[str], heard: Callable[[str], None], into: IO[bytes] | None = None) -> None:
    """Run it and hear what it says; what it makes goes `into` another, if given."""
    said: list[str] = []
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    pipes = {"stderr": subprocess.PIPE, "stdout": into} if into else {"stdout": subprocess.PIPE, "stderr": _TOO}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        out: IO[str] | None = process.stderr if into else process.stdout
        assert out
        for line in out:
            said = [*said, line.rstrip()][-10:]
            heard(line.rstrip())
    if process.returncode:
        raise UnavailableError("the image could not be built: " + "\n".join(said), code="image_failed")


def unpacked(kernel: bytes) -> bytes:
    """The kernel proper out of the file that unpacks itself; see Linux's Documentation/arch/x86/boot.rst."""
    setup = (kernel[0x1F1] or 4) + 1
    at, size = (int.from_bytes(kernel[where : where + 4], "little") for where in (0x248, 0x24C))
    packed = kernel[setup * 512 + at :][:size]
    if packed.startswith(b"\xfd7zXZ\0"):
        whole = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x1f\x8b"):
        whole = zlib.decompressobj(31).decompress(packed)
    else:
        raise BrokenError("the kernel is packed in a way that we do not know", code="image_failed")
    if not whole.startswith(b"\x7fELF"):
        raise BrokenError("the kernel is not what we thought", code="image_failed")
    return whole
