"""A task, a network, a source and a transform that fomo does not know, each one file, do all that the others do."""

import dataclasses
import json

import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import members_of, tool
from dummies import network, source, task, transform

from fomo import checkpoint, kinds, metrics, nets, tasks
from fomo.config import UserError
from fomo.data import sources
from fomo.data.cases import Case, Volume
from fomo.runs import crossval
from fomo.runtime import files
from fomo.tasks.task import Task


@pytest.fixture
def registered(monkeypatch):
    for kind in (network, source, task, transform):
        kind.register(monkeypatch)


def write_toys(root, cases, seed=0):
    """Volumes with bright dots, whose number is to be learned."""
    rng = np.random.default_rng(seed)
    for number in range(cases):
        folder = root / f"s{number:02}_1"
        folder.mkdir(parents=True)
        count, image = int(rng.integers(1, 30)), rng.normal(10, 1, (20, 20, 20))
        image[tuple(rng.integers(2, 18, (3, count)))] = 60
        nibabel.save(nibabel.Nifti1Image(image.astype(np.float32), np.eye(4)), folder / "t1.nii.gz")
        (folder / "number").write_text(str(count))


@pytest.fixture
def config_path(registered, tmp_path):
    write_toys(tmp_path / "toys", 16)
    tiny = nets.build("tiny", 1, 1, mode="regression", width=2)
    checkpoint.save(tmp_path / "pretrained.pt", {"model": tiny.state_dict()})
    content = {
        "name": "counts",
        "output": str(tmp_path / "runs"),
        "task": {"type": "count", "targets": []},
        "data": {"source": "toys", "root": str(tmp_path / "toys"), "channels": ["t1"], "patch": [20, 20, 20]},
        "model": {"name": "tiny", "width": 2},
        "weights": {"path": str(tmp_path / "pretrained.pt")},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 2, "batch_size": 4, "steps_per_epoch": 3, "workers": 0, "patience": None, "log_every": 1},
        "augment": {"preset": "none", "parameters": {"saturate": {"p": 1.0}}},
        "cv": {"folds": 2, "val_fraction": 0.25, "final": "soup"},
        "eval": {"bootstrap": 50},
    }
    content["data"].update(spacing_mm=None, crop=False, prepare_workers=0)
    path = tmp_path / "counts.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_cross_validation_prediction_evaluation_final_model_and_report(config_path, tmp_path, capsys):
    crossval.run(kinds.load(config_path))
    run = tmp_path / "runs" / "counts"
    rows = files.read_numbers(run / "predictions.csv")
    numbers = {folder.name: int((folder / "number").read_text()) for folder in (tmp_path / "toys").iterdir()}
    assert {row["id"]: row["target"] for row in rows} == numbers, "counts stay counts"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["headline"] == "mae" and {"mae", "exact"} <= summary["metrics"].keys()
    assert summary["metrics"]["mae"]["pooled_low"] < summary["metrics"]["mae"]["pooled_high"]
    assert "MAE" in (run / "report.html").read_text() and "s03_1" in (run / "report.html").read_text()
    assert torch.load(run / "final" / "soup.pt", weights_only=True)["soup"] == [1, 2]

    write_toys(tmp_path / "new", 5, seed=1)
    for model, answers in ((run, "all"), (run / "final", "soup")):
        tool("predict", model, "--source", "toys", "--root", tmp_path / "new", "--output", tmp_path / answers)
        predicted = files.read_numbers(tmp_path / answers / "predictions.csv")
        assert len(predicted) == 5 and all(row["whole"] == round(row["prediction"]) for row in predicted)
    references = [
        {"id": row["id"], "target": (tmp_path / "new" / row["id"] / "number").read_text()} for row in predicted
    ]
    files.write_csv(tmp_path / "references.csv", references)
    tool("evaluate", "--predictions", tmp_path / "all", "--references", tmp_path / "references.csv")
    scored = json.loads((tmp_path / "all" / "evaluation.json").read_text())
    errors = [
        abs(row["prediction"] - float(reference["target"]))
        for row, reference in zip(files.read_numbers(tmp_path / "all" / "predictions.csv"), references)
    ]
    assert scored["metrics"]["mae"]["value"] == pytest.approx(np.mean(errors))
    assert {"ci_low", "ci_high"} <= scored["metrics"]["mae"].keys() and "exact" in scored["metrics"]


def test_one_case_is_predicted_to_one_file(config_path, tmp_path):
    crossval.run(kinds.load(config_path, ["cv.final=none"]))
    from fomo.prediction import single
    from fomo.runtime.log import Log

    members = members_of(tmp_path / "runs" / "counts")
    path = tmp_path / "count.txt"
    single.predict_to_file(
        members, {"t1": str(tmp_path / "toys" / "s00_1" / "t1.nii.gz")}, str(path), Log(active=False)
    )
    assert float(path.read_text()) >= 0


def test_what_there_is_to_choose_from_is_what_is_registered(config_path):
    for key, name in (("task.type", "count"), ("model.name", "tiny"), ("data.source", "toys")):
        assert name in kinds.choices()[key]
        assert name in next(line for line in kinds.describe_keys().splitlines() if line.startswith(f"  {key}="))
    with pytest.raises(UserError, match="did you mean 'count'"):
        kinds.load(config_path, ["task.type=counts"])
    with pytest.raises(UserError, match="data.patch: got .*wanted multiples of 4 .*halves each axis two times"):
        kinds.load(config_path, ["data.patch=[18,20,20]"])
    with pytest.raises(UserError, match="data.root: got none, wanted the folder of the toys"):
        kinds.load(config_path, ["data.root=none"])
    with pytest.raises(UserError, match="task.loss: got focal, wanted one of auto for task.type=count"):
        kinds.load(config_path, ["task.loss=focal"])
    with pytest.raises(UserError, match="task.type: got classification, wanted .*count.* for data.source=toys"):
        kinds.load(config_path, ["task.type=classification"])
    with pytest.raises(UserError, match="eval.saliency: got 3, wanted 0 for task.type=count"):
        kinds.load(config_path, ["eval.saliency=3"])
    assert kinds.unread(kinds.load(config_path, ["task.mask_ratio=0.5", "data.pattern=*x"])) == [
        "task.mask_ratio",
        "data.pattern",
    ]


def test_counts_of_a_table_are_not_classes(registered, tmp_path):
    """The texts 10, 30 and 0 of a column that is a number are no classes 1, 2 and 0."""
    write_toys(tmp_path / "toys", 3)
    names = sorted(folder.name for folder in (tmp_path / "toys").iterdir())
    lines = [f"{name},{name},toys/{name}/t1.nii.gz,{count}" for name, count in zip(names, (10, 30, 0))]
    (tmp_path / "table.csv").write_text("\n".join(["id,subject,t1,lesions", *lines]))
    (tmp_path / "config.yaml").write_text(
        "task: {type: count, targets: [lesions]}\nmodel: {name: tiny}\n"
        "data: {source: table, csv: table.csv, channels: [t1], patch: [20, 20, 20]}\n"
    )
    config = kinds.load(tmp_path / "config.yaml")
    cases = sources.list_cases(config.data, tasks.wanted(config))
    assert [case.target for case in cases] == [10, 30, 0] and all(not case.labels for case in cases)


@pytest.mark.parametrize(
    "lacking", ["losses", "reads", "columns", "select", "stratum_kind", "loss", "predict", "score", "infer", "answer"]
)
def test_what_a_task_does_not_declare_is_an_error_when_it_is_defined(lacking):
    declared = {name: getattr(task.Count, name) for name in vars(task.Count) if not name.startswith("__")}
    with pytest.raises(TypeError, match=f"Half: declares no {lacking}"):
        type("Half", (Task,), {name: value for name, value in declared.items() if name != lacking})


@pytest.mark.parametrize(
    "name, value, wanted",
    [
        ("mode", "regresion", "wanted one of .*regression"),
        ("reads", "numbers", "wanted one of .*number"),
        ("higher_is_better", "no", "wanted one of"),
        ("stratum_kind", "continuos", "wanted one of .*continuous"),
        ("losses", "poisson", "wanted a tuple of names"),
        ("columns", 1, r"wanted Columns\(least, most, text\)"),
        ("reads", "nothing", "wanted a kind of label, as it does not pretrain"),
        ("select", None, "wanted the name of a score"),
        ("view", None, "wanted a View"),
    ],
)
def test_what_a_task_declares_wrongly_is_an_error_when_it_is_defined(name, value, wanted):
    with pytest.raises(TypeError, match=f"Wrong.{name}: got .*{wanted}"):
        type("Wrong", (task.Count,), {name: value})
    with pytest.raises(ValueError, match="Wrong: got the keys .*task.nope"):
        type("Wrong", (task.Count,), {"options": ("task.nope",)})


@pytest.mark.parametrize(
    "name, value",
    [
        ("list", None),
        ("gives", ("numbers",)),
        ("gives", ()),
        ("needs", ()),
        ("needs", (("data.rot",), "the folder")),
        ("keys", ("data.nope",)),
        ("columns", True),
        ("geometry", False),
        ("geometry", "no"),
        ("prepare", lambda cases, *_: cases),
    ],
)
def test_what_a_source_declares_wrongly_is_an_error_at_once(name, value):
    with pytest.raises(ValueError, match="prepare: " if value is False else name):
        dataclasses.replace(source.TOYS, **{name: value})


def test_a_loss_that_is_not_one_number_per_sample_is_an_error(registered, config_path, monkeypatch):
    monkeypatch.setattr(task.Count, "loss", lambda self, outputs, batch: (outputs - batch["target"]).square())
    with pytest.raises(crossval.FoldsFailed, match=r"Count.loss: got shape \(4, 4\) for 4 samples"):
        crossval.run(kinds.load(config_path))


def test_a_choice_by_a_score_that_there_is_not_is_an_error(registered, config_path, monkeypatch):
    monkeypatch.setattr(task.Count, "select", "MAE")
    with pytest.raises(
        crossval.FoldsFailed, match="Count.select: got 'MAE', wanted one of its scores: loss, mae, exact"
    ):
        crossval.run(kinds.load(config_path))


def test_what_a_source_or_a_network_does_not_declare_is_an_error():
    with pytest.raises(TypeError, match="geometry"):
        sources.Source(list=source.list_toys, gives=("number",), needs=((), ""), keys=())
    with pytest.raises(TypeError, match="stride"):
        nets.Network(network.Tiny, sees="volume", modes=("regression",), head="head", one_voxel=True, mixes_batch=False)


@pytest.mark.parametrize(
    "listed", ["s0", Case("s0", 3, (Volume("a.npy"),)), Case("s0", "s0", ("a.npy",)), Case("s0", "s0", ())]
)
def test_what_a_source_lists_are_cases(registered, config_path, monkeypatch, listed):
    monkeypatch.setitem(sources.SOURCES, "toys", dataclasses.replace(source.TOYS, list=lambda *_: [listed]))
    config = kinds.load(config_path)
    with pytest.raises(TypeError, match="data.source=toys: listed .*wanted a Case"):
        sources.list_cases(config.data, tasks.wanted(config))


@pytest.mark.parametrize("found", [{"mae": (0, 1)}, {"nope": metrics.Interval(0, 1, 2, 0)}])
def test_intervals_are_of_the_scores(registered, config_path, monkeypatch, found):
    monkeypatch.setattr(task.Count, "intervals", lambda *_: found)
    with pytest.raises(TypeError, match="Count.intervals: got .*mae, exact"):
        crossval.run(kinds.load(config_path))


def test_a_table_of_a_task_does_not_replace_one_of_the_run(registered, config_path, monkeypatch):
    monkeypatch.setattr(task.Count, "tables", lambda *_: {"predictions": [{"a": 1}]})
    with pytest.raises(crossval.FoldsFailed, match="tables: got predictions.csv, wanted names that no other table"):
        crossval.run(kinds.load(config_path))


def test_a_soup_of_states_that_nobody_merges_is_refused(registered, config_path, monkeypatch, tmp_path):
    def fit(self, train, val):
        self.state["offset"] = sum(case.target for case in train)
        return ()

    monkeypatch.setattr(task.Count, "fit", fit)
    with pytest.raises(UserError, match="soup: the folds have learned other values of 'offset', and Count.merge"):
        crossval.run(kinds.load(config_path))
    monkeypatch.setattr(task.Count, "training_state", ("offset",))
    crossval.run(kinds.load(config_path))
    first, soup = (
        torch.load(tmp_path / "runs" / "counts" / name, weights_only=True)["task"]
        for name in ("fold_1/best.pt", "final/soup.pt")
    )
    assert soup == first
