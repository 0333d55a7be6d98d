"""A network on whole volumes: sliding windows, test-time views, and where it looks."""

from .windows import Mirrored, WindowOptions, sliding_window, window_weights
