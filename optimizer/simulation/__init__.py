"""The simulator, which plays a plan's schedule, and what draws its timeline."""
