"""Post-processing on masks drawn by hand."""

import json

import numpy as np
import pytest

from fomo import checkpoint, config, report, tasks
from fomo.runtime import files
from fomo.space import postprocess, volume

# two components: a ring with a hole, and a pair of voxels; a third voxel touches the pair by a corner
PICTURE = """
#####......
#...#......
#...#....#.
#...#...#..
#####...#..
"""
FILLED = PICTURE.replace("\n#...#", "\n#####")
RING_ONLY = (
    PICTURE.replace("....#.", "......").replace("#...#...#..", "#...#......").replace("#####...#..", "#####......")
)


def draw(picture):
    plane = np.array([[char == "#" for char in line] for line in picture.strip().splitlines()], np.uint8)
    drawn = np.zeros((*plane.shape, 3), np.uint8)
    drawn[..., 1] = plane
    return drawn


def closed(picture):
    """The picture in the middle slice, closed off above and below so that its hole is one in 3D."""
    volume = draw(picture)
    volume[..., 0] = volume[..., 2] = draw(FILLED)[..., 1]
    return volume


def test_a_hole_is_filled_only_when_it_is_closed_on_all_sides():
    assert np.array_equal(postprocess.apply(draw(PICTURE), (1, 1, 1), fill_holes=True), draw(PICTURE))
    assert np.array_equal(postprocess.apply(closed(PICTURE), (1, 1, 1), fill_holes=True), closed(FILLED))


def test_components_are_measured_in_mm3_and_joined_by_corners():
    mask = draw(PICTURE)  # 16 voxels and 3 voxels, of 4 mm3
    for minimum, expected in ((12.0, PICTURE), (12.1, RING_ONLY), (64.0, RING_ONLY), (64.1, PICTURE.replace("#", "."))):
        assert np.array_equal(postprocess.apply(mask, (2, 2, 1), minimum_mm3=minimum), draw(expected)), minimum
    assert np.array_equal(postprocess.apply(mask, (2, 2, 1), largest=True), draw(RING_ONLY))
    assert np.array_equal(mask, draw(PICTURE)), "the input is not changed"


def test_classes_are_treated_apart_and_a_filled_hole_keeps_what_is_in_it():
    mask = closed(PICTURE)
    mask[2, 2, 1] = 2  # a lesion of another class in the hole
    result = postprocess.apply(mask, (1, 1, 1), fill_holes=True, largest=True)
    assert result[2, 2, 1] == 2 and (result[1:4, 1:4, 1] > 0).all() and (result == 2).sum() == 1
    assert result[3, 8, 1] == 0
    assert not postprocess.apply(np.zeros((3, 3, 3), np.uint8), (1, 1, 1), True, 10.0, True).any()


def test_nothing_asked_nothing_done_and_bad_shapes_are_refused():
    assert postprocess.CANDIDATES[0] == postprocess.NONE
    assert np.array_equal(postprocess.apply(draw(PICTURE), (1, 1, 1), **postprocess.NONE), draw(PICTURE))
    with pytest.raises(ValueError, match="mask: got shape"):
        postprocess.apply(np.zeros((3, 3), np.uint8), (1, 1, 1))


def test_an_ensemble_takes_the_median_size_and_the_majority():
    choices = [dict(fill_holes=f, minimum_mm3=m, largest=False) for f, m in ((True, 0.0), (True, 100.0), (False, 10.0))]
    assert postprocess.merge(choices) == {"fill_holes": True, "minimum_mm3": 10.0, "largest": False}
    assert postprocess.merge(choices[:1]) == choices[0]


def test_what_it_gained_of_the_dice_is_measured():
    task = tasks.build(config.Config(task=config.Task(type="segmentation"), eval=config.Eval(postprocess="auto")))
    reference = np.zeros((8, 8, 8), np.uint8)
    reference[1:4, 1:4, 1:4] = 1
    said = reference.copy()
    said[6:, 6:, 6:] = 1  # a component of 8 voxels that is not there
    image, _, geometry = volume.preprocess([np.arange(1, 513, dtype=np.float32).reshape(8, 8, 8)], np.eye(4))
    assert image.shape[1:] == said.shape
    said = np.stack([1.0 - said, said]).astype(np.float32)
    for chosen, after in ((postprocess.NONE, said[1] > 0.5), ({**postprocess.NONE, "largest": True}, reference)):
        task.state["postprocess"] = dict(chosen)
        gain = task._gain(said, geometry, reference, np.asarray(after, np.uint8), np.eye(4))
        assert gain == pytest.approx(1 - 2 * 27 / (27 + 35) if chosen["largest"] else 0.0)


def test_its_gain_stands_in_the_tables_of_a_run(trained):
    run = trained("segmentation")
    rows = files.read_numbers(run / "predictions.csv")
    found = json.loads((run / "summary.json").read_text())["metrics"]["postprocess_gain"]
    assert found["pooled"] == pytest.approx(np.mean([row["postprocess_gain"] for row in rows]))
    for fold in (1, 2):
        kept = checkpoint.load(run / f"fold_{fold}" / "best.pt")["task"]["postprocess"]
        own = [row["postprocess_gain"] for row in rows if row["fold"] == fold]
        assert own and (kept != postprocess.NONE or not any(own))
    page = open(report.write(run)).read()
    assert "Dice gained by post-processing" in page
