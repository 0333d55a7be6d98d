"""Checkpoints and scans in, answers out."""
