"""The view of segmentation: verdict, cases, pictures; a real run."""

import math
from types import SimpleNamespace

import numpy as np
from conftest import run_command
from report_runs import make_run, needs_figures, read, shown, verdict

from fomo import config, tasks
from fomo.data import entry
from fomo.metrics import segmentation_metrics_per_class
from fomo.report import run
from fomo.space import nifti, volume
from fomo.tasks import segmentation, views


def test_the_verdict(tmp_path):
    found = run.Run(make_run(tmp_path / "run", "segmentation"))
    # of 40 cases 36 have a reference; those with index 7, 14, 21, 28, 35 have no prediction
    text = "Better than an empty mask, which scores 0; of the 36 cases with something to find, 5 are missed altogether."
    # of the 4 without one, index 0 has no prediction either
    assert verdict(found) == f"{text} 3 of 4 cases without a lesion got a mask."


def test_whether_there_is_a_lesion_at_all(tmp_path):
    found = shown(make_run(tmp_path / "run", "segmentation"))
    assert "lesion or none, by case: sensitivity 0.861 (31 of 36), specificity 0.250 (1 of 4)" in found.text
    _, *rows = found.table("Is there a lesion at all?")
    shares = {row[0].text: (row[1].value, row[3].text) for row in rows}
    assert shares == {
        "sensitivity": (31 / 36, "31 of 36"),
        "specificity": (1 / 4, "1 of 4"),
        "positive predictive value (PPV)": (31 / 34, "31 of 34"),
        "negative predictive value (NPV)": (1 / 6, "1 of 6"),
    }


OTHERS = {
    "surface_dice": 0.5,
    "average_surface_distance": 1.0,
    "sensitivity": 1.0,
    "precision": 1.0,
    "lesions_false": 0.0,
}
CASES = """
id          dice  hd95  reference_voxels  predicted_voxels  lesions_missed
fine        0.9   1     9                 9                 0
nothing     nan   nan   0                 0                 0
empty       0     inf   9                 0                 2
invented    0     inf   0                 5                 0
one_missed  0.5   3     9                 5                 1
elsewhere   0     9     9                 5                 1
"""


def test_cases_come_worst_first_with_warnings():
    names, *lines = (line.split() for line in CASES.split("\n") if line)
    given = [
        {"id": line[0], "subject": "s", "fold": 1.0, **OTHERS, **dict(zip(names[1:], map(float, line[1:])))}
        for line in lines
    ]
    _, rows, warned = views.segmentation.cases(given)
    assert {row[0]: row[1].value for row in rows} == {
        "empty": "empty prediction",
        "elsewhere": "no overlap; 1 missed lesion",
        "invented": "false alarm",
        "one_missed": "1 missed lesion",
        "fine": "",
        "nothing": "",
    }
    assert [row[0] for row in rows][-3:] == ["one_missed", "fine", "nothing"]
    assert set(warned) == {"empty", "elsewhere", "invented", "one_missed"}


def an_entry(tmp_path, affine):
    """An Entry of two channels, whose second one shows the lesion, and the path of a predicted mask beside it."""
    shape = (12, 10, 8)
    mask = np.zeros(shape, np.uint8)
    mask[2:5, 3:6, 4:6] = 1
    rng = np.random.default_rng(0)
    arrays = [rng.normal(5, 1, shape), rng.normal(5, 1, shape) + 9 * mask]
    image, on_grid, geometry = volume.preprocess(arrays, affine, mask=mask)
    path = tmp_path / "predicted.nii.gz"
    nifti.write_nifti(str(path), np.roll(mask, 1, 1), affine)
    return entry.Entry(image, (image.min(),) * 2, on_grid, geometry), str(path)


@needs_figures
def test_pictures_of_a_case(tmp_path):
    stored, path = an_entry(tmp_path, np.diag([-1.0, 1.0, 2.0, 1.0]))  # stored right to left
    np.testing.assert_array_equal(stored.predicted(path), np.roll(stored.mask, 1, 1))
    channel, found = views.segmentation.planes(stored, path, "a")
    assert channel == 1
    assert [plane for plane, _ in found] == ["axial", "coronal", "sagittal"]
    assert all(picture.text.startswith('<img src="data:image/jpeg;base64,') for _, picture in found)
    _, turned = views.segmentation.planes(stored, path, "a", radiological=False)
    assert [one[1].text == other[1].text for one, other in zip(found, turned)] == [False, False, True]


def test_the_cases_that_are_shown():
    rows = [{"id": str(i), "dice": i / 10, "reference_voxels": 1.0, "predicted_voxels": 1.0} for i in range(5)]
    rows.append({"id": "none", "dice": math.nan, "reference_voxels": 0.0, "predicted_voxels": 0.0})
    assert [(name, row["id"]) for name, row in views.segmentation.chosen(rows)] == [
        ("best", "4"),
        ("median", "2"),
        ("worst", "0"),
    ]
    assert [row["id"] for _, row in views.segmentation.chosen(rows[:2])] == ["1", "0"]
    assert [row["id"] for _, row in views.segmentation.chosen(rows[:1])] == ["0"]
    assert views.segmentation.chosen(rows[5:]) == []


def test_the_worst_of_all_cases_is_shown_and_every_false_alarm():
    names = ("dice", "reference_voxels", "predicted_voxels")
    values = {
        "fine": (0.9, 9, 9),
        "alarm": (0, 0, 5),
        "missed": (0, 9, 0),
        "larger": (0, 0, 7),
        "empty": (math.nan, 0, 0),
    }
    rows = [{"id": id, **dict(zip(names, given))} for id, given in values.items()]
    assert [(name, row["id"]) for name, row in views.segmentation.chosen(rows)] == [
        ("best", "fine"),
        ("median", "larger"),
        ("worst", "missed"),
        ("false alarm", "alarm"),
    ]


@needs_figures
def test_images_that_are_gone_are_said_so(tmp_path):
    found = shown(make_run(tmp_path / "run", "segmentation", data={"source": "fomo2", "root": str(tmp_path / "gone")}))
    assert "The images cannot be shown" in found.text and "gone" in found.text


@needs_figures
def test_a_real_run(tiny_config, tmp_path):
    done = run_command("cv.py", tiny_config("segmentation"))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "run"
    done = run_command("tools/report.py", folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = read(folder / "report.html")
    assert text.count("<img ") >= 9 and "(ml)" in text
    assert 2e4 < len(text) < 5e6
    done = run_command("tools/report.py", tmp_path / "runs")
    assert done.returncode == 2 and "config.yaml" in done.stderr and "Traceback" not in done.stderr


def test_a_class_that_is_never_predicted_is_said():
    nerve, vessels = np.zeros((2, 8, 8, 8), bool)
    nerve[1:4, 1:4, 1:4], vessels[5:7, 5:7, 5:7] = True, True
    reference, said = nerve + 2 * vessels, nerve.astype(int)
    names = ("nerve", "vessels")

    def row(reference, prediction):
        found = segmentation_metrics_per_class(reference, prediction, (1.0, 1.0, 1.0), 3, 1.0)
        return segmentation._with_mean(found, names)

    rows = [row(reference, said), row(said, said), row(reference, said)]
    assert views.segmentation.never_predicted(rows) == {"vessels": 2}
    assert views.segmentation.never_predicted([row(said, said)]) == {}, "no case has it"
    assert views.segmentation.never_predicted([*rows, row(reference, reference)]) == {}
    task = tasks.build(config.Config(task=config.Task(type="segmentation", classes=3, class_names=names)))
    doubts = dict(task.doubts({"empty_predictions": 0}, rows))
    assert doubts == {"class vessels is never predicted, though cases have it": 2}
    metrics = {"hd95": {}, "dice": {}}
    notes = views.segmentation.VIEW.notes(SimpleNamespace(rows=rows, metrics=metrics))
    assert notes == ["Class vessels is never predicted, though 2 of 3 cases have it."]
