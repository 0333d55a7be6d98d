"""One case, as the FOMO25 challenge calls its container; the checkpoints decide on the task.

  predict.py --flair F --dwi_b1000 D --adc A (--swi S | --t2s T) --output O.txt       Task 1: probability of an infarct
  predict.py --flair F --dwi_b1000 D (--swi S | --t2s T) --output O.nii.gz            Task 2: mask of 0 and 1
  predict.py --t1 A --t2 B --output O.txt                                             Task 3: age in years

Checkpoints: --checkpoints, or the folder `checkpoints` beside fomo/ (in the container what the definition file copied).
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fomo import cli
from fomo.prediction import challenge
from fomo.runtime.log import Log

CHANNELS = ("flair", "dwi_b1000", "adc", "swi", "t2s", "t1", "t2")


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in CHANNELS:
        parser.add_argument(f"--{name}", metavar="FILE", help="NIfTI")
    parser.add_argument("--output", required=True, metavar="FILE", help="text file (Tasks 1, 3) or .nii.gz (Task 2)")
    parser.add_argument(
        "--checkpoints", nargs="+", default=[str(ROOT / "checkpoints")], help="run folder, folder of *.pt, or files"
    )
    parser.add_argument(
        "--mirror",
        nargs="*",
        type=int,
        choices=(0, 1, 2),
        metavar="AXIS",
        help="average over flips of these axes; default: the checkpoint's",
    )
    parser.add_argument(
        "--corrected", action="store_true", help="Task 3: the bias-corrected age; raw ages have the smaller error"
    )
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in CHANNELS if getattr(options, name)}
    how = {"mirror": options.mirror, "corrected": options.corrected, "device": options.device}
    challenge.predict(given, options.output, options.checkpoints, Log(), **how)


if __name__ == "__main__":
    cli.run(main)
