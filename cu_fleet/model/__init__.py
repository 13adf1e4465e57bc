"""WHAT IS TRUE: pure records and the rules over them. No I/O, no asyncio, no clock of its own."""
