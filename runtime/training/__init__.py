"""Training: epochs, batches, updates and precision; windows without flush; what a step took."""
