"""Volumes and patches: files, grids, boxes, and the cleaning of masks."""
