"""Predictions against references, both from files."""
