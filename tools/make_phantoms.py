"""Write a synthetic data set in the layout of a FOMO task, or a table (fomo/data/phantoms says what is in it).

python tools/make_phantoms.py 1 phantoms/task1 --cases 60 --size 48 --seed 0
python tools/make_phantoms.py 4 phantoms/task4
python tools/make_phantoms.py table phantoms/table
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli, config
from fomo.data.phantoms import chests, heads


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "task",
        choices=("1", "2", "3", "4", "5", "table", "ct"),
        help="1 infarct, 2 meningioma, 3 brain age, 4 nerve and vessels, 5 polymicrogyria; "
        "table: all kinds of targets; ct: chest CTs with 18 findings",
    )
    parser.add_argument(
        "root", help="new folder; afterwards data.root, with data.source fomo1 to fomo5, or where data.csv is"
    )
    parser.add_argument("--cases", type=int, default=60, help="number of scans (60)")
    parser.add_argument("--size", type=int, help="voxels along the longest axis: 192 mm (48), of ct 320 mm (64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other heads (0)")
    parser.add_argument("--edition", type=int, choices=(25, 26), help="whose names tasks 1 to 3 have (25)")
    options = parser.parse_args(arguments)
    options.size = options.size or (64 if options.task == "ct" else 48)
    if options.cases < 1 or options.size < 16 or options.seed < 0:
        parser.error(
            f"got --cases {options.cases} --size {options.size} --seed {options.seed}, wanted at least 1, 16 and 0"
        )
    if os.path.exists(options.root):
        raise config.UserError(f"{options.root} is there already, wanted a new folder")
    numbers = options.cases, options.size, options.seed
    try:
        if options.task == "ct":
            chests.make(options.root, *numbers)
        else:
            task = int(options.task) if options.task.isdigit() else options.task
            heads.make(options.root, task, *numbers, edition=options.edition or (26 if task in (4, 5) else 25))
    except OSError as error:
        raise config.UserError(f"cannot make {options.root}: {error}") from error


if __name__ == "__main__":
    cli.run(main)
