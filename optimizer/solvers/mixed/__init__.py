"""Stages of several device types at scale: bounds by prices, and plans found with them."""
