"""What a desktop offers beyond its screen: what a door lists, and what it leaves out."""

from cu_fleet.model.record import Value


class Offer(Value):
    helper: bool = True  # windows, clipboard, accessibility: what the guest helper does
    files: bool = True
    launch: dict[str, str] = {}  # the programs an agent may start, by name, with their titles
