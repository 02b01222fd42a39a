"""Graphs that branch: where they may be cut, and sums over what lies between two cuts."""
