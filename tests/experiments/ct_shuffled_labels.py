"""With the labels of the volumes exchanged at random, training on phantom CT must end at an AUROC of 0.5.

  python tests/experiments/ct_shuffled_labels.py runs/phantom_ct runs/phantom_slices runs/shuffled [key=value ...]

Trains configs/demo_ct.yaml (with the given keys changed) on labels that whole patients have exchanged within the training
and within the test volumes, so that prevalences stay; anything above 0.5 would have leaked from training to test.
"""

import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402

from fomo import config as config_module  # noqa: E402
from fomo.data import slice_files  # noqa: E402
from fomo.runs import crossval  # noqa: E402
from fomo.runtime import files  # noqa: E402


def shuffle(lines, seed=0):
    """The label table with the rows of labels dealt out anew among the patients of each split; scans of one share theirs."""
    rng, result = np.random.default_rng(seed), []
    for split in ("train", "valid"):
        own = [line for line in lines if line["VolumeName"].startswith(split)]
        patients = sorted({slice_files.patient_of(line["VolumeName"]) for line in own})
        first = {
            patient: next(line for line in own if slice_files.patient_of(line["VolumeName"]) == patient)
            for patient in patients
        }
        given = dict(zip(patients, rng.permutation(patients)))
        for line in own:
            result.append(
                {**first[given[slice_files.patient_of(line["VolumeName"])]], "VolumeName": line["VolumeName"]}
            )
    return result


def main(arguments):
    phantom, extracted, output, *overrides = arguments
    os.makedirs(output, exist_ok=True)
    table = os.path.join(output, "labels.csv")
    files.write_csv(table, shuffle(files.read_csv(os.path.join(phantom, "multi_abnormality_labels.csv"))))
    paths = [
        f"output={output}",
        f"data.labels_csv={table}",
        f"data.csv={os.path.join(extracted, 'splits', 'all_slices.csv')}",
    ]
    demo = pathlib.Path(__file__).resolve().parents[2] / "configs" / "demo_ct.yaml"
    crossval.run(config_module.load(demo, [*paths, *overrides]), one_split=True)
    found = files.read_json(os.path.join(output, "demo_ct", "summary.json"))["metrics"]["volume_auroc_macro"]
    print(
        f"labels shuffled: macro AUROC of the volumes {found['pooled']:.3f} [{found['pooled_low']:.3f}, {found['pooled_high']:.3f}]"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
