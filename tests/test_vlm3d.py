"""VLM3D as it is judged: thresholds moved to 0.5, the CRG score by hand, and the file of results."""

import json

import numpy as np
import pytest
from conftest import tool, write_table

from fomo import kinds, metrics, tasks
from fomo.config import UserError
from fomo.data.phantoms import chests
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runtime import files

LABELS = list(chests.LABELS)  # even ones are had by large things, odd ones by bright ones


def test_a_threshold_becomes_a_half_and_the_order_stays():
    p = np.linspace(0.001, 0.999, 400)
    for threshold in (0.03, 0.5, 0.9):
        moved = metrics.shifted(p, threshold)
        assert (np.diff(moved) > 0).all() and ((moved >= 0.5) == (p >= threshold)).all()
        assert metrics.shifted(threshold, threshold) == 0.5
    np.testing.assert_allclose(metrics.shifted(p, 0.5), p)
    both = metrics.shifted(np.array([[0.2, 0.7]]), [0.2, 0.7])
    np.testing.assert_allclose(both, [[0.5, 0.5]])
    assert np.isfinite(metrics.shifted([0.0, 1.0], [0.0, 1.0])).all()


def test_the_crg_score_by_hand():
    """Of 10 labels 2 are there: each is worth (10 - 2) / 4 = 2, the best sum is 4."""
    labels = np.zeros((5, 2), int)
    labels[0, 0] = labels[3, 1] = 1
    assert metrics.crg(labels, labels) == 1
    assert metrics.crg(labels, np.zeros_like(labels)) == pytest.approx(1 / 3)
    assert metrics.crg(labels, np.ones_like(labels)) == pytest.approx(1 / 3)
    one = np.zeros_like(labels)
    one[0, 0] = one[1, 1] = 1  # one found, one missed, one false: 2 - 2 - 1
    assert metrics.crg(labels, one) == pytest.approx(4 / (8 + 1))
    assert np.isnan(metrics.crg(np.zeros((2, 2)), np.zeros((2, 2)))) and np.isnan(metrics.crg(np.ones((2, 2)), one[:2]))
    with pytest.raises(ValueError, match="decisions"):
        metrics.crg(labels, one[:2])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Function: eval.calibrate, more sections -> the folder of a run on volumes, and the table that it has learned."""
    folder, rng, rows = tmp_path_factory.mktemp("vlm3d"), np.random.default_rng(0), []
    for i in range(32):
        image = rng.normal(size=(16, 16, 16)).astype(np.float32)
        size = 6 if i % 3 == 0 else 3
        image[2 : 2 + size, 2 : 2 + size, 2 : 2 + size] += 4 if i % 4 == 0 else 2
        np.save(folder / f"{i}.npy", image)
        findings = {label: int(i % (4 if k % 2 else 3) == 0) for k, label in enumerate(LABELS)}
        rows.append({"id": f"c{i}", "subject": f"s{i}", "ct": f"{i}.npy", **findings})
    table = write_table(folder / "table.csv", rows)
    done = {}

    def run(calibrate, name=None, **sections):
        name = name or calibrate
        if name not in done:
            content = {
                "name": name,
                "output": str(folder),
                "task": {"type": "multilabel", "targets": LABELS},
                "data": {"source": "table", "csv": table, "channels": ["ct"], "patch": [32, 32, 32], "spacing_mm": None,
                         "cache": str(folder / "cache"), "prepare_workers": 0},
                "model": {"width": 2},
                "train": {"epochs": 2, "batch_size": 4, "workers": 0, "amp": "off"},
                "augment": {"preset": "none"},
                "cv": {"folds": 2, "val_fraction": 0.4},
                "eval": {"bootstrap": 0, "calibrate": calibrate},
                "audit": {"rivals": False},
            }  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(crossval.report, "write", lambda *_, **__: None)  # has tests of its own
                crossval.run(kinds.from_dict(content | sections, "here"))
            done[name] = folder / name
        return done[name], table

    return run


def test_moved_probabilities_decide_at_a_half_what_the_thresholds_decided(made):
    plain, moved = (files.read_numbers(made(kind)[0] / "predictions.csv") for kind in ("none", "half"))
    assert len(plain) == len(moved) == 32
    different = 0
    for before, after in zip(plain, moved):
        for label in LABELS:
            name = label.replace(" ", "_")
            decided = before[f"decision_{name}"]
            assert decided == after[f"decision_{name}"] == int(after[f"probability_{name}"] >= 0.5)
            different += before[f"probability_{name}"] != after[f"probability_{name}"]
        assert after["threshold"] == 0.5
    assert different > 32 * len(LABELS) / 2, "they are moved"
    scores = [json.loads((made(kind)[0] / "summary.json").read_text())["metrics"] for kind in ("none", "half")]
    for name in ("volume_f1_macro", "volume_crg"):
        assert scores[0][name]["pooled"] == pytest.approx(scores[1][name]["pooled"], nan_ok=True)
    for fold in (1, 2):
        before, after = (
            RunFolder(made(kind)[0]).fold(fold).scores()["volume_auroc_macro"] for kind in ("none", "half")
        )
        assert before == pytest.approx(after), "the order of each label stays"


def test_the_file_of_the_challenge_has_a_probability_of_each_label(made, tmp_path):
    run, table = made("half")
    tool("predict", run / "fold_1" / "best.pt", "--cases", table, "--output", tmp_path / "a", "--format", "vlm3d")
    content = json.loads((tmp_path / "a" / "results.json").read_text())
    assert list(content) == ["name", "type", "version", "predictions"] and len(content["predictions"]) == 32
    said = {row["id"]: row for row in files.read_csv(tmp_path / "a" / "predictions.csv")}
    first = {row["id"]: row for row in files.read_numbers(run / "fold_1" / "predictions.csv")}
    for one in content["predictions"]:
        assert set(one) == {"input_image_name", "probabilities"} and list(one["probabilities"]) == LABELS
        for label in LABELS:
            value, name = one["probabilities"][label], label.replace(" ", "_")
            assert value == float(said.get(one["input_image_name"])[f"probability_{name}"])
            if one["input_image_name"] in first:
                assert value == pytest.approx(first[one["input_image_name"]][f"probability_{name}"], abs=2e-3)


def test_networks_of_several_folds_decide_together_at_a_half(made, tmp_path):
    run, table = made("half")
    tool("predict", run, "--cases", table, "--output", tmp_path / "a", "--format", "vlm3d")
    for row in files.read_numbers(tmp_path / "a" / "predictions.csv"):
        for name in (label.replace(" ", "_") for label in LABELS):
            assert row[f"decision_{name}"] == int(row[f"probability_{name}"] >= 0.5)


def test_other_thresholds_and_other_tasks_are_refused(made, trained, tmp_path):
    run, table = made("none")
    with pytest.raises(UserError, match="got thresholds besides 0.5.*eval.calibrate=half"):
        tool("predict", run, "--cases", table, "--output", tmp_path / "a", "--format", "vlm3d")
    assert not (tmp_path / "a").exists()
    run, table = made("half", "other", task={"type": "multilabel", "targets": LABELS[1:]})
    with pytest.raises(UserError, match="no label 'Cardiomegaly', wanted the 18 of the challenge, which takes 0"):
        tool("predict", run, "--cases", table, "--output", tmp_path / "a", "--format", "vlm3d")
    with pytest.raises(UserError, match="got a network of task.type=regression, wanted one of several labels"):
        tool("predict", trained("regression"), "--cases", table, "--output", tmp_path / "a", "--format", "vlm3d")


@pytest.mark.parametrize(
    "task, keys, said",
    (
        ("multilabel", {"calibrate": "temperature"}, "eval.calibrate: got temperature, wanted none or half"),
        ("multilabel", {"calibrate": "half", "threshold": "half"}, "eval.threshold: got half, wanted youden or f1"),
        ("classification", {"calibrate": "half", "threshold": "half"}, "eval.threshold: got half, wanted youden or f1"),
    ),
)
def test_what_cannot_be_moved_is_refused(task, keys, said):
    data = {"source": "table", "csv": "x", "channels": ["ct"]}
    with pytest.raises(UserError, match=said):
        kinds.from_dict({"task": {"type": task, "targets": LABELS[:1]}, "data": data, "eval": keys}, "here")


def test_two_classes_are_moved_likewise(tiny_config, tmp_path):
    rows = {}
    for kind in ("none", "half"):
        config = kinds.load(tiny_config(name=kind, eval={"calibrate": kind}, audit={"rivals": False}))
        crossval.run(config)
        rows[kind] = files.read_numbers(tmp_path / "runs" / kind / "predictions.csv")
        task = tasks.build(config)
        assert task.state["moved"] == 0.5, "until it is fitted"
    for before, after in zip(rows["none"], rows["half"]):
        assert before["decision"] == after["decision"] == int(after["probability"] >= 0.5)
    merged = tasks.TASKS["classification"].merge([{"threshold": 0.5, "moved": m} for m in (0.2, 0.4)])
    assert merged["moved"] == pytest.approx(0.3)
