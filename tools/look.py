"""Look at a data set before training: one page with the cases as the network gets them.

  python tools/look.py configs/task1.yaml data.root=/data/task1 --output look.html --cases 20

Each case is drawn after preprocessing in three planes, with its mask, its label, the intensities of each channel, the
voxel sizes of its files, and one training patch before and after augmentation. The cases are evenly chosen of all that
the config's source lists. Nothing is trained; the drawn cases are preprocessed into the cache, where training finds
them. The page is one file that needs no network. The keys are those of train.py (--help there lists them).
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli, kinds
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", metavar="CONFIG", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, for example data.root=/data")
    parser.add_argument("--output", default="look.html", metavar="FILE", help="the page to write (look.html)")
    parser.add_argument("--cases", type=int, default=12, metavar="N", help="at most so many are drawn (12)")
    options = parser.parse_intermixed_args(arguments)
    config = kinds.load(options.config, options.overrides)
    from fomo.report import look  # torch, which a mistake in the config does not wait for

    print(look.write(config, options.output, options.cases, Log()))


if __name__ == "__main__":
    cli.run(main)
