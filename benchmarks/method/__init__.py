"""How the benchmarks run what they measure: commands, clusters of devices on this machine, steps in turn."""
