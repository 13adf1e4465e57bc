"""WHERE DESKTOPS COME FROM: each backend makes, finds and takes away desktops; none knows what a lease is."""
