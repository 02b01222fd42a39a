"""Items dealt to accelerators and CPUs: the problem, its programme over ideals, and its CP-SAT model."""
