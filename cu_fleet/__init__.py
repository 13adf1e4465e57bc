"""cu-fleet: every AI agent gets its own isolated desktop."""

__version__ = "0.1.0"
