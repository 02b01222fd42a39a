"""Planning PipeDream's text graphs under PipeDream's and SparsePipe's own formulas."""
