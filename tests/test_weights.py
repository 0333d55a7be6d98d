"""Weights of the runs of an ensemble: searched where that is better than chance, stored, and applied in prediction."""

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import members_of, tool, write_table

from fomo import checkpoint, kinds, metrics, tasks
from fomo.config import UserError
from fomo.runs import crossval, weights
from fomo.runtime import files


def made(cases, noises, seed=0):
    """(labels (n, 2), said (R, n, 2)): runs that know the labels, each with noise of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (cases, 2)).astype(float)
    said = np.stack([labels + noise * rng.normal(size=labels.shape) for noise in noises])
    return labels, said


def test_a_run_that_knows_more_counts_more_and_half_of_the_weight_stays_equal():
    labels, said = made(300, (0.8, 4.0, 4.0))
    found, test = weights.choose(metrics.macro_auroc, labels, said, np.arange(300))
    assert found.mean() == pytest.approx(1) and found[0] > 1.4 and (found >= 0.5).all() and test.p < 0.05
    assert found[0] <= 0.5 + 0.5 * 3
    assert test.difference > 0.02, "on cases that have not chosen"
    one = metrics.macro_auroc(labels, np.average(said, axis=0, weights=found))
    assert one > metrics.macro_auroc(labels, said.mean(0))


def test_what_could_be_chance_stays_equal():
    for seed in range(5):
        labels, said = made(60, (1.5, 1.5, 1.5), seed)
        assert (weights.search(metrics.macro_auroc, labels, said) != 1).any(), "the search alone takes chance for gain"
        found, test = weights.choose(metrics.macro_auroc, labels, said, np.arange(60))
        assert (found == 1).all() and not (test.p < 0.05 and test.difference > 0)
    labels, said = made(300, (0.8, 4.0))
    subjects = np.arange(300) % 9
    assert weights.choose(metrics.macro_auroc, labels, said, subjects)[1] is None, "nine subjects"
    found, test = weights.choose(metrics.macro_auroc, np.zeros_like(labels), said, np.arange(300))
    assert (found == 1).all() and np.isnan(test.p), "undefined without a positive"


def test_the_groups_that_choose_and_are_asked_share_no_subject(monkeypatch):
    labels, said = made(100, (0.5, 3.0))
    subjects, seen = np.arange(100) // 5, []
    said[0] += np.arange(100)[:, None] * 1e-9  # which tells the cases apart
    plain = weights.search
    monkeypatch.setattr(weights, "search", lambda metric, y, s: seen.append(s[0, :, 0]) or plain(metric, y, s))
    weights.choose(metrics.macro_auroc, labels, said, subjects)
    for chosen in seen[:5]:
        there = np.isin(said[0, :, 0], chosen)
        assert len(set(subjects[there])) == 16 and not set(subjects[there]) & set(subjects[~there])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function: name, more of the config -> the folder of a run of two folds on 40 volumes."""
    folder, rng, rows = tmp_path_factory.mktemp("weights"), np.random.default_rng(0), []
    for i in range(40):
        image = rng.normal(size=(8, 8, 8)).astype(np.float32)
        image[2:6, 2:6, 2:6] += 3 * (i % 2)
        np.save(folder / f"{i}.npy", image)
        rows.append({"id": f"c{i}", "subject": f"s{i}", "t1": f"{i}.npy", "y": i % 2, "age": 40 + 20 * (i % 2)})
    table = write_table(folder / "table.csv", rows)

    def run(name, **sections):
        if not (folder / name).exists():
            content = {
                "name": name,
                "output": str(folder),
                "task": {"type": "classification", "targets": ["y"]},
                "data": {"source": "table", "csv": table, "channels": ["t1"], "patch": [32, 16, 16], "spacing_mm": None,
                         "cache": str(folder / "cache"), "prepare_workers": 0},
                "model": {"width": 2, "head": "linear"},
                "train": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "workers": 0, "amp": "off"},
                "augment": {"preset": "none"},
                "cv": {"folds": 2, "val_fraction": 0.5},
                "eval": {"bootstrap": 0},
                "audit": {"rivals": False},
            }  # fmt: skip
            for section, values in sections.items():
                content[section] = {**content[section], **values} if isinstance(values, dict) else values
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(crossval.report, "write", lambda *_, **__: None)  # has tests of its own
                crossval.run(kinds.from_dict(content, "here"))
        return folder / name

    return run


def test_the_exported_weights_are_applied(runs, tmp_path, monkeypatch, capsys):
    a, b = runs("a"), runs("b", model={"width": 3})
    monkeypatch.setattr(weights, "search", lambda metric, labels, said: np.array([1.5, 0.5]))
    better = metrics.delong_test([0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 0, 1])._replace(difference=0.1, p=0.01)
    monkeypatch.setattr(weights.metrics, "paired_swap", lambda *_, **__: better)
    tool("export", a, b, "--weights", "auto", "--output", tmp_path / "both")
    said = capsys.readouterr().out
    assert re.search(r"weights=\[?1.5,0.5.* val_auroc=\S+ weighted_auroc=\S+ kept=searched gain=0.1 p=0.01", said), said
    names = [f"run_{run}_fold_{fold}.pt" for run in (1, 2) for fold in (1, 2)]
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == names
    assert [checkpoint.load(tmp_path / "both" / name)["weight"] for name in names] == [1.5, 1.5, 0.5, 0.5]
    table = a.parent / "table.csv"
    for source, output in ((tmp_path / "both", "weighted"), (a, "a"), (b, "b")):
        tool("predict", source, "--cases", table, "--output", tmp_path / output)
    assert "weights=1.5,1.5,0.5,0.5" in capsys.readouterr().out
    first, second, both = (files.read_numbers(tmp_path / name / "predictions.csv") for name in ("a", "b", "weighted"))
    for x, y, z in zip(first, second, both):
        assert z["probability"] == pytest.approx((3 * x["probability"] + y["probability"]) / 4, abs=1e-6)
    assert max(abs(x["probability"] - y["probability"]) for x, y in zip(first, second)) > 1e-3


def test_only_validation_cases_are_opened_and_equal_runs_count_equally(runs, tmp_path, monkeypatch, capsys):
    a, b = runs("a"), runs("b", model={"width": 3})
    splits, asked, plain = files.read_json(a / "splits.json")["folds"], [], weights.evaluate

    def evaluate(config, task, network, cases):
        asked.append({case.id for case in cases})
        return plain(config, task, network, cases)

    monkeypatch.setattr(weights, "evaluate", evaluate)
    tool("export", a, b, "--weights", "auto", "--output", tmp_path / "both")
    assert asked == 2 * [set(split["val"]) for split in splits]
    assert "kept=equal" in capsys.readouterr().out
    assert {member.task.weight for member in members_of(tmp_path / "both")} == {1.0}


def test_runs_that_cannot_be_weighed_are_refused(runs, tmp_path):
    a = runs("a")
    for others, said in (
        ([], "got one run, wanted two or more with the same folds .the folds of one run have no validation case in"),
        ([a], "the same checkpoint"),
        ([runs("c", cv={"folds": 3})], "got a run of 3 folds, and .* has 2: wanted runs with the same folds"),
        ([runs("d", task={"type": "regression", "targets": ["age"]})], "got task.type=regression"),
        ([tmp_path], "no config.yaml in it"),
    ):
        with pytest.raises(UserError, match=said):
            tool("export", a, *others, "--weights", "auto", "--output", tmp_path / "both")
    with pytest.raises(SystemExit):
        tool("export", a, a, "--output", tmp_path / "both")
    with pytest.raises(SystemExit):
        tool("export", a, a, "--weights", "auto", "--soup", "uniform", "--output", tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_case_that_is_gone_is_said(runs, tmp_path, monkeypatch):
    a, b = runs("a"), runs("b", model={"width": 3})
    gone, plain = min(files.read_json(a / "splits.json")["folds"][0]["val"]), weights.sources.list_cases
    monkeypatch.setattr(weights.sources, "list_cases", lambda *_: [case for case in plain(*_) if case.id != gone])
    with pytest.raises(UserError, match=f"case {gone} of its validation parts is not in the data"):
        tool("export", a, b, "--weights", "auto", "--output", tmp_path / "both")


def test_without_a_common_case_or_with_other_labels_there_are_no_weights():
    blend = tasks.TASKS["classification"].blend
    row = {"target": 1, "probability": 0.5, "subject": "s"}
    with pytest.raises(UserError, match="no case is in the validation part of the same fold of all runs"):
        weights._in_common([{(1, "a"): row}, {(2, "a"): row}], blend, ["x", "y"])
    with pytest.raises(UserError, match="y has other labels than x"):
        weights._in_common([{(1, "a"): row}, {(1, "a"): {**row, "target": 0}}], blend, ["x", "y"])


def test_segmentations_count_equally(runs, tmp_path, monkeypatch):
    a, b = runs("a"), runs("b", model={"width": 3})

    def load_members(paths, device):
        members = plain(paths, device)
        task = tasks.build(
            kinds.from_dict(
                {"task": {"type": "segmentation"}, "data": {"source": "fomo2", "root": "x", "channels": ["t1"]}}, "here"
            )
        )
        return [replace(member, task=task, config=task.config) for member in members]

    plain = weights.load_members
    monkeypatch.setattr(weights, "load_members", load_members)
    with pytest.raises(UserError, match="got runs of task.type=segmentation, whose networks count equally"):
        tool("export", a, b, "--weights", "auto", "--output", tmp_path / "both")


def test_each_task_that_has_weights_applies_them(runs):
    """Regression and several labels beside the two classes of the whole tool."""
    regression = members_of(runs("d", task={"type": "regression", "targets": ["age"]}))
    for member, weight in zip(regression, (0.5, 1.5)):
        member.task.weight = weight
    row, _ = regression[0].task.answer([member.task for member in regression], [40.0, 60.0], None)
    assert row["prediction"] == 55.0
    config = kinds.from_dict({"task": {"type": "multilabel", "targets": ["x", "y"]},
                              "data": {"source": "table", "csv": "t", "channels": ["ct"]}}, "here")  # fmt: skip
    both = [tasks.build(config) for _ in range(2)]
    both[0].weight, both[1].weight = 0.5, 1.5
    [row] = both[0].rows_of(both, [np.array([[0.8, 0.0]]), np.array([[0.4, 0.8]])])
    assert (row["probability_x"], row["probability_y"]) == pytest.approx((0.5, 0.6))
    assert (row["decision_x"], row["decision_y"]) == (1, 1)
