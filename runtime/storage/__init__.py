"""What ranks read and write: generated packages, weights, checkpoints."""
