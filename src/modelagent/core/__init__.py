"""The pure core: what the device knows, what may happen to it, and what it does about it."""
