"""Multi-label slices: pooling to scans, weights, thresholds, scores against scikit-learn, batches, a whole run."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fomo import kinds, metrics, tasks
from fomo.config import UserError
from fomo.data.cases import Case, Prepared
from fomo.inference import WindowOptions
from fomo.tasks import Answer, Multilabel, Results, pooling
from fomo.training import evaluate

LABELS = ["Lung nodule", "Emphysema", "Rare"]
KEYS = ["Lung_nodule", "Emphysema", "Rare"]


@pytest.fixture
def build(tiny_config):
    def build(**sections):
        sections["task"] = {"targets": LABELS, **sections.get("task", {})}
        sections["data"] = {
            "source": "table",
            "csv": "t.csv",
            "channels": ["ct"],
            "patch": [64, 64, 1],
            "spacing_mm": None,
        }
        sections["model"] = {"name": "resnet50"}
        path = tiny_config("multilabel", **sections)
        return tasks.build(kinds.load(path))

    return build


def labelled(*targets, scan=None):
    return [SimpleNamespace(id=f"c{i}", subject=f"s{i}", target=t, scan=scan) for i, t in enumerate(targets)]


def make_rows(task, scans=12, slices=4, seed=0, noise=1.0):
    """Slices of scans, as `finish` gets them; every third scan shares its subject with the one before."""
    rng = np.random.default_rng(seed)
    rows = []
    for scan in range(scans):
        target = [int(scan % 2), int(scan % 3 == 0), 0]
        for place in range(slices):
            p = 1 / (1 + np.exp(-(np.array(target) * 2 - 1 + noise * rng.normal(size=3))))
            row = {
                "id": f"v{scan}_{place}",
                "subject": f"s{scan // 2 if scan % 3 == 2 else scan}",
                "scan": f"v{scan}",
                "loss": 0.5,
            }
            row.update(
                {f"target_{k}": t for k, t in zip(KEYS, target)},
                **{f"probability_{k}": v for k, v in zip(KEYS, p.tolist())},
            )
            rows.append(row)
    return rows


def finish(task, rows):
    return task.finish([Answer(row) for row in rows])


def test_pooling_by_hand():
    p = np.array([[0.1, 0.9], [0.5, 0.2], [0.3, 0.3], [0.8, 0.0]])
    scan = [1, 0, 1, 1]  # the second row is the first scan's only slice
    assert pooling.pool(p, scan, "max").tolist() == [[0.5, 0.2], [0.8, 0.9]]
    np.testing.assert_allclose(pooling.pool(p, scan, "mean"), [[0.5, 0.2], [0.4, 0.4]])
    np.testing.assert_allclose(pooling.pool(p, scan, "topk", 2), [[0.5, 0.2], [0.55, 0.6]])
    np.testing.assert_allclose(pooling.pool(p, scan, "noisy_or"), [[0.5, 0.2], [1 - 0.9 * 0.7 * 0.2, 1 - 0.1 * 0.7]])
    with pytest.raises(ValueError, match="kind: got 'median'"):
        pooling.pool(p, scan, "median")


def test_positive_weights_are_negatives_over_positives_and_set_the_focal_alpha(build):
    cases = labelled((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 1.0, 0.0))
    task = build(task={"class_weights": "inverse_frequency"})
    messages = task.fit(cases, cases)
    assert task.state["pos_weight"] == [3, 1, 1]  # a label without positives has nothing to weigh
    assert messages == [
        "labels that none or all of the 4 training cases have: Rare (0): not learned, and their positives not weighed"
    ]
    batch = {"target": torch.tensor([[1.0, 0.0, 0.0]])}
    assert task.loss(torch.zeros(1, 3), batch).item() == pytest.approx(math.log(2) * (3 + 1 + 1) / 3)
    focal = build(task={"class_weights": "inverse_frequency", "loss": "focal", "focal_gamma": 1.0})
    focal.fit(cases, cases)
    assert focal.loss(torch.zeros(1, 3), batch).item() == pytest.approx(math.log(2) * 0.5 * (0.75 + 0.5 + 0.5) / 3)


@pytest.mark.parametrize("part", ["training", "validation"])
def test_labels_that_all_or_no_cases_have_are_said_and_refused_where_there_are_no_others(build, part):
    task, cases = build(task={"class_weights": "inverse_frequency"}), labelled((1.0, 0.0, 1.0), (1.0, 1.0, 0.0))
    assert task.fit(cases, cases) == [
        "labels that none or all of the 2 training cases have: Lung nodule (2): "
        "not learned, and their positives not weighed"
    ]
    assert task.state["pos_weight"] == [1, 1, 1]
    alike = labelled((1.0, 0.0, 1.0), (1.0, 0.0, 1.0))
    with pytest.raises(UserError, match=f"{part} cases: got 2 that are alike in each of task.targets"):
        task.fit(*((alike, cases) if part == "training" else (cases, alike)))


def test_losses_follow_their_keys_and_smoothing_is_for_training_only(build):
    batch, logits = {"target": torch.tensor([[1.0, 0.0, 0.0]])}, torch.tensor([[0.0, 0.0, -9.0]])
    half = math.log(2) / 2
    task = build(task={"loss": "focal", "focal_alpha": 0.85, "focal_gamma": 1.0})
    assert task.loss(logits, batch).item() == pytest.approx((0.85 + 0.15) * half / 3, rel=1e-4)
    task = build(task={"loss": "asymmetric", "gamma_neg": 1.0, "gamma_pos": 0.0, "clip": 0.5})
    assert task.loss(logits, batch).item() == pytest.approx(
        math.log(2) / 3, rel=1e-4
    )  # negatives below the clip are free
    task = build(task={"label_smoothing": 0.2})
    plain = build()._loss(logits, batch["target"])
    assert task.loss(logits, batch) > plain and task._loss(logits, batch["target"]).item() == pytest.approx(
        plain.item()
    )


def test_scores_equal_scikit_learn_at_both_levels_and_undefined_labels_are_counted(build):
    sklearn = pytest.importorskip("sklearn.metrics")
    task = build(eval={"pool_slices": "max", "threshold": "half"})
    results = finish(task, make_rows(task))
    rows, volumes, _ = results
    scores = task.score(results)
    assert len(volumes) == 12 and [row["id"] for row in volumes] == sorted({row["scan"] for row in rows})
    for level, part in (("volume", volumes), ("slice", rows)):
        y = np.array([[row[f"target_{k}"] for k in KEYS] for row in part])
        p = np.array([[row[f"probability_{k}"] for k in KEYS] for row in part])
        d = p >= 0.5
        assert scores[f"{level}_auroc_macro"] == pytest.approx(
            sklearn.roc_auc_score(y[:, :2], p[:, :2], average="macro")
        )
        assert scores[f"{level}_auroc_micro"] == pytest.approx(sklearn.roc_auc_score(y, p, average="micro"))
        assert scores[f"{level}_ap_macro"] == pytest.approx(
            sklearn.average_precision_score(y[:, :2], p[:, :2], average="macro")
        )
        assert scores[f"{level}_ap_micro"] == pytest.approx(sklearn.average_precision_score(y, p, average="micro"))
        assert scores[f"{level}_f1_micro"] == pytest.approx(sklearn.f1_score(y, d, average="micro"))
        f1 = [sklearn.f1_score(y[:, k], d[:, k], zero_division=np.nan) for k in range(3)]
        assert scores[f"{level}_f1_macro"] == pytest.approx(np.nanmean(f1))
        assert scores[f"{level}_hamming"] == pytest.approx(sklearn.hamming_loss(y, d))
        assert scores[f"{level}_exact_match"] == pytest.approx(sklearn.accuracy_score(y, d))
        assert scores[f"{level}_brier"] == pytest.approx(np.mean((y - p) ** 2))
        assert scores[f"{level}_labels_undefined"] == 1
    of_first = next(row for row in volumes if row["id"] == "v1")
    assert of_first["probability_Lung_nodule"] == max(
        row["probability_Lung_nodule"] for row in rows if row["scan"] == "v1"
    )


def test_pooling_and_thresholds_are_chosen_on_validation_and_a_label_without_positives_takes_the_common_one(build):
    task = build(eval={"threshold": "f1"})
    rows = make_rows(task, noise=2.0)
    for row in rows:  # only one slice of a scan tells: the maximum is the pooling that sees it
        told = row["id"].endswith("_0")
        row["probability_Lung_nodule"] = (
            0.9 if told and row["target_Lung_nodule"] else 0.3 if told else 0.5 - 0.1 * row["target_Lung_nodule"]
        )
    [message] = task.calibrate(lambda: Results(rows))
    said = "labels that none or all of the 48 validation cases have: Rare (0): not seen when the epoch was chosen"
    assert message.startswith(f"{said}; they take")
    half = build(eval={"threshold": "half"}).calibrate(lambda: Results(rows))
    assert len(half) == 1 and half[0].endswith("chosen")
    for row in rows:
        row["target_Rare"] = row["target_Emphysema"]
    assert build().calibrate(lambda: Results(rows)) == ()
    for row in rows:
        row["target_Rare"] = 0
    assert task.state["pooling"] == "max"
    levels = task.state["thresholds"]
    assert (
        levels["volume"]["each"][0] == pytest.approx(0.7) and levels["slice"]["each"][0] != levels["volume"]["each"][0]
    )
    assert levels["volume"]["each"][2] == levels["volume"]["all"] and not math.isnan(levels["volume"]["all"])
    finished = finish(task, rows)
    scores = task.score(finished)
    assert {"volume_f1_macro", "volume_f1_macro_common", "volume_f1_macro_half", "slice_exact_match_half"} <= set(
        scores
    )
    assert scores["volume_f1_macro"] >= scores["volume_f1_macro_half"]
    from_files = [{name: value for name, value in row.items() if name != "threshold"} for row in finished.scans]
    left = task.score(Results(from_files))
    assert left and left == pytest.approx({name: scores[name] for name in left}, nan_ok=True)
    assert {name for name in scores if name.startswith("volume_") and "common" not in name} == set(left)
    labels = task.tables(finished)["labels"]
    assert [row["label"] for row in labels] == LABELS and labels[0]["threshold"] == pytest.approx(0.7)
    assert labels[0]["n"] == 12 and labels[0]["positives"] == 6 and labels[1]["prevalence"] == pytest.approx(4 / 12)
    assert labels[0]["auroc"] == 1 and math.isnan(labels[2]["auroc"]) and labels[0]["recall"] == 1


def test_what_is_pooled_over_folds_uses_each_folds_own_pooling(build):
    """A task without state, as the pooled tables are made with, scores the stored rows of the scans."""
    task = build(eval={"pool_slices": "noisy_or", "threshold": "half"})
    results, fresh = finish(task, make_rows(task, noise=3.0)), build(eval={"pool_slices": "auto"})
    assert fresh.score(results) == pytest.approx(task.score(results), nan_ok=True)
    own = finish(fresh, results.rows)
    assert fresh.score(own)["volume_auroc_macro"] != fresh.score(results)["volume_auroc_macro"]
    assert "threshold" not in fresh.tables(results)["labels"][0]


def test_a_soup_has_the_mean_thresholds_and_the_pooling_of_most_folds():
    def state(pooling, threshold):
        return {"pooling": pooling, "thresholds": {"volume": {"all": threshold, "each": [threshold, 0.5]}}}

    fitted = Multilabel.merge([state("max", 0.2), state("mean", 0.4), state("mean", 0.6)])
    assert fitted["pooling"] == "mean" and fitted["thresholds"]["volume"] == {
        "all": pytest.approx(0.4),
        "each": pytest.approx([0.4, 0.5]),
    }


def test_slices_whose_scans_are_not_there_are_an_error(build):
    """As where predictions_volumes.csv of a fold is gone: slices are no scans."""
    task = build()
    results = finish(task, make_rows(task))
    for scans in ([], results.scans[1:]):
        for score in (task.score, lambda results: task.intervals(results, 50, 0), task.tables):
            with pytest.raises(UserError, match="got its slices only, wanted its line in predictions_volumes.csv"):
                score(results._replace(scans=scans))


def test_volumes_without_scans_are_their_own_level(build):
    task = build()
    rows = [{**row, "scan": ""} for row in make_rows(task)]  # as a table gives None back
    task.calibrate(lambda: Results(rows))
    results = finish(task, rows)
    scores = task.score(results)
    assert results.scans == [] and not any(name.startswith("slice_") for name in scores)
    assert set(task.state["thresholds"]) == {"volume"}
    assert set(task.intervals(results, 50, 0)) == {"volume_auroc_macro"}


def test_the_macro_interval_equals_one_resample_after_the_other():
    rng = np.random.default_rng(0)
    labels = (rng.random((80, 4)) < [0.5, 0.3, 0.2, 0.0]).astype(float)
    scores, groups = labels * 0.8 + rng.normal(size=(80, 4)), rng.integers(0, 50, 80)
    options = dict(resamples=200, seed=1, groups=groups, stratify=False)
    fast = metrics.bootstrap_ci(metrics.macro_auroc, labels, scores, **options)
    slow = metrics.bootstrap_ci(lambda y, s: metrics.macro_auroc(y, s), labels, scores, **options)
    assert fast == pytest.approx(slow)
    assert fast.value == pytest.approx(np.mean([metrics.auroc(labels[:, k], scores[:, k]) for k in range(3)]))


class Stored(Prepared):
    """A cached slice in memory."""

    def __init__(self, i, array, target, scan):
        self.case = Case(f"c{i:02d}", f"s{i % 5}", (), None, target, None, scan=scan)
        self.array, self.shape, self.background = array, array.shape[1:], (0.0,) * len(array)

    def image(self):
        return self.array


def small_network(seed=0):
    torch.manual_seed(seed)
    layers = (
        torch.nn.Conv3d(1, 4, (3, 3, 1)),
        torch.nn.BatchNorm3d(4),
        torch.nn.AdaptiveAvgPool3d(1),
        torch.nn.Flatten(),
    )
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, 3))


def stored_cases(count=11, size=(60, 64, 1)):
    rng = np.random.default_rng(0)
    return [
        Stored(
            i, rng.normal(size=(1, *size)).astype(np.float32), tuple(map(float, rng.integers(0, 2, 3))), f"v{i // 3}"
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_give_the_rows_of_one_case_after_the_other_in_any_order(build, workers):
    task = build(train={"batch_size": 4, "workers": workers})
    if workers:
        task.config.train.__dict__["workers"] = workers
    network, cases = small_network().eval(), stored_cases(17 if workers else 11)  # smaller than the patch: padded
    assert evaluate.can_batch(task.config, task, network, cases)
    results = evaluate.evaluate(task.config, task, network, cases)
    again = evaluate.evaluate(task.config, task, network, cases[::-1])
    assert results == again  # to the bit
    windows = WindowOptions(task.config.data.patch, device=torch.device("cpu"))
    singles = task.finish([task.predict(network, case, windows) for case in cases])
    for row, single in zip(results.rows, singles.rows, strict=True):
        assert list(row) == list(single)
        assert all(
            row[name] == pytest.approx(single[name], abs=1e-6) if name[0] in "lp" else row[name] == single[name]
            for name in row
        )


def test_a_new_case_gets_the_probabilities_of_its_evaluation_and_an_ensemble_their_mean(build):
    task, other, network, case = (
        build(),
        build(),
        small_network().eval(),
        stored_cases(1, size=(100, 64, 1))[0],
    )  # several windows
    task.state["thresholds"] = {"volume": {"all": 0.5, "each": [0.0, 1.0, 0.0]}}
    other.state["thresholds"] = {"volume": {"all": 0.5, "each": [0.0, 1.0, 1.0]}}
    windows = WindowOptions((64, 64, 1), device=torch.device("cpu"))
    row, part = task.predict(network, case, windows).row, task.infer(network, case.image(), case.background, windows)
    answer, volumes = task.answer([task], [part], None)
    assert volumes == {} and [answer[f"probability_{k}"] for k in KEYS] == [row[f"probability_{k}"] for k in KEYS]
    answer, _ = task.answer([task, other], [part, np.array([1.0, 1.0, 0.0])], None)
    assert [answer[f"probability_{k}"] for k in KEYS] == pytest.approx((part + [1, 1, 0]) / 2)
    assert [answer[f"decision_{k}"] for k in KEYS] == [1, 0, int((part[2] / 2) >= 0.5)]


def test_cases_of_several_windows_and_networks_that_mix_a_batch_are_not_batched(build):
    task, network = build(), small_network()
    assert not evaluate.can_batch(task.config, task, network, stored_cases(size=(80, 64, 1)))
    network[1] = torch.nn.BatchNorm3d(4, track_running_stats=False)
    assert not evaluate.can_batch(task.config, task, network, stored_cases())
