"""What do frozen features tell? `python tools/probe_stages.py CONFIG weights.path=FILE [key=value ...]`, in minutes.

The input (stage 0) and each encoder stage of the network, with random weights and with those of weights.path, is read
by the statistics of the multistage head (model.head), and a ridge regression says from them what the config's task
learns. Each subject is answered by a regression on all others. Its strength is chosen by the same errors, so that
the best of many lines is a little too good; with fewer than 40 subjects differences of .1 in r2 mean nothing.

A line for each: r2, and mae and pearson of a number, or auroc (mean over the classes). `all` is what fine-tuning starts
at: a mean over four weights of a stage against the one before. Nothing is written but the cache.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli
from fomo.runtime.log import Log


def main(arguments):
    config, dry_run = cli.parse_config(__doc__, arguments)
    from fomo.evaluation import stages  # torch, which a mistake in the config does not wait for

    stages.run(config, dry_run, Log())


if __name__ == "__main__":
    cli.run(main)
