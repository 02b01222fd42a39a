"""The inner loops in C++, compiled at their first use."""
