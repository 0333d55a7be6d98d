"""With the labels of the volumes exchanged at random, training on phantom CT must end at an AUROC of 0.5.

  python tests/experiments/ct_shuffled_labels.py runs/phantom_ct runs/phantom_slices runs/shuffled [key=value ...]

Trains configs/demo_ct.yaml (with the given keys changed) on labels that whole patients have exchanged within the
training and within the test volumes, so that prevalences stay. Anything above 0.5 has leaked from training to test.
"""

import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np

from fomo import kinds
from fomo.data import slice_files
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runtime import files


def shuffle(lines, seed=0):
    """The label table, its labels dealt out anew among the patients of each split; scans of one patient share them."""
    rng, result = np.random.default_rng(seed), []
    for split in ("train", "valid"):
        names = [line["VolumeName"] for line in lines if line["VolumeName"].startswith(split)]
        patients = sorted(set(map(slice_files.patient_of, names)))
        first = {slice_files.patient_of(line["VolumeName"]): line for line in reversed(lines)}
        given = dict(zip(patients, rng.permutation(patients)))
        result += [{**first[given[slice_files.patient_of(name)]], "VolumeName": name} for name in names]
    return result


def main(arguments):
    if len(arguments) < 3:
        raise SystemExit(__doc__)
    phantom, extracted, output, *overrides = arguments
    os.makedirs(output, exist_ok=True)
    table, slices = os.path.join(output, "labels.csv"), os.path.join(extracted, "splits", "all_slices.csv")
    files.write_csv(table, shuffle(files.read_csv(os.path.join(phantom, "multi_abnormality_labels.csv"))))
    paths = [f"output={output}", f"data.labels_csv={table}", f"data.csv={slices}"]
    demo = pathlib.Path(__file__).resolve().parents[2] / "configs" / "demo_ct.yaml"
    crossval.run(kinds.load(demo, [*paths, *overrides]), one_split=True)
    found = RunFolder(os.path.join(output, "demo_ct")).summary()["metrics"]["volume_auroc_macro"]
    interval = f"[{found['pooled_low']:.3f}, {found['pooled_high']:.3f}]"
    print(f"labels shuffled: macro AUROC of the volumes {found['pooled']:.3f} {interval}")


if __name__ == "__main__":
    main(sys.argv[1:])
