"""Code generator: a plan and its layer graph become a package of readable stage modules."""
