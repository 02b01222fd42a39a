"""Metis: its files, its cost formula, its search with its step count, and the proven optimum."""
