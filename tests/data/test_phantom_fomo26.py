"""The synthetic heads of FOMO26: its names, tubes of two voxels, and a cortex that no intensity tells."""

import numpy as np
import pytest
import scipy.ndimage
from conftest import tool, wanted

from fomo import config
from fomo.config import UserError
from fomo.data import sources
from fomo.data.cases import read_volume
from fomo.data.phantoms import heads
from fomo.metrics import auroc
from fomo.space import volume

SECOND = {
    1: ("dwi_b1000|dwi", "flair", "adc", "swi|t2s"),
    2: ("dwi_b1000|dwi", "flair", "swi|t2s"),
    3: ("t1w",),
    4: ("t2w",),
    5: ("t1",),
}
TYPES = {1: "classification", 2: "segmentation", 3: "regression", 4: "segmentation", 5: "classification"}


def listed(root, number, kind=None, cases=6, size=16, **more):
    data = dict(source="phantom", root=str(root), phantom_layout=f"fomo26_task{number}", channels=SECOND[number])
    data = config.Data(**{**data, "phantom_cases": cases, "phantom_size": size, **more})
    return sources.list_cases(data, wanted(type=kind or TYPES[number], classes=3 if number == 4 else 2))


@pytest.mark.parametrize("number", SECOND)
def test_each_task_has_the_names_of_the_second_edition(tmp_path, number):
    cases = listed(tmp_path, number)
    assert [case.id for case in cases] == [f"sub-{subject:03d}_ses-01" for subject in range(1, 7)]
    label = {1: "label.txt", 3: "labels.txt", 5: "labels.txt"}.get(number, "seg.nii.gz")
    [root] = tmp_path.iterdir()
    assert root.name.startswith(f"fomo26_task{number}_6x16") and list(root.glob(f"labels/sub-*/ses-01/{label}"))
    assert {case.target for case in cases} <= {0, 1} or number == 3


def test_the_first_editions_heads_are_what_they_were(tmp_path):
    """The same anatomy in both editions: only names differ."""
    for edition in (25, 26):
        heads.make(str(tmp_path / str(edition)), 3, 2, 16, edition=edition)
    first = (tmp_path / "25/preprocessed/sub_001/ses_1/t1.nii.gz").read_bytes()
    assert first == (tmp_path / "26/preprocessed/sub-001/ses-01/t1w.nii.gz").read_bytes()


@pytest.mark.parametrize(
    "number, kind, said",
    [
        (1, "segmentation", "wanted fomo26_task2 or fomo26_task4 or table: no other has a mask"),
        (4, "classification", "wanted fomo26_task1 or fomo26_task5 or table: no other has a class"),
        (2, "regression", "wanted fomo26_task3 or table: no other has a number"),
    ],
)
def test_a_task_without_the_label_is_refused(tmp_path, number, kind, said):
    with pytest.raises(UserError, match=f"data.phantom_layout: got fomo26_task{number}, {said}"):
        listed(tmp_path, number, kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", SECOND)
def test_pretraining_takes_any_of_them(tmp_path, number):
    cases = listed(tmp_path, number, "mae")
    assert len(cases) == 6 and {case.target for case in cases} == {None}


def test_nerves_and_vessels_are_two_voxels_wide_and_told_by_intensity(tmp_path):
    for case in listed(tmp_path, 4, cases=11, size=40):
        image, affine = read_volume(case.images[0])
        mask = read_volume(case.mask, like=affine)[0]
        assert set(np.unique(mask)) == {0, 1, 2}
        mm = volume.spacing(affine)
        for label, pieces in ((1, 2), (2, 2)):
            depth = scipy.ndimage.distance_transform_edt(mask == label, sampling=mm).max()
            assert depth <= 1.6 * max(mm), "nothing is thicker than some two voxels"
            parts, count = scipy.ndimage.label(mask == label, np.ones((3, 3, 3)))
            large = [part for part in range(1, count + 1) if (parts == part).sum() >= 5]
            assert len(large) >= pieces, "one on each side"
        around = scipy.ndimage.binary_dilation(mask > 0, iterations=2) & (mask == 0) & (image > 0)
        nerve, vessel, fluid = (np.median(image[where]) for where in (mask == 1, mask == 2, around))
        assert vessel < nerve < fluid


def test_dark_tubes_in_the_brain_are_no_vessels(tmp_path):
    """An intensity alone finds more than the vessels."""
    case = listed(tmp_path, 4, cases=4, size=40)[0]
    image, affine = read_volume(case.images[0])
    mask = read_volume(case.mask, like=affine)[0]
    inner = scipy.ndimage.binary_erosion(image > 0, iterations=4)
    dark = inner & (image < np.median(image[mask == 2]) * 1.3)
    assert (dark & (mask == 0)).sum() > 0.3 * (dark & (mask == 2)).sum()


def test_no_intensity_tells_polymicrogyria(tmp_path):
    cases = listed(tmp_path, 5, cases=88, size=24)
    labels, table = np.array([case.target for case in cases]) == 1, []
    assert 0.4 < labels.mean() < 0.6
    for case in cases:
        array, _ = read_volume(case.images[0])
        inside = array[array > 0]
        median = np.median(inside)
        row = [inside.mean(), inside.max() / inside.mean(), np.percentile(inside, 99) / median, inside.size]
        table.append([*row, np.percentile(inside, 1) / median])
    for column in np.array(table).T:
        assert abs(auroc(labels, column) - 0.5) < 0.25


def test_the_tool_makes_them(tmp_path):
    tool("make_phantoms", 4, tmp_path / "four", "--cases", 2, "--size", 16)
    assert (tmp_path / "four/labels/sub-002/ses-01/seg.nii.gz").exists()
    tool("make_phantoms", 3, tmp_path / "three", "--cases", 2, "--size", 16, "--edition", 26)
    assert (tmp_path / "three/labels/sub-002/ses-01/labels.txt").exists()
