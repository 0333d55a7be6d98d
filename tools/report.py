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
    log = Log()
    for folder in parser.parse_args(arguments).runs:
        log("report", path=report.write(folder))


if __name__ == "__main__":
    cli.run(main)
