"""MinkowskiEngine 0.5.4: building it repaired (build.py, engine.patch) and finding it (installed.py)."""
