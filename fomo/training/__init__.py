"""Training: the loop, its state, one step, the evaluation, which epochs are kept; and the training of one fold."""
