"""From a model to its layers, each described as data."""
