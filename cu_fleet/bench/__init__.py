"""How fast it is: every claim measured through the doors that users have, side by side with the bare thing in one run.

A *scene* sets up a controller in a throw-away home and measures; a *figure* is one row of the result, with its aim. A
new claim is a figure in a scene (`programme.SCENES`), and nothing else.

Absolute times belong to a machine and an hour; so what can be is measured against something bare, in turns, and the
ratio is judged. Each scene throws its first round away, in which caches fill and code is loaded.
"""
