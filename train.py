"""Train and test one split, or pretrain, in <output>/<name>/fold_1/.

  python train.py configs/task1.yaml                                 the first fold of the cross-validation
  torchrun --nproc_per_node=2 train.py configs/table_regression.yaml the split that data.{train,val,test}_folds name
  python train.py configs/mae.yaml                                   pretraining: all cases, some held back to select on
  python train.py configs/task1.yaml train.mode=evaluate train.checkpoint=runs/task1/fold_1/best.pt name=tested

The same command again continues a run that was stopped. Where the split is a first fold, `cv.py` with the same config
later reuses it and runs the others.
"""

from fomo import cli


def main(arguments):
    config, dry_run = cli.parse_config(__doc__, arguments)
    from fomo.runs import crossval  # torch, which a mistake in the config does not wait for

    crossval.run(config, dry_run, one_split=True)


if __name__ == "__main__":
    cli.run(main)
