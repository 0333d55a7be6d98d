"""All chest CT volumes of a folder, as the VLM3D challenge calls its containers: without arguments.

  predict.py [--input /input] [--output /output]                 .mha, .nii, .nii.gz, .npy, DICOM folders, at any depth

Writes OUTPUT/results.json, and nothing else: no socket is opened, no process started. Checkpoints: --checkpoints, or
the folder `checkpoints` beside fomo/ (in the container what the Dockerfile copied); they are networks of the 18
findings, of slices or of whole volumes, that decide at 0.5 (eval.calibrate=half). A volume that cannot be used (no CT,
cut) is one line; the others are answered, and the exit code is 2.
"""

import argparse
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fomo import cli
from fomo.prediction import vlm3d
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", default="/input", metavar="FOLDER", help="of the volumes (/input)")
    parser.add_argument("--output", default="/output", metavar="FOLDER", help="of results.json (/output)")
    parser.add_argument(
        "--checkpoints", nargs="+", default=[str(ROOT / "checkpoints")], help="run folder, folder of *.pt, or files"
    )
    parser.add_argument("--device", help="default: the first GPU, else the CPU")
    options = parser.parse_args(arguments)
    members = vlm3d.load(options.checkpoints, options.device)
    vlm3d.predict_folder(members, options.input, options.output, Log())


if __name__ == "__main__":
    cli.run(main)
