"""WHAT A VIEWER SEES: the server's side of RFB, so that any VNC viewer can follow a desktop.

`protocol` understands a viewer's bytes and does no I/O; `broadcast` is one desktop's picture for all who watch it,
`viewer` one connection. Nothing here knows of leases: who may watch, and what becomes of input, is the controller's.
"""
