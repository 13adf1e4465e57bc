"""Vendors' computer tools on a leased desktop: their calls become our actions, our answers become theirs.

    from cu_fleet.adapters.openai import Computer       # `computer` and `computer_use_preview`
    from cu_fleet.adapters.anthropic import Computer    # `computer_20250124` and `computer_20251124`

Both take and give plain dictionaries, as the vendors' APIs have them, and need none of the vendors' packages.
"""
