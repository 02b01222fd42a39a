"""Ranks: this process in the world, the device and server it is on, and faults of its peers."""
