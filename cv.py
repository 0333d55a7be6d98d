"""Cross-validate a config: folds -> trainings -> pooled out-of-fold results in <output>/<name>/.

  python cv.py configs/task1.yaml                                   one process (one GPU, or the CPU)
  torchrun --nproc_per_node=2 cv.py configs/task1.yaml              two GPUs, or two CPU processes
  python cv.py configs/task1.yaml optim.lr=3e-4 cv.folds_to_run=[1] other values for some keys
  python cv.py configs/task1.yaml --dry-run                         check everything, train nothing

The same command again continues a run that was stopped.
"""

from fomo import cli


def main(arguments):
    config, dry_run = cli.parse_config(__doc__, arguments)
    from fomo.runs import crossval  # torch, which a mistake in the config does not wait for

    crossval.run(config, dry_run)


if __name__ == "__main__":
    cli.run(main)
