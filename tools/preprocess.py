"""Fill the cache of a config before training: `python tools/preprocess.py CONFIG [key=value ...]`.

Training does the same on its first start; this is for preparing on another machine or with more processes
(data.prepare_workers=16). Running it again does only what is missing.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli, kinds, tasks
from fomo.data import listing, sources
from fomo.runtime import interrupt
from fomo.runtime.log import Log


def main(arguments):
    config, dry_run = cli.parse_config(__doc__, arguments)
    config, decided = kinds.settle(config)
    log, wanted = Log(), tasks.wanted(config)
    for event, what in decided.items():
        log(event, **what)
    with interrupt.graceful():
        cases = sources.list_cases(config.data, wanted, log=log)
        listing.describe(config, wanted, cases, log)
        if not dry_run:
            try:
                sources.prepare(cases, config.data, wanted, log)
            except interrupt.Interrupted as error:
                log.warn(f"{error}: what is prepared is kept, the same command continues")
                raise


if __name__ == "__main__":
    cli.run(main)
