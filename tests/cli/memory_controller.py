"""`python -m tests.cli.memory_controller up …`: the real command, over desktops that live in its own memory."""

from cu_fleet import app
from cu_fleet.backends.memory import MemoryBackend
from cu_fleet.cli import main

if __name__ == "__main__":
    app.backends_of = lambda place: {"memory": MemoryBackend(place)}
    main()
