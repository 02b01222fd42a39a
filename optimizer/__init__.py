"""Optimizer: layer graphs and a cluster become a plan; codegen/ turns the plan into stage modules."""
