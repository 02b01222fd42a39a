"""Checking a plan without training: verify against one process; replay by sleeping, not computing."""
