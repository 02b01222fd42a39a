"""Launching: torchrun on every server of a plan; planning anew when servers vanish or appear. No torch."""
