"""Turn scans into vectors by the encoder of a pretrained or fine-tuned network: tasks 6 and 7 of FOMO26.

  python tools/embed.py resenc_unet_b.ckpt --input scan.nii.gz --output scan.npy
  python tools/embed.py runs/mae/fold_1/best.pt --cases subjects.csv --output embeddings
  python tools/embed.py runs/mae/fold_1/best.pt --source volumes --root data/scans --output embeddings

A vector is a .npy file, float32, of the same length for every scan. The table has the column id (or ptid) and the
scans' files as image (or nifti_path). Scans are prepared as the checkpoint's own were, of nnU-Net and OpenMind by the
plan in the file; where nothing says how, give data.spacing_mm=none data.crop=false data.normalize=zscore, or as it was.
Run it again to continue.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="file, or folder of a fold")
    parser.add_argument("overrides", nargs="*", metavar="data.KEY=VALUE", help="how scans are prepared, if otherwise")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--input", metavar="FILE", help="one scan: NIfTI, 3D .npy or DICOM folder")
    which.add_argument("--cases", metavar="TABLE.csv", help="a line per scan")
    which.add_argument("--source", choices=("volumes",), help="every scan below --root")
    parser.add_argument("--root", metavar="DIR", help="folder of the scans (--source)")
    parser.add_argument("--column", help="of the scans' files (--cases); default: image or nifti_path")
    parser.add_argument("--output", required=True, metavar="PATH", help="a .npy file (--input), or a folder")
    parser.add_argument(
        "--features",
        choices=("bottleneck", "multistage"),
        default="bottleneck",
        help="mean of the last stage (320 numbers of resenc_unet_b), or generalised means of all but the first (1088)",
    )
    parser.add_argument(
        "--window", nargs=3, type=int, metavar=("X", "Y", "Z"), help="windows of so many voxels, averaged; default: one"
    )
    parser.add_argument("--part", help="where a file has several networks: how the names of the wanted one begin")
    parser.add_argument("--overwrite", action="store_true", help="make vectors again that are in --output already")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; default: the first GPU, else the CPU")
    options = parser.parse_intermixed_args(arguments)
    if bool(options.source) != bool(options.root):
        parser.error("--source and --root go together")
    from fomo.prediction import embeddings, members  # torch, which a wrong argument does not wait for

    path = members.find_checkpoint(options.checkpoint)
    log, device = Log(), members.choose_device(options.device)
    embedder = embeddings.load_embedder(path, device, options.features, options.window, options.part, options.overrides)
    log("weights", **embedder.report.said(), path=path)
    about = {name: value for name, value in embedder.about().items() if name != "sha256"}
    log("data", **about, axes="".join("xyz"[axis] for axis in embedder.axes))
    if options.input:
        embeddings.embed_to_file(embedder, options.input, options.output, log)
        return
    cases = (
        embeddings.cases_of_table(options.cases, options.column)
        if options.cases
        else embeddings.cases_of_source(options.source, options.root)
    )
    failures = embeddings.embed_to_folder(embedder, cases, options.output, log, options.overwrite)
    embeddings.refuse_failures(failures, options.output)


if __name__ == "__main__":
    cli.run(main)
