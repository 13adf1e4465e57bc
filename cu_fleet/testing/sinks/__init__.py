"""PROGRAMS FOR THE INSIDE OF A DESKTOP that tell what came of input: each a file for the distribution's python3."""
