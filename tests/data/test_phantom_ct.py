"""The phantom CTs: findings are where their masks say, labels have their shares, no global number gives them away."""

import csv

import numpy as np
import pytest

from fomo.data.phantoms import chests
from fomo.metrics import auroc
from fomo.space import nifti, volume


@pytest.fixture(scope="module")
def drawn():
    """(findings (N, 18), global numbers (N, M)) of 120 small scans."""
    findings, numbers = [], []
    for _, there, chest, scan in chests.scans(120):
        hounsfield, masks, _ = chests.draw(there, 48, chest, scan)
        assert np.array_equal(masks.any((1, 2, 3)), there), "each finding has a mask, and nothing else has"
        image = hounsfield.astype(float)
        windowed = np.clip((image + 1000) / 1400, 0, 1)
        shares = [np.mean(image > level) for level in (-900, -500, 0, 100, 300, 600)]
        percentiles = np.percentile(image, [1, 5, 10, 25, 50, 75, 90, 95, 99])
        numbers.append([image.mean(), image.std(), windowed.mean(), windowed.std(), image.max(), *percentiles, *shares])
        findings.append(there)
    return np.array(findings), np.array(numbers)


def test_no_single_global_number_tells_the_labels(drawn):
    findings, numbers = drawn
    areas = [[auroc(there.astype(int), values) for there in findings.T] for values in numbers.T]
    means = [np.mean([max(area, 1 - area) for area in row]) for row in areas]
    assert 0.5 < max(means) < 0.7


def test_every_finding_changes_the_image_where_its_mask_is_and_hardly_elsewhere():
    def draw(findings):
        # the same chest: its own draws come before those of the findings
        return chests.draw(findings, 48, np.random.default_rng(1), np.random.default_rng(2))

    plain, masks, _ = draw(np.zeros(18, bool))
    assert not masks.any()
    for index, label in enumerate(chests.LABELS):
        image, masks, _ = draw(np.arange(18) == index)
        mask = masks[index]
        assert 20 < mask.sum() < 0.25 * mask.size and not np.delete(masks, index, 0).any(), label
        changed = np.abs(image.astype(float) - plain) > 100
        assert changed[mask].mean() > 2 * changed[~mask].mean(), label
        assert np.abs(image.astype(float) - plain)[mask].mean() > 60, label


def test_shares_and_company_of_the_labels():
    names, findings = zip(*((name, there) for name, there, _, _ in chests.scans(1000)))
    findings = np.array(findings)
    shares = findings.mean(0)
    assert shares.min() > 0.05 and shares.max() < 0.5 and shares.max() > 4 * shares.min()
    column = chests.LABELS.index
    effusions, heart = (findings[:, [column(name) for name in pair]].astype(float) for pair in (
        ("Pleural effusion", "Atelectasis"), ("Pleural effusion", "Bronchiectasis"),
    ))  # fmt: skip
    assert np.corrcoef(effusions.T)[0, 1] > 0.1 > abs(np.corrcoef(heart.T)[0, 1])
    patients = {}
    for name, there in zip(names, findings):
        patients.setdefault("_".join(name.split("_")[:2]), []).append(there)
    assert len(patients) == 800 and max(map(len, patients.values())) == 2
    assert all(np.array_equal(scans[0], scans[-1]) for scans in patients.values())
    valid = np.array([name.startswith("valid") for name in names])
    assert 0.15 < valid.mean() < 0.25 and findings[valid].any(0).all() and findings[~valid].any(0).all()


def test_files_are_hounsfield_volumes_with_masks_and_a_table(tmp_path):
    chests.make(tmp_path / "a", 5, 48)
    chests.make(tmp_path / "b", 5, 48)
    with open(tmp_path / "a" / "multi_abnormality_labels.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["VolumeName"] for row in rows][-2:] == ["train_4_a_1.nii.gz", "train_4_a_2.nii.gz"]
    assert list(rows[0]) == ["VolumeName", *chests.LABELS] and len(chests.LABELS) == 18
    spacings = set()
    for row in rows:
        path = f"volumes/{row['VolumeName']}"
        array, affine = nifti.read_nifti(tmp_path / "a" / path)
        bits, other = nifti.read_nifti(tmp_path / "a" / "masks" / row["VolumeName"])
        assert np.array_equal(array, nifti.read_nifti(tmp_path / "b" / path)[0])
        assert np.array_equal(affine, other) and array.shape == bits.shape
        assert -1024 <= array.min() < -950 and 200 < array.max() <= 3071
        found = [int((bits.astype(int) >> k & 1).any()) for k in range(18)]
        assert found == [int(row[label]) for label in chests.LABELS]
        spacings.add(volume.spacing(affine))
    assert len(spacings) == 5, "each scan has a grid of its own"
    with pytest.raises(FileExistsError):
        chests.make(tmp_path / "a", 5, 48)
