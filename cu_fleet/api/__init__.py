"""THE HTTP DOOR: `/v1` by noun, on the home's unix socket and on loopback TCP.

`app` puts the nouns together, `guard` stands before them, `auth` asks who is calling, `problems` says what went wrong,
`stream` carries bodies that have no end yet, and `serve` opens the door.
"""
