"""Watching a run: progress, metrics, traces and the report's page."""
