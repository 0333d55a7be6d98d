"""Extract axial slices from chest CTs, to train on (data.source=slices); see fomo/data/extract.py.

    python tools/extract_slices.py /data/ct-rate /data/slices --labels multi_abnormality_labels.csv --workers 8

Writes <output>/slices/ and <output>/splits/{train,valid}_slices.csv. The same command goes on where it was stopped. A
volume that cannot be used is listed and makes the exit code 1; the others are done.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli
from fomo.data import ct, extract
from fomo.runtime import interrupt
from fomo.runtime.log import Log


def main(arguments):
    default = ct.Settings()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", help="folder with NIfTI or .mha files or DICOM folders, at any depth")
    parser.add_argument("output", help="folder of the slices")
    parser.add_argument("--labels", help="CSV with the column VolumeName; its other columns go to the slices' tables")
    parser.add_argument(
        "--split", default="names", help="names (train_*, valid_*), train, valid, or a column of the labels (names)"
    )
    parser.add_argument(
        "--patients",
        default="names",
        help="names (train_12_a_1: train_12), volumes (each its own), or a column of the labels (names)",
    )
    parser.add_argument(
        "--strategy", choices=ct.STRATEGIES, default=default.strategy, help=f"which slices ({default.strategy})"
    )
    parser.add_argument(
        "--slices", type=int, default=default.slices, help=f"of a volume: multi_slice, uniform ({default.slices})"
    )
    parser.add_argument("--size", type=int, default=default.size, help=f"pixels of an edge ({default.size})")
    parser.add_argument(
        "--window",
        type=float,
        nargs=2,
        default=default.window,
        metavar=("LOW", "HIGH"),
        help="HU that become 0 and 1 (-1000 400)",
    )
    parser.add_argument("--dtype", choices=ct.DTYPES, default=default.dtype, help=f"of the files ({default.dtype})")
    parser.add_argument(
        "--neighbours", type=int, default=0, help="slices stored on each side of a slice, for data.neighbours (0)"
    )
    parser.add_argument("--neighbour-mm", type=float, help="their distance (adjacent slices)")
    parser.add_argument(
        "--units", choices=ct.UNITS, default="auto",
        help="auto: Hounsfield units, checked; hu: not checked; stored: HU + 1024; twice: HU - 1024 (auto)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, help="processes (2; 0: this one)")
    options = vars(parser.parse_args(arguments))
    options["window"] = tuple(options["window"])
    settings = ct.Settings(**{name: options.pop(name) for name in vars(default)})
    with interrupt.graceful():
        extract.extract(options.pop("volumes"), options.pop("output"), settings, Log(), **options)


if __name__ == "__main__":
    cli.run(main)
