"""Stage modules from a text graph alone: descriptions become constructors and calls, checked word by word."""
