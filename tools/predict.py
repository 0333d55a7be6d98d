"""Predict new cases with one or more checkpoints, averaged; answers lie in the space of the input files.

  python tools/predict.py runs/task1 --root data/new --output answers                        as the training's own data
  python tools/predict.py runs/task1 --source fomo1 --root data/new --output answers
  python tools/predict.py runs/task2/final --cases table.csv --output answers --probabilities
  python tools/predict.py runs/task3/fold_1/best.pt --input t1=a.nii.gz t2=b.nii.gz --id a --output answers
  python tools/predict.py runs/ct/fold_1/best.pt runs/ct_other/fold_1/best.pt --volumes data/scans --output answers

The table has the column id and one per channel. A scan is a NIfTI file, a 3D .npy array or a DICOM folder. Run it again
to continue: cases that are there, from the same files, are kept. --format vlm3d writes results.json, too, as the VLM3D
challenge reads it: train with eval.calibrate=half, as it decides at 0.5.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli
from fomo.config import UserError
from fomo.data.sources import SOURCES
from fomo.data.spreadsheet import lost_zeros
from fomo.prediction import inputs, loop, readers, vlm3d
from fomo.prediction.folder import PredictionFolder
from fomo.prediction.members import choose_device, find_checkpoints, load_members
from fomo.runtime.log import Log

OPTIONAL = ("probabilities", "mutual_information")  # volumes that are written when asked
LAYOUTS = [name for name, source in SOURCES.items() if source.geometry and source.reads_root]


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="RUN_OR_CHECKPOINT",
        help="run folder (all its finished folds), its final/, or *.pt",
    )
    parser.add_argument(
        "--folds", nargs="+", type=int, default=(), metavar="K", help="these folds of a run folder only"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--input", nargs="+", metavar="CHANNEL=PATH", help="one case")
    which.add_argument("--cases", metavar="TABLE.csv", help="columns: the ids, as in training or id, and the channels")
    which.add_argument("--source", choices=LAYOUTS, help="layout of --root; default: the one of the training")
    which.add_argument(
        "--slices", metavar="PLACE", help="networks of slices: a table splits/*_slices.csv, or a folder of .npy slices"
    )
    which.add_argument(
        "--volumes",
        nargs="+",
        metavar="PATH",
        help="networks of slices: CT volumes, or folders of them; slices are taken in memory",
    )
    parser.add_argument("--root", help="folder of a data set")
    parser.add_argument("--ids", nargs="+", metavar="ID", help="these cases only")
    parser.add_argument("--id", help="name of the case (--input); default: the first channel's file name")
    parser.add_argument("--output", required=True, help="folder: predictions.csv, masks/, log.txt")
    parser.add_argument(
        "--mirror",
        nargs="*",
        type=int,
        choices=(0, 1, 2),
        metavar="AXIS",
        help="average over flips of these axes; default: as the checkpoint says (eval.mirror_axes, eval.views)",
    )
    parser.add_argument(
        "--probabilities", action="store_true", help="where voxels have some: write probabilities/*.nii.gz as well"
    )
    parser.add_argument(
        "--mutual-information",
        action="store_true",
        help="of masks: write mutual_information/*.nii.gz as well, by how much networks and test-time views disagree",
    )
    parser.add_argument(
        "--format", choices=("vlm3d",), help="several labels: also write results.json of this challenge"
    )
    parser.add_argument("--overwrite", action="store_true", help="predict cases again that are in --output already")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: the first GPU, else the CPU")
    options = parser.parse_args(arguments)
    others = [f"--{name}" for name in ("input", "cases", "slices", "volumes") if getattr(options, name)]
    if options.source and not options.root:
        parser.error("--source goes with --root")
    if len(others) + bool(options.root) != 1:
        got = " ".join([*others, *["--root"] * bool(options.root)]) or "none"
        parser.error(f"got {got}, wanted one of --input, --cases, --root, --slices, --volumes")
    if options.id is not None and not options.input:
        parser.error("--id goes with --input")
    if options.ids and not (options.cases or options.root):
        parser.error("--ids goes with --cases or --root")

    paths = [path for place in options.checkpoints for path in find_checkpoints(place, options.folds)]
    members = load_members(paths, choose_device(options.device), options.mirror)
    if options.format:
        vlm3d.check(members)
    folder = PredictionFolder(options.output, members)
    loop.predict(_reader(members, options), folder, Log(folder.log_path), options.overwrite)
    if options.format:
        vlm3d.write(members, folder)


def _reader(members, options):
    """The reader of what is to be predicted."""
    first = members[0]
    source = first.config.data.source
    optional = [name for name in OPTIONAL if getattr(options, name)]
    readers.check_optional(members, optional)
    if options.slices or options.volumes:
        if not first.sees_slices:
            raise UserError(f"{first.path}: got a network of data.source={source}, wanted one of slices")
        if options.slices:
            return readers.Slices(members, inputs.listed_slices(options.slices))
        return readers.Volumes(members, inputs.listed_volumes(options.volumes))
    if first.sees_slices:
        raise UserError("the checkpoints are of networks that see slices: wanted --slices or --volumes")
    return readers.Cases(members, _cases(first.config, options), optional)


def _cases(config, options):
    if options.input:
        given = {}
        for name, _, path in (text.partition("=") for text in options.input):
            if not path or name in given:
                raise UserError(f"--input: got {' '.join(options.input)}, wanted CHANNEL=PATH, each channel once")
            given[name] = path
        data = config.data
        return [inputs.case_from_channels(data.channels, given, options.id, optional=data.optional_channels)]
    if options.cases:
        listed = inputs.cases_from_table(options.cases, config.data)
    else:
        source = options.source or config.data.source
        if source not in LAYOUTS:
            wanted = f"--source {'|'.join(LAYOUTS)} beside it, or --cases"
            raise UserError(f"--root: got a checkpoint of data.source={source}, which has no folder, wanted {wanted}")
        listed = inputs.cases_from_source(config, source, options.root)
    if options.ids:
        unknown = sorted(set(options.ids) - {case.id for case in listed})
        if unknown:
            hint = lost_zeros(unknown, [case.id for case in listed])
            raise UserError(f"--ids: {', '.join(unknown)} not among the {len(listed)} cases{hint}")
        listed = [case for case in listed if case.id in options.ids]
    return listed


if __name__ == "__main__":
    cli.run(main)
