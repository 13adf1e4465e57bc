"""What a server says of itself when a client comes."""

INSTRUCTIONS = """\
A desktop of your own: screen, pointer, keyboard, clipboard, files and programs that no other agent shares. You hold \
it by a lease: every action renews it, a person can pause or revoke it at any time, and at its end all of it is rolled \
back to clean (only ~/Shared/out is kept).
Look first (screenshot); coordinates are pixels of the picture you saw. Do several steps at once with act, which \
shows the settled screen. Before what cannot be undone, ask your operator: approval_wait. Read errors: they say why, \
and what to do next. Paused means wait, revoked means stop."""

LEASES_ITSELF = """
Your first call leases the desktop. If none is free you are told your place in line: do something else, and call \
again. Call release when you are done."""
