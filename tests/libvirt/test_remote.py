"""Which hypervisors are used: this machine's, be it the user's own; and those elsewhere are refused before anything."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cu_fleet.backends.libvirt.hypervisor import Hypervisor
from cu_fleet.model.errors import UnsupportedError
from cu_fleet.testing.libvirtd import need_libvirtd
from tests.acceptance.home import SOMEBODY, home


@pytest.mark.real  # with libvirt's own package for Python
@pytest.mark.parametrize("uri", ["qemu+ssh://there/system", "qemu://there/system", "xen:///system", "test:///default"])
def test_a_hypervisor_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(UnsupportedError, match="not QEMU on this machine") as caught:
        Hypervisor(uri).now(lambda api: api.getURI())
    assert caught.value.code == "far_hypervisor"
    assert "qemu+ssh://user@host" in (caught.value.remedy or "")


@pytest.mark.real
@pytest.mark.slow
def test_an_ordinary_user_has_machines_of_their_own() -> None:
    """With the libvirt that is started for each user: a desktop's life, and nothing is left of it."""
    need_libvirtd()
    with home(somebody=True) as one:
        one.env["PATH"] += ":/usr/sbin"
        words = [*_known(one.path), *one._as_user(), sys.executable, "-m", "tests.libvirt.ordinary", str(one.path)]  # noqa: SLF001
        with (one.path / "out").open("w") as out, (one.path / "err").open("w") as err:  # libvirt's daemon keeps them
            done = subprocess.run(words, env=one.env, cwd="/", stdout=out, stderr=err, timeout=300, check=False)
        assert done.returncode == 0, (one.path / "err").read_text()[-3000:]
        assert json.loads((one.path / "out").read_text()) == {
            "uri": "qemu:///session",
            "owner": SOMEBODY,
            "kind": "memory",
            "found": ["machine and files"],
            "left": [],
        }


def _known(folder: Path) -> list[str]:
    """The user has a name here, which libvirt asks for: the command that has the rest see it."""
    for name, line in (("passwd", f"{SOMEBODY}::{folder}:/bin/sh"), ("group", "")):
        text = Path("/etc", name).read_text() + f"ordinary:x:{SOMEBODY}:{line}\n"
        (folder / name).write_text(text)
    script = 'for one in passwd group; do mount --bind "$0/$one" "/etc/$one" || exit; done; exec "$@"'
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(folder)]
