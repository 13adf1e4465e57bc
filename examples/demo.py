"""The demo: a controller in a home of its own, four agents, and proof of what they did. Started by demo.sh."""

import argparse
import asyncio
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

from board import Board, contact_sheet
from rich.console import Console
from story import Story, UntrueError, check

from cu_fleet.client import Fleet
from cu_fleet.model.errors import FleetError, UnavailableError

TOP = Path(__file__).resolve().parent.parent
MINE = ".made-by-the-demo"


def main() -> int:
    options = parse()
    for name in [name for name in os.environ if name.startswith("CU_FLEET_")]:
        del os.environ[name]  # a controller of yours is not for demos
    console = Console(highlight=False)
    try:
        home = fresh_home(options.home.absolute())
        asyncio.run(demo(home, console, stay=options.stay))
    except (UntrueError, FleetError) as wrong:
        console.print(f"\nthe demo failed: {wrong}", style="bold red", markup=False, soft_wrap=True)
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("\nstopped; nothing is left running")
        return 130
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="examples/demo.sh", description=__doc__)
    parser.add_argument("--stay", action="store_true", help="leave everything running, to play with")
    parser.add_argument("--home", type=Path, default=TOP / "reports" / "demo", help="where all of it is kept")
    return parser.parse_args()


def fresh_home(home: Path) -> Path:
    """An empty folder that only we can read. What an earlier demo left there goes; anything else stays."""
    if left_running(home):
        raise UntrueError(f"an earlier demo still runs there; end it: CU_FLEET_HOME={home} {cu_fleet()} down")
    if home.exists() and any(home.iterdir()):
        check((home / MINE).exists(), f"{home} is not empty, and no demo made it: give another --home")
        shutil.rmtree(home)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    (home / MINE).touch()
    return home


async def demo(home: Path, console: Console, *, stay: bool) -> None:
    me = asyncio.current_task()
    assert me
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, me.cancel)
    with Board(console) as board:
        try:
            async with Fleet.connect(home=home) as fleet:
                board.title(f"A controller starts, in {home}")
                story = Story(fleet, board, home)
                await story.cli("status")
                await tell(story)
                await show(story)
        except BaseException as failure:  # noqa: BLE001 - raised again, without what wrapped it
            cause = first_cause(failure)
            board.say("operator", f"it ends here: {str(cause) or type(cause).__name__}")
            await end(home, board)
            raise cause from None
        if stay:
            how_to_play(home, board)
        else:
            await end(home, board)
        board.title(f"All of it was true, in {board.seconds:.1f} s. See {home}/contact-sheet.png")


async def tell(story: Story) -> None:
    story.board.title("Three agents work at once; a fourth wants a desktop that is taken")
    async with asyncio.TaskGroup() as agents:
        for agent in (story.ada, story.ben, story.cleo, story.dan):
            agents.create_task(agent(), name=agent.__name__)


async def show(story: Story) -> None:
    story.board.title("What is on record")
    await story.cli("lease", "list", "--all")
    await story.cli("audit", "show", "--agent", "ben", "--limit", "9")
    await story.cli("audit", "verify")
    sheet = story.home / "contact-sheet.png"
    contact_sheet(sorted(story.shots.items()), sheet)
    story.board.say("operator", f"what each desktop showed: {sheet}")


async def end(home: Path, board: Board) -> None:
    """Stop the controller and all it made, and look that nothing is left."""
    board.title("Ending everything")
    left = left_running(home)
    with suppress(TimeoutError):
        async with asyncio.timeout(60):
            while left:
                await shut_down(home)  # again: it may only just have been starting
                await asyncio.sleep(0.05)
                left = left_running(home)
    check(not left, f"after its end there should be nothing of {home}, but: {'; '.join(left[:5])}")
    board.say("operator", "no process, mount or socket is left; what the demo wrote is in its home")


async def shut_down(home: Path) -> None:
    with suppress(UnavailableError):
        async with Fleet.connect(home=home, start=False) as fleet:
            await fleet.shutdown()


def left_running(home: Path, fleet: str = "") -> list[str]:
    """Processes, mounts and sockets that have to do with this home or fleet."""
    found = [
        f"process {folder.name}"
        for folder in Path("/proc").iterdir()
        if folder.name.isdigit() and int(folder.name) != os.getpid() and belongs(folder, home, fleet)
    ]
    found += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(home) in line]
    return found + [line for line in Path("/proc/net/unix").read_text().splitlines() if str(home) in line]


def belongs(process: Path, home: Path, fleet: str) -> bool:
    """Whether it is a controller of this home, holds one of its desktops, or runs inside one."""
    marks = {"environ": f"CU_FLEET_HOME={home}\0", "mountinfo": f"{home}/", "cmdline": f"cu-fleet/{fleet}/"}
    for name, mark in marks.items():
        with suppress(OSError):  # it has ended, or is another user's
            if os.fsencode(mark) in (process / name).read_bytes():
                return True
    return False


def first_cause(failure: BaseException) -> BaseException:
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure


def how_to_play(home: Path, board: Board) -> None:
    board.title("It stays. To play with it:")
    board.quote(
        f"export CU_FLEET_HOME={home} PATH={Path(sys.executable).parent}:$PATH\n"
        "cu-fleet lease acquire --agent me --profile browser\n"
        "cu-fleet desktop list\n"
        "cu-fleet down        # ends all of it"
    )


def cu_fleet() -> Path:
    return Path(sys.executable).with_name("cu-fleet")


if __name__ == "__main__":
    sys.exit(main())
