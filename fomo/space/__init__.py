"""Volumes and patches: in and out of files, between grids, boxes, and masks cleaned up."""
