"""Train a config and print, after each epoch, the memory (MB, of this process and its workers) and the open files.

python tests/faults/growth.py CONFIG [key=value ...]
"""

import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

from fomo import cli
from fomo.runs import crossval
from fomo.training import loop


def resident_mb(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def processes():
    with open("/proc/self/task/%d/children" % os.getpid()) as file:
        return [os.getpid(), *(int(pid) for pid in file.read().split())]


def main(arguments):
    config, _ = cli.parse_config(__doc__, arguments)
    evaluate, epochs = loop.evaluate, []

    def watched(*arguments, **options):
        results = evaluate(*arguments, **options)
        epochs.append(None)
        pids = processes()
        files = max(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)
        memory = " ".join(f"{resident_mb(pid):.1f}" for pid in pids)
        print(f"growth evaluation={len(epochs)} files={files} processes={len(pids)} mb={memory}", flush=True)
        return results

    loop.evaluate = watched
    crossval.run(config)


if __name__ == "__main__":
    cli.run(main)
