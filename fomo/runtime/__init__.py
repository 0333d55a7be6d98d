"""What every room may use: ranks, the log, signals, files, seeds, the clock of a run."""
