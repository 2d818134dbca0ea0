"""Measure time and memory of methods side by side."""
