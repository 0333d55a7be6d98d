"""Which setting is best? Trains settings on inner validation cases by successive halving, then cross-validates one.

  python tools/search.py configs/task1.yaml optim.lr=1e-4,3e-4,1e-3 finetune.strategy=full,gradual
  torchrun --nproc_per_node=5 tools/search.py configs/task2.yaml 'data.patch=[64,64,64],[96,96,96]'
  python tools/search.py configs/task1.yaml optim.lr=1e-4,3e-4 --dry-run          what would it cost? trains nothing

A key with several values is searched, all combinations of them; a key with one value is that of all settings. Commas in
brackets or quotes belong to a value. All settings are trained for a part of the length in each fold, and one of --keep
goes on to a training of --keep times that, until the best are trained for the whole length. What is counted in epochs
(warm-up, unfreezing, patience) shrinks with the length. A setting is scored on the fold's inner validation cases: no
test case is read. Several ranks take trainings in turn (cv.ranks_per_fold ranks each).

OUTPUT/NAME/search/ gets search.html and search.csv. The chosen setting is then cross-validated once into OUTPUT/NAME,
as by cv.py (or by train.py, where data.test_folds names one split), and the report says how many settings were tried.
The same command goes on with a search that was stopped.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli
from fomo.config import UserError


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("keys", nargs="*", metavar="key=v1,v2", help="values to try, or one value for all settings")
    parser.add_argument("--keep", type=int, default=3, metavar="N", help="one of N settings goes on (default: 3)")
    parser.add_argument("--folds", type=int, metavar="N", help="search in the first N folds (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="check all settings and say the cost; train nothing")
    options = parser.parse_intermixed_args(arguments)
    if "=" in options.config:
        raise UserError(f"command line: got {options.config} first, wanted the YAML file, and then key=v1,v2")
    from fomo.runs import search  # torch, which a wrong argument does not wait for

    search.run(options.config, options.keys, options.keep, options.folds, options.dry_run)


if __name__ == "__main__":
    cli.run(main)
