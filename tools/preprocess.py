"""Fill the cache of a config before training: `python tools/preprocess.py CONFIG [key=value ...]`.

Training does the same on its first start; this is for preparing on another machine or with more processes
(data.prepare_workers=16). Running it again does only what is missing.
"""

import os
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))

from fomo import cli, log
from fomo.data import cache, sources


def main(arguments):
    config, dry_run = cli.parse_config(__doc__, arguments)
    output = log.Log()
    cases = sources.list_cases(config.data, config.task, log=output)
    output("data", source=config.data.source, cases=len(cases), subjects=len({case.subject for case in cases}))
    if not dry_run:
        cache.prepare(cases, config.data, config.task, output)


if __name__ == "__main__":
    cli.run(main)
