"""Classification of several targets: classes by name, a softmax each, weights, scores against scikit-learn, a run."""

import numpy as np
import pytest
import torch
from conftest import run_command

from fomo import checkpoint, kinds, tasks
from fomo.config import UserError
from fomo.data.cases import Case, Prepared
from fomo.evaluation import evaluate
from fomo.inference import WindowOptions
from fomo.metrics import auroc, within_folds
from fomo.runs import splits
from fomo.runtime import files
from fomo.tasks import Results
from fomo.tasks.classification import Classification
from fomo.tasks.multitarget import MeanOverTargets, Multitarget
from fomo.training.evaluate import evaluate as evaluate_cases


@pytest.fixture
def load(tiny_config):
    def load(**sections):
        task = {"targets": ["cohort", "gender"], **sections.pop("task", {})}
        data = {"channels": ["t1"], "phantom_layout": "table"}
        return kinds.load(tiny_config("classification", task=task, data=data, **sections))

    return load


def case(target, labels, name="a"):
    return Case(name, name, (), None, target, None, labels=labels)


CASES = [
    case((0.0, 1.0), ("core", "m"), "a"),
    case((1.0, 0.0), ("pair", "f"), "b"),
    case((2.0, 1.0), ("ring", "m"), "c"),
    case((2.0, 1.0), ("ring", "m"), "d"),
]


class Stored(Prepared):
    shape, background = (32, 32, 32), (0.0,)

    def __init__(self, case, image):
        self.case, self.image = case, lambda: image


def rows_of(task, outputs, cases):
    return [answer.row for answer in task.predict_batch(outputs, cases)]


def inspected(load, **sections):
    task = tasks.build(load(**sections))
    task.inspect(CASES)
    task.fit(CASES, CASES)
    return task


def test_which_classification_a_config_is(load):
    assert isinstance(tasks.build(load()), Multitarget)
    assert isinstance(tasks.build(load(task={"targets": ["cohort"], "classes": 3})), Multitarget)
    assert isinstance(tasks.build(load(task={"targets": ["gender"]})), Classification)
    with pytest.raises(UserError, match="task.classes: got 3"):
        load(task={"classes": 3})
    with pytest.raises(UserError, match="train.balanced"):
        load(train={"balanced": True})


def test_folds_have_equal_shares_of_the_classes_of_all_targets(load):
    config = load(task={"targets": ["sex", "stage"]}, cv={"folds": 4, "val_fraction": 0.25})
    rows = [
        (sex, stage) for sex in (0, 1) for stage in (0, 1, 2) for _ in range(8)
    ]  # sorted: the first target says nothing of the second
    cases = [case(row, ("mf"[row[0]], "I" * (row[1] + 1)), f"c{i:02}") for i, row in enumerate(rows)]
    for split in splits.make_splits(config, tasks.build(config), cases):
        for part, each in (("test", 2), ("val", 1.5), ("train", 4.5)):
            targets = np.array([rows[int(name[1:])] for name in split[part]])
            assert np.bincount(targets[:, 0]) == pytest.approx(3 * each, abs=1)
            assert np.bincount(targets[:, 1]) == pytest.approx(2 * each, abs=1)


def test_a_class_that_a_part_lacks_is_said_and_one_class_of_each_target_is_refused(load):
    task = tasks.build(load(task={"class_weights": "inverse_frequency"}))
    task.inspect(CASES)
    assert task.fit(CASES[1:], CASES) == [
        "cohort: no training case of class core: not learned, and of weight 1 in the loss"
    ]
    assert task.state["class_weights"] == [[1.0, 1.5, 0.75], [1.5, 0.75]]
    assert task.fit(CASES, CASES[:2]) == ["cohort: no validation case of class ring: not seen when the epoch is chosen"]
    for part, given in (("training", (CASES[2:], CASES)), ("validation", (CASES, CASES[2:]))):
        with pytest.raises(UserError, match=f"{part} cases: got 2 of one class of each of task.targets"):
            task.fit(*given)


def test_the_loss_of_a_validation_case_is_that_of_training(load):
    task = inspected(load, task={"loss": "focal", "class_weights": "inverse_frequency"})
    outputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    batch = {"target": torch.tensor([case.target for case in CASES])}
    found = [row["loss"] for row in rows_of(task, outputs, CASES)]
    assert found == pytest.approx(task.loss(outputs, batch).tolist(), rel=1e-5)


def test_smoothed_labels_are_shared_out_among_each_targets_own_classes(load):
    task = inspected(load, task={"label_smoothing": 0.3})
    outputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([case.target for case in CASES]).long()
    loss = torch.nn.CrossEntropyLoss(reduction="none", label_smoothing=0.3)
    wanted = (loss(outputs[:, :3], targets[:, 0]) + loss(outputs[:, 3:], targets[:, 1])) / 2
    torch.testing.assert_close(task.loss(outputs, {"target": targets}), wanted)
    assert not torch.allclose(task._mean_loss(outputs, targets), wanted)


def test_classes_are_named_in_the_order_of_their_numbers_and_make_one_output_each(load):
    task = inspected(load)
    assert task.state["classes"] == [["core", "pair", "ring"], ["f", "m"]] and task.out_channels == 5
    network = tasks.build_network(task.config, task)
    assert network.decoder.fc.weight.shape[0] == 5
    with pytest.raises(UserError, match="target cohort: got the classes core"):
        tasks.build(load()).inspect(CASES[:1])
    with pytest.raises(UserError, match="wanted task.classes=3"):
        tasks.build(load(task={"targets": ["cohort"], "classes": 3})).inspect([case(3.0, ("x",)), case(1.0, ("y",))])
    with pytest.raises(UserError, match="got 3 classes or more"):
        tasks.build(load(task={"targets": ["cohort"]})).inspect([case(2.0, ("ring",)), case(0.0, ("core",))])


def test_weights_and_loss_of_each_target_by_hand(load):
    task = inspected(load, task={"class_weights": "inverse_frequency"})
    assert task.state["class_weights"] == [pytest.approx([4 / 3, 4 / 3, 2 / 3]), pytest.approx([2.0, 2 / 3])]
    loss = task.loss(torch.zeros(2, 5), {"target": torch.tensor([[2.0, 0.0], [0.0, 1.0]])})
    log2, log3 = np.log([2, 3])
    assert loss.tolist() == pytest.approx([(2 / 3 * log3 + 2 * log2) / 2, (4 / 3 * log3 + 2 / 3 * log2) / 2])


def test_a_target_is_recognised_by_its_name_in_another_table(load):
    task = inspected(load)
    other = case((0.0, 0.0), ("ring", "m"))  # a table without the other classes counts from 0
    [row] = rows_of(task, torch.tensor([[0.0, 0.0, 2.0, 1.0, 0.0]]), [other])
    assert (row["target_cohort"], row["decision_cohort"], row["target_gender"], row["decision_gender"]) == (2, 2, 1, 0)
    assert row["probability_cohort_ring"] == pytest.approx(np.exp(2) / (np.exp(2) + 2))
    with pytest.raises(UserError, match="case a: target gender: got the class 'x', wanted one of f, m"):
        task.predict_batch(torch.zeros(1, 5), [case((0.0, 0.0), ("ring", "x"))])


def test_scores_equal_scikit_learn_and_are_read_from_a_table(load, tmp_path):
    sklearn = pytest.importorskip("sklearn.metrics")
    task, rng = inspected(load), np.random.default_rng(0)
    classes = rng.integers([3, 2], size=(60, 2))
    cases = [
        case((float(a), float(b)), (("core", "pair", "ring")[a], "fm"[b]), f"c{i:02d}")
        for i, (a, b) in enumerate(classes)
    ]
    logits = torch.tensor(
        rng.normal(size=(60, 5)) + np.hstack([np.eye(3)[classes[:, 0]], np.eye(2)[classes[:, 1]]])
    ).float()
    rows = rows_of(task, logits, cases)
    scores = task.score(Results(rows))
    p = logits[:, :3].softmax(1).double().numpy()
    p /= p.sum(1, keepdims=True)
    assert scores["cohort_auroc"] == pytest.approx(sklearn.roc_auc_score(classes[:, 0], p, multi_class="ovr"), abs=1e-6)
    assert scores["cohort_auroc_ring"] == pytest.approx(sklearn.roc_auc_score(classes[:, 0] == 2, p[:, 2]), abs=1e-6)
    assert scores["cohort_balanced_accuracy"] == pytest.approx(
        sklearn.balanced_accuracy_score(classes[:, 0], p.argmax(1))
    )
    assert scores["auroc_macro"] == pytest.approx((scores["cohort_auroc"] + scores["gender_auroc"]) / 2)
    confusion = {(r["target"], r["class"], r["decided"]): r["cases"] for r in task.tables(Results(rows))["confusion"]}
    assert confusion["gender", "m", "f"] == np.sum((classes[:, 1] == 1) & (logits[:, 3] > logits[:, 4]).numpy())
    files.write_csv(str(tmp_path / "rows.csv"), rows)
    again = [
        {k: v if k in ("id", "subject") else float(v) for k, v in row.items()}
        for row in files.read_csv(tmp_path / "rows.csv")
    ]
    fresh = tasks.build(task.config)
    assert fresh.score(Results(again)) == pytest.approx(scores)
    intervals = fresh.intervals(Results(again), 100, 0)
    assert set(intervals) <= set(scores)
    for name, interval in intervals.items():
        assert interval.value == pytest.approx(scores[name]) and interval.low < scores[name] < interval.high, name


def test_batches_equal_single_cases_and_members_are_averaged(load):
    task = inspected(load)
    torch.manual_seed(0)
    network = tasks.build_network(task.config, task).eval()
    rng = np.random.default_rng(0)
    cases = []
    for listed in CASES:
        image = rng.normal(size=(1, 32, 32, 32)).astype(np.float32)
        cases.append(Stored(listed, image))
    rows = evaluate_cases(task.config, task, network, cases).rows
    windows = WindowOptions((32, 32, 32), device=torch.device("cpu"))
    for row, stored in zip(rows, cases):
        single = task.predict(network, stored, windows).row
        assert list(row) == list(single)
        assert [row[k] for k in row if k != "subject" and k != "id"] == pytest.approx(
            [single[k] for k in row if k not in ("subject", "id")], abs=1e-6
        )
    parts = [task.infer(network, cases[0].image(), (0.0,), windows), torch.tensor([[1.0, 0, 0, 0, 1]])]
    answer, _ = task.answer([task, task], parts, None)
    assert answer["probability_cohort_core"] == pytest.approx((rows[0]["probability_cohort_core"] + 1) / 2, abs=1e-6)
    assert answer["decision_cohort"] == 0


def test_a_run_of_two_folds_writes_rows_tables_and_a_checkpoint_that_predicts(load, tmp_path):
    path = tmp_path / "config.yaml"
    load(cv={"folds": 2, "val_fraction": 0.4})
    done = run_command("cv.py", path, "data.phantom_cases=24", "train.epochs=1", "train.steps_per_epoch=1")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "run"
    rows = files.read_csv(run / "predictions.csv")
    assert len(rows) == 24 and list(rows[0])[:4] == ["id", "subject", "fold", "loss"]
    assert {"target_cohort", "decision_gender", "probability_cohort_dark"} <= set(rows[0])
    summary = files.read_json(run / "summary.json")
    assert summary["headline"] == "auroc_macro" and "pooled_low" in summary["metrics"]["auroc_macro"]
    within = summary["metrics"]["auroc_macro_within"]
    assert 0 <= within["pooled_low"] <= within["pooled"] <= within["pooled_high"] <= 1
    confusion = files.read_csv(run / "confusion.csv")
    assert sum(int(row["cases"]) for row in confusion) == 48
    state = checkpoint.load(run / "fold_1" / "best.pt")["task"]
    assert state["classes"] == [["both", "bright", "dark"], ["f", "m"]]
    # tools/evaluate.py finds the same figures, from a table that calls the classes by their names
    path = write_references(tmp_path / "t.csv", rows, state["classes"])
    done = run_command(
        "tools/evaluate.py",
        "--predictions",
        run,
        "--references",
        path,
        "--output",
        tmp_path / "scores",
        "--bootstrap",
        50,
    )
    assert done.returncode == 0, done.stderr
    scores = files.read_json(tmp_path / "scores" / "evaluation.json")
    assert scores["kind"] == "multitarget" and scores["cases"] == 24
    for name, values in scores["metrics"].items():
        pooled = summary["metrics"][name]
        assert values["value"] == pytest.approx(pooled["pooled"], nan_ok=True), name
        if "ci_low" in values:
            assert (values["ci_low"], values["ci_high"]) == pytest.approx(
                (pooled["pooled_low"], pooled["pooled_high"]), nan_ok=True
            )


def write_references(path, rows, classes, **others):
    """A table of the true classes' names of the two targets, with `others` {column: function of a row}."""
    wanted = {
        "cohort": lambda row: classes[0][int(row["target_cohort"])],
        "gender": lambda row: classes[1][int(row["target_gender"])],
    }
    columns = {"id": lambda row: row["id"], **wanted, **others}
    files.write_csv(str(path), [{name: of(row) for name, of in columns.items()} for row in rows])
    return str(path)


def test_evaluation_of_a_table_of_several_targets(load, tmp_path):
    task, rng = inspected(load), np.random.default_rng(0)
    cases = [
        case((float(a), float(b)), (("core", "pair", "ring")[a], "fm"[b]), f"c{i:02d}")
        for i, (a, b) in enumerate(rng.integers([3, 2], size=(30, 2)))
    ]
    rows = rows_of(task, torch.tensor(rng.normal(size=(30, 5))).float(), cases)
    for place, row in enumerate(rows):
        row["subject"] = f"s{place // 2}"
    found = [{name: value for name, value in row.items() if not name.startswith(("target", "loss"))} for row in rows]
    files.write_csv(str(tmp_path / "p.csv"), found)
    classes = task.state["classes"]
    references = write_references(tmp_path / "t.csv", rows, classes)
    kind, scored_rows, summary = evaluate.evaluate(str(tmp_path / "p.csv"), references, resamples=50)
    wanted, intervals = task.score(Results(rows)), task.intervals(Results(rows), 50, 0)
    assert kind == "multitarget" and {name: values["value"] for name, values in summary.items()} == pytest.approx(
        wanted
    )
    assert summary["cohort_accuracy"]["ci_low"] == intervals["cohort_accuracy"].low
    assert [row["target_cohort"] for row in scored_rows] == [
        row["target_cohort"] for row in sorted(rows, key=lambda row: row["id"])
    ]
    # of one target the column may be named; of several not
    one = [{name: value for name, value in row.items() if "gender" not in name} for row in found]
    files.write_csv(str(tmp_path / "one.csv"), one)
    renamed = write_references(
        tmp_path / "u.csv", rows, classes, truth=lambda row: classes[0][int(row["target_cohort"])]
    )
    found_one = evaluate.evaluate(str(tmp_path / "one.csv"), renamed, resamples=0, columns=evaluate.Columns("truth"))[2]
    assert found_one["cohort_auroc"]["value"] == pytest.approx(wanted["cohort_auroc"])
    for predictions, columns, said in (
        (
            "p.csv",
            evaluate.Columns("cohort"),
            "--column: got cohort, wanted a column of .* for the one target of .*: cohort, gender",
        ),
        ("one.csv", evaluate.Columns("nothing"), "--column: got nothing, wanted a column"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate.evaluate(str(tmp_path / predictions), renamed, resamples=0, columns=columns)
    write_references(references, rows, [["core", "pair", "other"], ["f", "m"]])
    with pytest.raises(
        UserError, match="t.csv: case c..: cohort: got 'other', wanted one of the classes core, pair, ring"
    ):
        evaluate.evaluate(str(tmp_path / "p.csv"), references, resamples=0)
    files.write_csv(references, [{"id": row["id"], "cohort": "core"} for row in rows])
    with pytest.raises(UserError, match="t.csv: got the columns id, cohort, and none for gender of .*p.csv"):
        evaluate.evaluate(str(tmp_path / "p.csv"), references, resamples=0)
    files.write_csv(str(tmp_path / "p.csv"), [{**row, "probability_gender_f": 0.9} for row in found])
    with pytest.raises(UserError, match="p.csv: probabilities: got .*"):
        evaluate.evaluate(str(tmp_path / "p.csv"), write_references(references, rows, classes), resamples=0)
    files.write_csv(str(tmp_path / "p.csv"), [{**row, "decision_gender": 2} for row in found])
    with pytest.raises(
        UserError, match="p.csv: case c00: decision_gender: got 2, wanted the number of a class, below 2"
    ):
        evaluate.evaluate(str(tmp_path / "p.csv"), write_references(references, rows, classes), resamples=0)


def test_the_mean_over_targets_within_folds_is_that_of_each_target():
    rng = np.random.default_rng(0)
    folds, labels = np.repeat([0, 1], 20), rng.integers(0, 2, (40, 2))
    scores = rng.random((40, 2)) + 3 * folds[:, None]  # each fold has a scale of its own
    one_hot = np.hstack([np.eye(2)[column] for column in labels.T])
    both = np.stack([-scores, scores], axis=2).reshape(40, 4)
    each = [within_folds(auroc, labels[:, t], scores[:, t], folds) for t in (0, 1)]
    assert MeanOverTargets(np.array([2]), True)(np.column_stack([folds, one_hot]), both) == pytest.approx(np.mean(each))
    pooled = [auroc(labels[:, t], scores[:, t]) for t in (0, 1)]
    assert MeanOverTargets(np.array([2]))(one_hot, both) == pytest.approx(np.mean(pooled))
