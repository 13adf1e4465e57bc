"""WHAT RUNS INSIDE A DESKTOP: by the distribution's own python3, so nothing here imports the rest of cu_fleet."""
