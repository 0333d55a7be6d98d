"""Write report.html of one or more runs, finished or not: `python tools/report.py RUN [RUN ...]`.

RUN is the folder <output>/<name>. cv.py writes the same page when it ends; run this while it goes on, or after
installing matplotlib, without which the page has its tables only.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli, report
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    what = "the patient's right is on the left (radiological) or on the right of the pictures (default: as in the run)"
    parser.add_argument("--convention", choices=("radiological", "neurological"), help=what)
    given, log = parser.parse_args(arguments), Log()
    radiological = None if given.convention is None else given.convention == "radiological"
    for folder in given.runs:
        log("report", path=report.write(folder, radiological))


if __name__ == "__main__":
    cli.run(main)
