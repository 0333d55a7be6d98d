"""Does the map of CBAM attention lie inside the lesions of phantom CT more often than chance?

  python tests/experiments/cbam_inside_lesion.py runs/demo_ct/fold_1/best.pt runs/phantom_ct

Looks at the test slices (train.py's fold_1/predictions.csv beside the checkpoint) that show a lesion. It asks of each
whether the highest place of the map is inside one, against the share of the body that lesions cover; and how well the
map tells lesion from the rest of the body (AUROC of its pixels; 0.5: not at all). Intervals are over patients. A second
line is the same for a network of the same shape with random weights.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent))

import numpy as np
import torch

from fomo import metrics, tasks
from fomo.data import cases, ct, slice_files
from fomo.data.phantoms.chests import LABELS
from fomo.inference import saliency
from fomo.prediction import members
from fomo.run_folder import FoldFolder
from fomo.space import volume


def resampled(plane, spacing_mm, settings):
    """A mask (X, Y) on the pixels of the extracted slices."""
    low, high = settings.window
    return ct._pixels(np.where(plane, high, low).astype(np.float32), spacing_mm, settings) > 0.5


def lesions_of(root, scan):
    """(bits (X, Y, Z): which finding is where, Hounsfield units, spacing) in RAS order."""
    bits, affine = cases.read_volume(cases.Volume(os.path.join(root, "masks", scan)))
    hounsfield, _ = cases.read_volume(cases.Volume(os.path.join(root, "volumes", scan)))
    bits, _ = volume.to_ras(bits, affine)
    hounsfield, affine = volume.to_ras(hounsfield, affine)
    return bits.astype(np.int32), hounsfield, volume.spacing(affine)


def measure(network, member, root, rows, labels):
    """[(patient, inside 0 or 1, share of the body, AUROC of the pixels)] of each slice with a lesion."""
    settings = ct.Settings.from_dict(member.task.state["extraction"])
    reading, chosen = slice_files.reading_of(member.config.data), sum(1 << LABELS.index(label) for label in labels)
    found, kept = [], (None, None)
    for row in rows:
        if kept[0] != row["scan"]:
            kept = row["scan"], lesions_of(root, row["scan"])
        bits, hounsfield, spacing_mm = kept[1]
        z = int(row["id"].rsplit("_", 1)[1])
        lesion = resampled((bits[:, :, z] & chosen) > 0, spacing_mm, settings)
        solid, marked = hounsfield[:, :, z] > -500, bits[:, :, z] > 0
        body = resampled(solid, spacing_mm, settings) | resampled(marked, spacing_mm, settings)
        share = lesion[body].mean() if body.any() else 0.0
        if not 0 < share < 0.25:
            continue
        pixels = ct._pixels(hounsfield[:, :, z], spacing_mm, settings)
        image = slice_files.as_image(torch.from_numpy(np.array(pixels, np.float32))[None], row["id"], reading)
        seen = saliency.attention_map(network, torch.from_numpy(image)).cpu().numpy()
        seen = seen.reshape(lesion.shape)
        place = np.unravel_index(np.where(body, seen, -np.inf).argmax(), seen.shape)
        found.append((row["subject"], float(lesion[place]), float(share), metrics.auroc(lesion[body], seen[body])))
    return found


def report(name, found):
    subjects = np.array([row[0] for row in found])
    inside, share, auroc = (np.array([row[k] for row in found]) for k in (1, 2, 3))
    gain = metrics.bootstrap_ci(np.mean, inside - share, groups=subjects, seed=0)
    tells = metrics.bootstrap_ci(np.mean, auroc, groups=subjects, seed=0)
    print(
        f"{name}: {len(found)} slices of {len(set(subjects))} patients: "
        f"highest place inside a lesion {inside.mean():.3f}, by chance {share.mean():.3f}, "
        f"difference {gain.value:.3f} [{gain.low:.3f}, {gain.high:.3f}]; "
        f"AUROC of the pixels {tells.value:.3f} [{tells.low:.3f}, {tells.high:.3f}]",
        flush=True,
    )


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="best.pt of a run with model.attention=cbam")
    parser.add_argument("phantom", help="folder of tools/make_phantoms.py ct")
    parser.add_argument("--labels", nargs="+", default=list(LABELS), help="lesions of these findings only")
    options = parser.parse_args(arguments)
    (member,) = members.load_members([options.checkpoint], members.choose_device("cpu"))
    rows = FoldFolder(os.path.dirname(options.checkpoint), 1).results().rows
    rows.sort(key=lambda row: row["scan"])
    report("trained", measure(member.network, member, options.phantom, rows, options.labels))
    torch.manual_seed(0)
    untrained = tasks.build_network(member.config, member.task).eval()
    attention = next(module for module in untrained.modules() if isinstance(module, saliency.CBAM))
    torch.nn.init.normal_(attention.spatial.weight)  # else all places are equal
    report("random", measure(untrained, member, options.phantom, rows, options.labels))


if __name__ == "__main__":
    main(sys.argv[1:])
