"""Compare runs on the same cases: `python tools/compare.py RUN_A RUN_B [RUN ...] [--output FOLDER]`.

Prints the table of paired differences with 95% intervals and p values, and writes comparison.csv and comparison.html
to FOLDER. p: by DeLong's test for AUROC, clustered by subject; by permutation of whole subjects for the rest; corrected
together by Holm's method.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli, report
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of two or more finished runs")
    parser.add_argument("--output", metavar="FOLDER", help="default: compare_A_B beside RUN_A")
    parser.add_argument("--resamples", type=int, default=10000, help="of the permutation test (10000)")
    options = parser.parse_args(arguments)
    folders = [os.path.abspath(folder) for folder in options.runs]
    rows, runs = report.compare(folders, options.resamples)
    beside = os.path.join(os.path.dirname(folders[0]), "_".join(["compare", *map(os.path.basename, folders)]))
    print(report.comparison_text(rows))
    Log()("report", path=report.write_comparison(rows, runs, options.output or beside))


if __name__ == "__main__":
    cli.run(main)
