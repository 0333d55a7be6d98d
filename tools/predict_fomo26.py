"""One case, as the FOMO26 challenge calls its containers; --task says of which task, or else the checkpoints do.

  predict.py --flair F --dwi D --adc A (--swi S | --t2s T) --output O.txt        Task 1: probability of an infarct
  predict.py --flair F --dwi D (--swi S | --t2s T) --output O.nii.gz             Task 2: mask of 0 and 1
  predict.py --t1 A --output O.txt                                               Task 3: age in years
  predict.py --t2 B --output O.nii.gz                                            Task 4: mask of 0, nerve 1, vessels 2
  predict.py --t1 A --output O.txt                                               Task 5: probability of polymicrogyria
  predict.py --input ANY --output O.npy                                          Tasks 6, 7: a vector (float32)

With --task the channels must be those of the task, and the checkpoints must read no others.
--dwi_b1000, --t1w and --t2w are other names of --dwi, --t1 and --t2, whatever the checkpoints call these sequences.
Checkpoints: --checkpoints, or the folder `checkpoints` beside fomo/ (in the container what the definition file copied).

The time of a case: test-time views (flips) and networks are averaged as long as they fit into three quarters of
--budget seconds, counted from the start of this command with all its imports. The plain view of the first network is
timed first; where not all views of all networks fit, each network gets as many as do, or the first networks one each,
and a `warn` line says how many. Where nothing must be left out, the answer is that of tools/predict.py. Nothing is
written but the output, no socket is opened, no process started. The output is read again, and refused where the
challenge's validator would refuse it.
"""

import argparse
import os
import pathlib
import sys
import time

BEGUN = time.perf_counter()
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fomo import cli
from fomo.prediction import challenge
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = "1 to 7; default: FOMO26_TASK of the environment, or what the checkpoints are of"
    parser.add_argument("--task", type=int, default=os.environ.get("FOMO26_TASK"), metavar="N", help=task)
    for name in challenge.CHANNELS:
        parser.add_argument(f"--{name}", metavar="FILE", help="NIfTI")
    parser.add_argument("--input", metavar="FILE", help="Tasks 6, 7: one scan, of any sequence")
    parser.add_argument("--output", required=True, metavar="FILE", help="text file, .nii.gz (mask) or .npy (vector)")
    parser.add_argument(
        "--checkpoints", nargs="+", default=[str(ROOT / "checkpoints")], help="run folder, folder of *.pt, or files"
    )
    mirror = "average over flips of these axes; default: the checkpoint's"
    parser.add_argument("--mirror", nargs="*", type=int, choices=(0, 1, 2), metavar="AXIS", help=mirror)
    parser.add_argument("--corrected", action="store_true", help="Task 3: the bias-corrected age, not the raw one")
    parser.add_argument("--budget", type=float, default=120.0, metavar="SECONDS", help="time of the case (120)")
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    options = parser.parse_args(arguments)
    given = {name: getattr(options, name) for name in challenge.CHANNELS if getattr(options, name)}
    challenge.check_arguments(options.task, given, options.input)
    if options.input:
        if len(options.checkpoints) != 1:
            parser.error("--input goes with one checkpoint")
        return challenge.embed(
            options.input, options.output, options.checkpoints[0], Log(), options.device, begun=BEGUN
        )
    how = {"mirror": options.mirror, "corrected": options.corrected, "device": options.device}
    time_of = {"begun": BEGUN, "budget_s": options.budget}
    challenge.predict(given, options.output, options.checkpoints, Log(), options.task, **how, **time_of)


if __name__ == "__main__":
    cli.run(main)
