"""The demo, as a user runs it: it tells the truth, leaves nothing behind, and touches nothing that is not its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support import run, until

TOP = Path(__file__).resolve().parent.parent


def start(home: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(TOP / "examples/demo.py"), "--home", str(home), *options],
        env={**os.environ, "PYTHONPATH": str(TOP), "CU_FLEET_HOME": "/nonexistent"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def related(home: Path) -> list[str]:
    """Processes that were told of this home."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != str(os.getpid()):
            try:
                told = (folder / "environ").read_bytes() + (folder / "mountinfo").read_bytes()
            except OSError:
                continue
            if os.fsencode(home) in told:
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


@pytest.mark.real
def test_demo_is_true_and_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    demo = start(home)
    said, _ = demo.communicate(timeout=120)
    assert demo.returncode == 0, said
    assert "All of it was true" in said
    assert 'lease denied: agent dan asked for desktop "finance", but agent cleo holds it' in said
    assert "was revoked by operator" in said
    assert "the audit record is whole" in said
    with Image.open(home / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 600, "two rows of three pictures"
    assert not related(home)
    assert not list(home.rglob("*.sock"))


@pytest.mark.real
def test_demo_stays_when_asked_and_ends_with_down(tmp_path: Path) -> None:
    home = tmp_path / "home"
    demo = start(home, "--stay")
    said, _ = demo.communicate(timeout=120)
    try:
        assert demo.returncode == 0, said
        assert f"export CU_FLEET_HOME={home}" in said
        again = start(home)
        assert "an earlier demo still runs there" in again.communicate(timeout=60)[0]
        assert again.returncode == 1
    finally:
        down = subprocess.run(
            [sys.executable, "-m", "cu_fleet", "down"],
            env={**os.environ, "PYTHONPATH": str(TOP), "CU_FLEET_HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert down.returncode == 0, down.stderr
    run(until(lambda: not related(home)))  # the controller's own process ends a moment after it was heard


@pytest.mark.real
def test_demo_that_is_told_to_end_leaves_nothing_behind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    demo = start(home)
    assert demo.stdout
    for line in demo.stdout:
        if "has a desktop" in line:
            break
    demo.send_signal(signal.SIGTERM)
    rest, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130, rest
    assert "nothing is left running" in rest
    assert not related(home)


def test_demo_keeps_off_a_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    demo = start(tmp_path)
    said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "is not empty, and no demo made it" in said
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
