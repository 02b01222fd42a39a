"""One rank's step: its actions, its messages, what it keeps, and the gradient sums."""
