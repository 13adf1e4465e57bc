"""Chromium and Firefox in a container, as their profile starts them: each in its own sandbox, each for itself."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cu_fleet.model.profile import read_profile
from cu_fleet.testing.dockerd import PrivateDocker
from cu_fleet.testing.screen_leased import Leased
from tests.rfb.stages import ANA, leased
from tests.support import run, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
TOP = Path(__file__).resolve().parents[2]

# Forty canvases of 1600 x 1600, each a layer of its own, painted anew again and again.
PAGE = b"""<!doctype html><title>begun</title><button onclick="document.title = 'pressed'">Press me</button><script>
const side = 1600, contexts = [];
for (let i = 0; i < 40; i++) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = side;
  canvas.style.cssText = `position: absolute; left: ${i % 8 * 40}px; top: ${60 + 40 * Math.floor(i / 8)}px;
    will-change: transform; opacity: .9`;
  document.body.append(canvas);
  contexts.push(canvas.getContext("2d"));
}
let round = 0;
function paint() {
  contexts.forEach((context, i) => {
    context.fillStyle = `hsl(${(round * 7 + i * 9) % 360} 80% 50%)`;
    context.fillRect(0, 0, side, side);
  });
  if (++round < 4) requestAnimationFrame(paint); else document.title = "painted";
}
paint();
</script>"""

# Of each process: its words, its name, its namespaces, and how many filters its system calls pass.
LOOK = r"""
import json, os, shutil
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        words = open(f"/proc/{pid}/cmdline").read().split("\0")
        spaces = [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("user", "net")]
        said = dict(line.split(":\t", 1) for line in open(f"/proc/{pid}/status").read().splitlines() if ":\t" in line)
        found.append([words, said["Name"], spaces, int(said["Seccomp_filters"])])
    except OSError:
        pass
shared = {}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        for span, _, _, device, inode, *name in map(str.split, open(f"/proc/{pid}/maps")):
            if name and ("memfd:" in name[0] or name[0].startswith("/dev/shm")):
                first, last = (int(part, 16) for part in span.split("-"))
                shared[device, inode] = shared.get((device, inode), 0) or last - first
    except OSError:
        pass
home = os.path.expanduser("~/.config")
print(json.dumps({"processes": found, "own": [os.readlink(f"/proc/self/ns/{kind}") for kind in ("user", "net")],
    "shm": shutil.disk_usage("/dev/shm").total, "shared": sum(shared.values()),
    "kept": {name: sorted(os.listdir(f"{home}/{name}")) for name in ("chromium", "firefox")}}))
"""


@pytest.fixture(autouse=True)
def _on_an_engine(with_browser: PrivateDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", with_browser.host)


async def content() -> AsyncIterator[bytes]:
    yield PAGE


async def shown(stage: Leased, title: str) -> None:
    async def look() -> bool:
        windows = await stage.controller.windows(ANA, stage.lease.lease)
        return any(str(window["title"]).startswith(title) for window in windows)

    await until(look, timeout=120, every=0.2)


async def press(stage: Leased) -> None:
    """The page's button, found by its name."""

    async def found() -> Any:
        tree = await stage.controller.ui(ANA, stage.lease.lease, text="Press me")
        return next((node for node in tree.nodes if node.role == "push button"), None)

    await until(found, timeout=60, every=0.3)
    node = await found()
    await stage.do([{"type": "click", "x": node.x, "y": node.y}])
    await shown(stage, "pressed")


async def look_inside(stage: Leased) -> Any:
    process = await stage.start(["/usr/bin/python3", "-I", "-c", LOOK])
    said = b"".join([data async for _, data in process.output()])
    assert await process.wait() == 0, said
    return json.loads(said)


def test_both_browsers_show_a_heavy_page_within_their_own_sandboxes() -> None:
    shipped = read_profile(TOP / "profiles/docker-browser.yaml")
    fields = {name: getattr(shipped, name) for name in shipped.model_fields_set - {"name", "backend"}}

    async def body() -> None:
        async with leased("docker", **fields) as stage:
            await stage.controller.put_file(ANA, stage.lease.lease, "page.html", content(), 0o644)
            for name in ("chromium", "firefox"):
                await stage.controller.launch(ANA, stage.lease.lease, name, ["file:///home/agent/Shared/page.html"])
                await shown(stage, "painted")
                await press(stage)
            seen = await look_inside(stage)
            assert seen["shm"] >= 1 << 30
            assert seen["shared"] > 256 << 20, "four times what engines give to /dev/shm"
            assert not any("--no-sandbox" in " ".join(words) for words, _, _, _ in seen["processes"])
            chromium = [one for one in seen["processes"] if "--type=renderer" in " ".join(one[0])]
            firefox = [
                one for one in seen["processes"] if "-contentproc" in " ".join(one[0]) and one[1].endswith("Content")
            ]
            for pages in (chromium, firefox):
                assert pages
                for _, name, spaces, filters in pages:
                    assert not set(spaces) & set(seen["own"]), f"{name} sees the desktop's users or network"
                    assert filters > 1, f"{name} has no filter of its own"
            assert "Default" in seen["kept"]["chromium"]
            assert "cookies.sqlite" in seen["kept"]["firefox"]
            assert not set(seen["kept"]["chromium"]) & set(seen["kept"]["firefox"])

    run(body(), timeout=400)
