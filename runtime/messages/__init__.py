"""Messages: what crosses a border between stages, and how it gets from rank to rank."""
