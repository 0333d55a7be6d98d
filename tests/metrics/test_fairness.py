"""Metrics of groups against scikit-learn, brute force, and what was planted."""

import itertools

import numpy as np
import pytest

from fomo import metrics
from fomo.metrics import fairness


def answers(n=400, classes=3, strength=1.5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + strength * np.eye(classes)[labels]
    return np.eye(classes, dtype=int)[labels], np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rng


def test_macro_f1_and_auroc_are_scikit_learns():
    sklearn = pytest.importorskip("sklearn.metrics")
    for classes, seed in ((2, 0), (3, 1), (5, 2)):
        labels, scores, _ = answers(classes=classes, seed=seed)
        truth, said = labels.argmax(1), scores.argmax(1)
        assert fairness.macro_f1(labels, scores) == pytest.approx(sklearn.f1_score(truth, said, average="macro"))
        wanted = sklearn.roc_auc_score(truth, scores if classes > 2 else scores[:, 1], multi_class="ovr")
        assert metrics.macro_auroc(labels, scores) == pytest.approx(wanted)
    labels, scores, _ = answers(30, 4, seed=3)
    kept = labels[:, 3] == 0  # a class that nobody has, but that some are taken for
    wanted = sklearn.f1_score(labels[kept].argmax(1), scores[kept].argmax(1), average="macro")
    assert fairness.macro_f1(labels[kept], scores[kept]) == pytest.approx(wanted)


def test_weights_are_how_often_a_case_is_there():
    labels, scores, rng = answers(60)
    weights = rng.integers(0, 4, (5, 60)).astype(float)
    again = [np.repeat(np.arange(60), row.astype(int)) for row in weights]
    for metric in fairness.METRICS.values():
        found = metrics.intervals.evaluator(metric, (labels, scores))(weights)
        np.testing.assert_allclose(found, [metric(labels[index], scores[index]) for index in again])


def test_bins_include_their_upper_ends():
    found = fairness.bins([10, 25, 25.5, 50, 75, 76, np.nan], [25, 50, 75])
    assert found.names == ("<=25", "25-50", "50-75", ">75")
    assert found.codes.tolist() == [0, 0, 1, 1, 2, 3, -1]
    assert fairness.categories(["f", None, "m", "f"])[0] == ("f", "m")
    with pytest.raises(ValueError, match="numbers that rise"):
        fairness.bins([1.0], [50, 25])


def test_disparity_and_score_by_hand():
    labels, scores, rng = answers()
    sex = fairness.categories(np.where(rng.random(400) < 0.5, "f", "m").tolist())
    age = fairness.bins(np.where(rng.random(400) < 0.1, np.nan, rng.uniform(0, 100, 400)), [25, 50, 75])
    lonely = fairness.categories(["all"] * 400)
    for metric in fairness.METRICS.values():
        found = fairness.ByGroup(metric, {"sex": sex, "age": age, "lonely": lonely})(labels, scores)
        spreads = []
        for name, groups in (("sex", sex), ("age", age)):
            values = [metric(labels[groups.codes == k], scores[groups.codes == k]) for k in range(len(groups.names))]
            assert [found["group", name, group] for group in groups.names] == pytest.approx(values)
            spreads.append(max(values) - min(values))
            assert found["disparity", name] == pytest.approx(spreads[-1])
        assert np.isnan(found["disparity", "lonely"])
        assert found["fairness",] == pytest.approx(1 - np.mean(spreads)), "of the variables that have a disparity"


def test_a_group_of_one_class_is_undefined_and_counts_for_nothing():
    labels, scores, _ = answers(100)
    names = np.where(np.arange(100) < 50, "a", "b").astype(object)
    names[np.flatnonzero(labels[:, 0])[:3]] = "c"
    groups = {"site": fairness.categories(list(names))}
    found = fairness.ByGroup(metrics.macro_auroc, groups)(labels, scores)
    assert np.isnan(found["group", "site", "c"])
    assert found["disparity", "site"] == pytest.approx(abs(found["group", "site", "a"] - found["group", "site", "b"]))
    assert np.isfinite(fairness.permutation(metrics.macro_auroc, groups, labels, scores, np.arange(100), 20)["site"])


def planted(gap, seed=0, n=600):
    labels, scores, rng = answers(n, strength=2.0, seed=seed)
    sex = rng.integers(0, 2, n)
    noise = rng.dirichlet(np.ones(3), n)
    scores = np.where((sex == 1)[:, None], (1 - gap) * scores + gap * noise, scores)
    return labels, scores, {"sex": fairness.categories(np.array(["f", "m"])[sex].tolist())}


def test_a_planted_gap_is_found_and_no_gap_is_not():
    labels, scores, groups = planted(0.9)
    by_group = fairness.ByGroup(metrics.macro_auroc, groups)
    found = metrics.bootstrap_ci(by_group, labels, scores, 500)["disparity", "sex"]
    assert by_group.extremes(labels, scores) == {"sex": ("f", "m")}
    assert found.value > 0.1 and found.low > 0
    assert fairness.permutation(metrics.macro_auroc, groups, labels, scores, np.arange(600), 200)["sex"] < 0.01
    shown, p = 0, []
    for seed in range(20):
        labels, scores, groups = planted(0.0, seed)
        by_group = fairness.ByGroup(metrics.macro_auroc, groups)
        shown += metrics.bootstrap_ci(by_group, labels, scores, 200)["disparity", "sex"].low > 0
        p.append(fairness.permutation(metrics.macro_auroc, groups, labels, scores, np.arange(600), 100)["sex"])
    assert shown <= 4 and np.mean(np.array(p) < 0.05) <= 0.2 and 0.25 < np.mean(p) < 0.75


def test_p_is_the_share_of_all_swaps_within_classes():
    labels = np.eye(2, dtype=int)[[0, 0, 0, 1, 1, 1]]
    scores = np.array([0.1, 0.6, 0.3, 0.55, 0.9, 0.2])
    scores, own = np.column_stack([1 - scores, scores]), np.array([0, 0, 1, 0, 1, 1])
    groups = {"g": fairness.categories(np.array(["a", "b"])[own].tolist())}

    def spread(codes):
        return abs(np.subtract(*(metrics.macro_auroc(labels[codes == k], scores[codes == k]) for k in (0, 1))))

    swaps = itertools.product(itertools.permutations(own[:3]), itertools.permutations(own[3:]))
    wanted = np.mean([spread(np.array([*one, *other])) >= spread(own) - 1e-12 for one, other in swaps])
    found = fairness.permutation(metrics.macro_auroc, groups, labels, scores, np.arange(6), 4000)["g"]
    assert found == pytest.approx(wanted, abs=0.03)
