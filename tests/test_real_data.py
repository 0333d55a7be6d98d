"""The three tasks on a real glioma scan, cut into ten blocks and arranged in the Task layouts."""

import csv

import nibabel
import numpy as np
import pytest
from conftest import run_command

BLOCKS = [(x, slice(z, z + 15)) for x in (slice(30, 120), slice(120, 210)) for z in range(50, 125, 15)]
LAYOUT = {
    # folder and prefix of the images, file of each channel, file of the mask
    "classification": (
        "skull_stripped/{}/ses_1/ss_",
        {"dwi_b1000": "t1c", "flair": "flair", "adc": "t1", "t2s": "t2"},
        "labels_masked/{}/ses_1/seg_masked.nii.gz",
    ),
    "segmentation": (
        "preprocessed/{}/ses_1/",
        {"dwi_b1000": "t1c", "flair": "flair", "swi": "t2"},
        "labels/{}/ses_1/seg.nii.gz",
    ),
    "regression": ("preprocessed_2/{}/ses_1/ss_", {"t1": "t1", "t2": "t2"}, None),
}


def arrange(scan, root, task):
    images, channels, mask = LAYOUT[task]
    source = {name: nibabel.load(scan / f"{name}.nii.gz") for name in set(channels.values())}
    tumour = nibabel.load(scan / "seg_mav.nii.gz")
    for number, (x, z) in enumerate(BLOCKS, 1):
        subject = f"sub_{number}"
        for channel, name in channels.items():
            path = root / (images.format(subject) + f"{channel}.nii.gz")
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(source[name].slicer[x, 20:220, z], path)
        if mask:
            path = root / mask.format(subject)
            path.parent.mkdir(parents=True)
            block = tumour.slicer[x, 20:220, z]
            nibabel.save(nibabel.Nifti1Image((np.asarray(block.dataobj) > 0).astype(np.uint8), block.affine), path)
        else:
            path = root / "labels" / subject / "ses_1" / "label.txt"
            path.parent.mkdir(parents=True)
            path.write_text(f"{40 + 5 * number}\n")


@pytest.mark.parametrize("task", LAYOUT)
def test_two_epochs_on_real_volumes(shared_data, tiny_config, tmp_path, task):
    arrange(shared_data / "tcga_fg_6692", tmp_path / "root", task)
    source = {"classification": "fomo1", "segmentation": "fomo2", "regression": "fomo3"}[task]
    path = tiny_config(
        task,
        data={
            "source": source,
            "root": str(tmp_path / "root"),
            "cache": str(tmp_path / "cache"),
            "patch": [32, 48, 16],
            "spacing_mm": [4.0, 4.0, 4.0],
        },
        augment={"preset": "all"},
        cv={"stratify": True, "val_fraction": 0.4},
    )
    done = run_command("cv.py", path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "runs/run/predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == sorted(f"sub_{number}_ses_1" for number in range(1, 11))
    if task == "classification":  # the label is what the mask says
        tumour = nibabel.load(shared_data / "tcga_fg_6692" / "seg_mav.nii.gz")
        expected = [int(np.asarray(tumour.slicer[x, 20:220, z].dataobj).any()) for x, z in BLOCKS]
        assert {row["id"]: float(row["target"]) for row in rows} == {
            f"sub_{n}_ses_1": y for n, y in enumerate(expected, 1)
        }
        assert sum(expected) == 5
    if task == "segmentation":
        for row in rows:
            mask = nibabel.load(next((tmp_path / "runs/run").glob(f"fold_*/masks/{row['id']}.nii.gz")))
            image = nibabel.load(
                tmp_path / "root/preprocessed" / row["id"].removesuffix("_ses_1") / "ses_1/flair.nii.gz"
            )
            assert mask.shape == image.shape and np.allclose(mask.affine, image.affine)
            assert nibabel.aff2axcodes(mask.affine) == ("L", "P", "S") and mask.get_data_dtype() == np.uint8
