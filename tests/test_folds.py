import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fomo import folds
from fomo.folds import check, kfold, leave_one_group_out

PARTS = ("train", "val", "test")


def names(count):
    return [f"case{i:04d}" for i in range(count)]


def labels_in(part, ids, labels):
    of = dict(zip(ids, labels))
    return [of[name] for name in part]


def test_balanced_cases_divide_exactly():
    ids, labels = names(50), [1] * 20 + [0] * 30
    made = kfold(ids, ids, labels, 5, 0.25, seed=0)
    for fold in made:
        assert [(len(fold[p]), sum(labels_in(fold[p], ids, labels))) for p in PARTS] == [(30, 12), (10, 4), (10, 4)]
        assert all(fold[p] == sorted(fold[p]) for p in PARTS)


@st.composite
def cohorts(draw):
    """(ids, groups, labels) of subjects with 1 to 4 sessions; classes may differ between a subject's sessions."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    count = draw(st.integers(16, 60))
    sizes = rng.integers(1, draw(st.integers(2, 5)), count)
    groups = np.repeat([f"sub{i}" for i in rng.permutation(count)], sizes).tolist()
    return names(len(groups)), groups, rng


@given(
    cohort=cohorts(),
    k=st.integers(2, 5),
    seed=st.integers(0, 99),
    kind=st.sampled_from(["class", "class_and_number", "continuous", "multilabel"]),
)
@settings(max_examples=30, deadline=None)
def test_properties(cohort, k, seed, kind):
    ids, groups, rng = cohort
    labels = {
        "class": rng.integers(0, 2, len(ids)).tolist(),
        "class_and_number": list(zip(rng.integers(0, 2, len(ids)).tolist(), rng.lognormal(5, 2, len(ids)).tolist())),
        "continuous": rng.normal(50, 15, len(ids)).tolist(),
        "multilabel": (rng.random((len(ids), 4)) < [0.5, 0.3, 0.1, 0.02]).astype(int).tolist(),
    }[kind]
    if kind.startswith("class"):  # in fewer groups a class cannot be in all parts, which is an error
        names_of = labels if kind == "class" else [name for name, _ in labels]
        of_class = [{group for group, name in zip(groups, names_of) if name == one} for one in (0, 1)]
        assume(min(map(len, of_class)) >= max(k, 4))
    made = kfold(ids, groups, labels, k, 0.25, seed, kind)
    group_of = dict(zip(ids, groups))
    assert sorted(name for fold in made for name in fold["test"]) == ids
    for fold in made:
        assert sorted(fold["train"] + fold["val"] + fold["test"]) == ids
        used = [{group_of[name] for name in fold[p]} for p in PARTS]
        assert not (used[0] & used[1] or used[0] & used[2] or used[1] & used[2])
        assert (
            abs(len(fold["test"]) - len(ids) / k) <= 4
            and abs(len(fold["val"]) - 0.25 * (len(ids) - len(fold["test"]))) <= 4
        )
        if kind == "class":
            assert all(set(labels_in(fold[p], ids, labels)) == {0, 1} for p in PARTS)
        if kind == "class_and_number":
            assert all({name for name, _ in labels_in(fold[p], ids, labels)} == {0, 1} for p in PARTS)
    order = rng.permutation(len(ids))
    shuffled = [[values[i] for i in order] for values in (ids, groups, labels)]
    assert kfold(*shuffled, k, 0.25, seed, kind) == made


def test_the_seed_and_nothing_else_decides():
    ids, labels = names(40), [i % 2 for i in range(40)]
    assert kfold(ids, ids, labels, 4, 0.2, 1) != kfold(ids, ids, labels, 4, 0.2, 2)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fomo.folds import kfold;"
        "ids = [f'c{i:02d}' for i in range(40)]; groups = [i[:2] + i[-1] for i in ids];"
        "print(kfold(ids, groups, [i[-1] > '4' for i in ids], 3, .3, 0))"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(folds.__file__)))
    runs = [
        subprocess.run(
            [sys.executable, "-c", script, root],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": salt},
        ).stdout
        for salt in ("1", "2")
    ]
    assert runs[0] == runs[1] and "train" in runs[0]


def test_two_sessions_count_twice_but_stay_together():
    # 4 subjects with two positive sessions, 8 with one: 2 folds must get 8 positive sessions each
    groups = (
        [f"s{i}" for i in range(4) for _ in (0, 1)] + [f"s{i}" for i in range(4, 12)] + [f"n{i}" for i in range(16)]
    )
    labels = [1] * 16 + [0] * 16
    ids = names(32)
    for fold in kfold(ids, groups, labels, 2, 0.25, 0):
        assert sum(labels_in(fold["test"], ids, labels)) == 8 and len(fold["test"]) == 16
        assert sum(labels_in(fold["val"], ids, labels)) == 2 and len(fold["val"]) == 4


def test_every_part_has_the_rare_class_even_where_size_balance_suffers():
    # one subject holds most of the positives; each of the 3 folds still needs one of the three positive subjects
    groups = ["big"] * 8 + ["a", "b"] + [f"n{i}" for i in range(20)]
    labels = [1] * 10 + [0] * 20
    ids = names(30)
    made = kfold(ids, groups, labels, 3, 0.2, 0)
    for fold in made:
        assert all(set(labels_in(fold[part], ids, labels)) == {0, 1} for part in PARTS)


def test_continuous_targets_have_the_same_distribution_everywhere():
    rng = np.random.default_rng(0)
    ids, ages = names(100), rng.gamma(4, 12, 100)
    made = kfold(ids, ids, ages, 5, 0.2, 0, "continuous")
    for part in ("val", "test"):
        means = [np.mean(labels_in(fold[part], ids, ages)) for fold in made]
        assert np.ptp(means) < 0.25 * ages.std()  # 20 at random: the standard error alone is .22 standard deviations
        quartile = np.quantile(ages, 0.25)
        low = [np.mean(np.array(labels_in(fold[part], ids, ages)) < quartile) for fold in made]
        assert all(0.15 <= share <= 0.35 for share in low)


def test_multilabel_spreads_each_label():
    rng = np.random.default_rng(0)
    ids, rows = names(200), (rng.random((200, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.05]).astype(int)
    rows[:5, 5] = 1
    made = kfold(ids, ids, rows, 5, 0.2, 0, "multilabel")
    for fold in made:
        held = np.array(labels_in(fold["test"], ids, rows)).sum(0)
        assert (abs(held - rows.sum(0) / 5) <= 1.5).all() and (held > 0).all()
        assert len(fold["test"]) == 40


def imbalance(parts, labels):
    counts = np.array([[np.sum(labels[part] == c) for c in np.unique(labels)] for part in parts])
    return (counts / counts.sum(0)).std(0).mean()


def test_at_least_as_balanced_as_scikit_learn():
    splitter = pytest.importorskip("sklearn.model_selection").StratifiedGroupKFold
    ours, theirs = [], []
    for trial in range(8):
        rng = np.random.default_rng(trial)
        sizes = rng.integers(1, 5, 50)
        groups = np.repeat(np.arange(50), sizes)
        labels = rng.choice(3, len(groups), p=[0.6, 0.25, 0.15])
        ids = names(len(groups))
        made = kfold(ids, groups.tolist(), labels.tolist(), 5, 0.2, trial)
        ours.append(imbalance([[int(name[4:]) for name in fold["test"]] for fold in made], labels))
        theirs.append(imbalance([test for _, test in splitter(5).split(labels, labels, groups)], labels))
    assert np.mean(ours) <= np.mean(theirs)


def test_leave_one_group_out_by_hand():
    ids = names(24)
    subjects = [f"s{i // 2}" for i in range(24)]
    sites = ["Aarhus"] * 4 + ["Bern"] * 8 + ["Cadiz"] * 12
    labels = [0] * 4 + [i // 2 % 2 for i in range(4, 24)]  # Aarhus has one class only
    made = leave_one_group_out(ids, subjects, sites, labels, 0.25, 0)
    assert [fold["test"] for fold in made] == [ids[:4], ids[4:12], ids[12:]]
    for fold in made:
        for part in ("train", "val"):
            assert set(labels_in(fold[part], ids, labels)) == {0, 1}
            held = labels_in(fold[part], ids, subjects)
            assert all(held.count(subject) == 2 for subject in held)
    with pytest.raises(ValueError, match="subject s2 is at Bern and at Aarhus"):
        leave_one_group_out(ids, subjects, ["Bern"] * 5 + ["Aarhus"] * 19, labels, 0.25, 0)
    with pytest.raises(ValueError, match="at least two"):
        leave_one_group_out(ids, subjects, ["Bern"] * 24, labels, 0.25, 0)
    with pytest.raises(ValueError, match="site Aarhus: training and validation: class 0 is in 0 groups"):
        leave_one_group_out(ids, subjects, ["Bern" if y else "Aarhus" for y in labels], labels, 0.25, 0)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(labels=[1, 1, 1] + [0] * 17), "4 folds: class 1 is in 3 groups .*, wanted at least 4"),
        (dict(labels=[1, 1] + [0] * 18, folds=2), "fold 1: training and validation: class 1 is in 1 group"),
        (dict(groups=["same"] * 20), "got 1 groups"),
        (dict(ids=["a"] * 20), "ids: a, a"),
        (dict(labels=[0]), "got 20, 20 and 1"),
        (dict(folds=1), "folds: got 1"),
        (dict(val_fraction=0.0), "val_fraction: got 0.0"),
        (dict(kind="age"), "kind: got 'age'"),
        (dict(kind="continuous", labels=[float("nan")] * 20), "labels: got nan for case0000"),
        (dict(kind="multilabel", labels=[[0, 2]] * 20), "zeros and ones"),
    ],
)
def test_what_cannot_be_divided_is_refused(change, words):
    good = dict(ids=names(20), groups=names(20), labels=[0, 1] * 10, folds=4, val_fraction=0.2, seed=0)
    kfold(**good)
    with pytest.raises(ValueError, match=words):
        kfold(**{**good, **change})


def test_check_finds_every_overlap():
    good = [{"train": ["c"], "val": ["b"], "test": ["a", "d"]}, {"train": ["a"], "val": ["d"], "test": ["b", "c"]}]
    check(good)
    check(good, {"a": 1, "d": 2, "b": 3, "c": 4})

    def changed(fold, **parts):
        return [{**good[i], **parts} if i == fold else good[i] for i in (0, 1)]

    for bad, words in (
        (changed(0, train=["c", "b"]), "fold 1: b not in exactly one"),
        (changed(0, train=["c", "a"]), "fold 1: a not in exactly one"),
        (changed(0, train=["e"]), "fold 1: c, e not in exactly one"),
        (changed(1, test=["b", "c", "a"]), "a tested more than once"),
        (changed(0, train=["c", "c"]), "fold 1: c not in exactly one"),
        (changed(1, val=[]), r"fold 2: got train \(1\), val \(0\), test \(2\)"),
        ([{"train": ["a"], "test": ["b"]}], "wanted train, val and test"),
        ([], "got none"),
    ):
        with pytest.raises(ValueError, match=words):
            check(bad)
    with pytest.raises(ValueError, match="fold 1: group 1 is in val and in test"):
        check(good, {"a": 1, "d": 2, "b": 1, "c": 4})
    with pytest.raises(ValueError, match="test parts: e not in both"):
        check(good, {"a": 1, "d": 2, "b": 3, "c": 4, "e": 5})


def test_numbers_are_spread_within_each_class():
    """Of 40 of a class each quarter of the sizes is in each test part equally often, or once more."""
    rng = np.random.default_rng(0)
    sizes = rng.permutation(np.concatenate([np.arange(40.0), 1000 + np.arange(20.0)]))
    labels = [("large" if size >= 1000 else "small", size) for size in sizes.tolist()]
    ids = names(60)
    for seed in range(3):
        for fold in kfold(ids, ids, labels, 5, 0.25, seed, "class_and_number"):
            tested = labels_in(fold["test"], ids, labels)
            small = sorted(size for name, size in tested if name == "small")
            large = sorted(size - 1000 for name, size in tested if name == "large")
            assert len(small) == 8 and len(large) == 4
            assert (np.histogram(small, 4, (0, 40))[0] == 2).all() and (np.histogram(large, 4, (0, 20))[0] == 1).all()


MANY = {
    "class": lambda rng, n: rng.integers(0, 3, n).tolist(),
    "class_and_number": lambda rng, n: list(zip(rng.integers(0, 2, n).tolist(), rng.lognormal(5, 2, n).tolist())),
    "continuous": lambda rng, n: rng.normal(50, 15, n).tolist(),
    "multilabel": lambda rng, n: (rng.random((n, 18)) < np.linspace(0.001, 0.5, 18)).astype(int).tolist(),
}


@pytest.mark.parametrize("kind", MANY)
def test_many_subjects_are_divided_fast_and_evenly(kind):
    count, rng = 60_000, np.random.default_rng(0)
    ids, labels = [f"c{i:05}" for i in range(count)], MANY[kind](rng, count)
    groups = [f"s{i}" for i in rng.integers(0, count * 3 // 4, count)]
    begun = time.process_time()
    made = kfold(ids, groups, labels, 5, 0.2, 0, kind)
    assert time.process_time() - begun < 20, "some 3 s; what grows with the square of the subjects takes minutes"
    values = np.array(labels, float).reshape(count, -1)
    place = {name: i for i, name in enumerate(ids)}
    for fold in made:
        for part, share in (("test", 0.2), ("val", 0.16)):
            chosen = values[[place[name] for name in fold[part]]]
            assert len(chosen) == pytest.approx(share * count, rel=0.005)
            if kind == "multilabel":
                assert chosen.sum(0) == pytest.approx(share * values.sum(0), rel=0.005, abs=1)
            else:
                low = np.array([(column <= np.median(column)).mean() for column in values.T])
                found = (chosen <= np.median(values, axis=0)).mean(axis=0)
                assert found == pytest.approx(low, abs=0.01)
