"""Planner inputs of other systems: loaders, their cost models, and solvers that are exact under them."""
