"""Which changes of its images can a model not stand? `python tools/stress.py RUN`, or with torchrun on several GPUs.

Each finished fold's model answers its own test cases under graded changes that another scanner brings: contrast, bias
field, noise, blur, resolution, slice thickness, ghosting, ringing, rotation, scale, clipping and, where
data.optional_channels allows it, a missing channel. RUN/stress/ gets stress.html, stress.csv and stress.json: of every
change and grade the run's main metric, and what it loses against the unchanged images, with a paired interval over
subjects. The first lines of the log say how many passes there are and, after the first one, how long they take. The
same command continues; what is finished is not run again.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="folder of a run of cv.py or train.py with a finished fold")
    options = parser.parse_args(arguments)
    from fomo.runs import stress  # torch, which a wrong argument does not wait for

    stress.run(options.run)


if __name__ == "__main__":
    cli.run(main)
