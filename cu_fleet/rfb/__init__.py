"""HOW A SCREEN SPEAKS: RFB bytes in, events out; asyncio is met only in `screen` and `hands`."""
