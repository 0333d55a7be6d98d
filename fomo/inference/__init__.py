"""A network over whole volumes: sliding windows, test-time mirroring, and where it looks."""

from .windows import Mirrored, sliding_window, window_outputs, window_weights

__all__ = ["Mirrored", "sliding_window", "window_outputs", "window_weights"]
