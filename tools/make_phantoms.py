"""Write a synthetic data set in the layout of a FOMO25 task (see fomo/data/phantom.py for what is in it).

    python tools/make_phantoms.py 1 phantoms/task1 --cases 60 --size 48 --seed 0
"""

import argparse
import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from fomo import cli, config
from fomo.data import phantom


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", type=int, choices=(1, 2, 3), help="1 infarct, 2 meningioma, 3 brain age")
    parser.add_argument("root", help="new folder; afterwards data.root, with data.source fomo1, fomo2 or fomo3")
    parser.add_argument("--cases", type=int, default=60, help="number of scans (60)")
    parser.add_argument("--size", type=int, default=48, help="voxels along the longest axis, 192 mm (48)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other heads (0)")
    options = parser.parse_args(arguments)
    if options.cases < 1 or options.size < 16:
        parser.error(f"got --cases {options.cases} --size {options.size}, wanted at least 1 and 16")
    if os.path.exists(options.root):
        raise config.UserError(f"{options.root} is there already, wanted a new folder")
    phantom.make(options.root, options.task, options.cases, options.size, options.seed)


if __name__ == "__main__":
    cli.run(main)
