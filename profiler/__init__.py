"""Profiler: a model becomes a layer graph with measured costs, once per device type."""
