"""The MCP door: an agent's own desktop as tools, over HTTP and over stdio.

`tools` is the one table of tools; `door` serves it at `/mcp`, where the bearer is a lease's token, looked up at each
call; `desk` and `stdio` are `cu-fleet mcp`, which leases when it is first used and passes every call on to that door.
The SDK is imported by the modules that speak it, and those only when somebody comes: it takes half a second.
"""
