"""Exact planning at scale: priced paths for the bound, labels for the plan; for clusters of any size."""
