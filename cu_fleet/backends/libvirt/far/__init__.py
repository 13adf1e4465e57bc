"""Machines on another host: the libvirt backend runs over there, beside its hypervisor, and is spoken to over SSH.

What it does is done with files beside the hypervisor, with sockets, pipes and users of that host, so none of that is
carried: what crosses is only what the `Backend` protocol says. This side (`near`) is a backend that asks; that side
(`serving`, begun by `cu-fleet serve-machines`, see `beside`) is one that does, and ends with the SSH connection that
began it. Its desktops do not: whoever connects next finds them by their handles.

`dialing` gets in, and by `greeting` the two sides know each other. Then every call is a stream of its own through that
connection (`ssh`), to a private socket over there; so it is SSH that carries many at once. `talk` is how both sides
speak on one, `words` is what of it is JSON.
"""
