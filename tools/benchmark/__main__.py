"""Measure the parts of fomo against the libraries they replace, on one thread, or on the GPU where there is one.

  python tools/benchmark metrics       masks, AUROC and bootstrap against MONAI, surface-distance, MedPy,
                                       torchmetrics and scikit-learn
  python tools/benchmark data          reading and augmenting against yucca, MONAI, TorchIO and batchgeneratorsv2, the
                                       loader, and how long a training step waits for it
  python tools/benchmark gpu           a training step against the naive one and against the chip's own rates
  python tools/benchmark inference     sliding windows against MONAI's, and the challenge's time per case
  python tools/benchmark manifest      how long a run of 60,000 volumes takes to start, and its memory per rank
  python tools/benchmark mae           a masked autoencoder's step against the plain pass of its network
  python tools/benchmark slices        the loader of CT slices against PIL and torchvision
  python tools/benchmark folds         four folds on two ranks against one, whole commands
  python tools/benchmark growth        predictions, reports and evaluations of many cases, predictions of many networks
  python tools/benchmark saving        what the end of an epoch costs
  python tools/benchmark start         what a command costs before its work begins, up to the first training step

Libraries that are not installed are named and left out. Each line is `event key=value ...`. The libraries take turns,
so that all see the same machine; a time is the best of several turns.
"""

import argparse
import os
import pathlib
import sys

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when numpy is imported
    os.environ[variable] = "1"
TOOLS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:1] = [str(TOOLS.parent), str(TOOLS)]  # instead of this folder, which is the package `benchmark`

from benchmark import data, folds, gpu, growth, inference, mae, manifest, metrics, saving, slices, start
from benchmark.timing import say_machine

PARTS = {
    "metrics": metrics,
    "data": data,
    "gpu": gpu,
    "inference": inference,
    "manifest": manifest,
    "mae": mae,
    "slices": slices,
    "folds": folds,
    "growth": growth,
    "start": start,
    "saving": saving,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="part", required=True)
    for name, part in PARTS.items():
        part.add_arguments(commands.add_parser(name))
    options = parser.parse_args()
    say_machine()
    PARTS[options.part].run(options)


if __name__ == "__main__":
    main()
