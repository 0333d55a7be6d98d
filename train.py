"""Train and test one split: the first fold of the config's cross-validation, in <output>/<name>/fold_1/.

  python train.py configs/task1.yaml
  torchrun --nproc_per_node=2 train.py configs/task1.yaml optim.lr=3e-4

`cv.py` with the same config later reuses this fold and runs the others.
"""

from fomo import cli, crossval


def main(arguments):
    config, dry_run = cli.parse_config(__doc__, arguments)
    crossval.run(config, dry_run, only_folds=(1,))


if __name__ == "__main__":
    cli.run(main)
