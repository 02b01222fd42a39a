"""Searches for the best stages; interchangeable, each returns a Solution with its bound."""
