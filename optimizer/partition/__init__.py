"""Partition demos: 201 nodes on 3 or 96 devices, by brute force, local search, hierarchy and exactly."""
