"""One training: the loop, its state, what a step is made with, which epochs are kept."""
