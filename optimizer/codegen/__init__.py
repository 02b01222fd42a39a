"""Code generator: a plan and its layer graph become a package of stage modules. Imports no torch."""
