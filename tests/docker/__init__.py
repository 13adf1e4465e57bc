"""Desktops in containers, on a real engine that the tests start and end."""
