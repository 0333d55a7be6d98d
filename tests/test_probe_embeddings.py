"""tools/probe.py: what it says of embeddings equals scikit-learn's numbers, and the challenge's rules."""

import csv
import json

import numpy as np
import pytest
from conftest import one_line_error, run_command, tool, write_table

from fomo.config import UserError
from fomo.evaluation import probe


def embeddings(folder, signal=0.0, n=240, classes=3, inputs=24, seed=0, gap=0.0):
    """(folder of ID.npy, table): classes a, b, c; in women the signal is weaker by `gap`."""
    rng = np.random.default_rng(seed)
    labels, sex = np.arange(n) % classes, rng.integers(0, 2, n)
    strength = signal * (1 - gap * (sex == 0))
    features = rng.normal(size=(n, inputs)) + strength[:, None] * rng.normal(size=(classes, inputs))[labels]
    place = folder / "embeddings"
    place.mkdir()
    rows = []
    for i in range(n):
        np.save(place / f"p{i}.npy", features[i].astype(np.float32)[None])  # 1-D after squeezing
        rows.append({"ptid": f"p{i}", "selected_cohort": "abc"[labels[i]], "sex": "FM"[sex[i]], "age": i % 90 + 1})
    return place, write_table(folder / "subjects.csv", rows)


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def probed(tmp_path, place, table, *more):
    output = tmp_path / "out"
    tool("probe", place, "--table", table, "--target", "selected_cohort", "--output", output, "--overwrite", *more)
    return output


def scores_of(output, method="heads", metric="auroc"):
    rows = [row for row in read(output / "probe.csv") if (row["method"], row["metric"]) == (method, metric)]
    return [tuple(float(row[key]) for key in ("value", "low", "high")) for row in rows]


def test_random_embeddings_are_at_chance_within_the_interval(tmp_path):
    output = probed(tmp_path, *embeddings(tmp_path))
    for method in probe.METHODS:
        found = scores_of(output, method)
        assert len(found) == 5
        assert sum(low <= 0.5 <= high for _, low, high in found) >= 4, (method, found)


def test_planted_classes_are_found_and_the_numbers_are_scikit_learns(tmp_path, capsys):
    metrics = pytest.importorskip("sklearn.metrics")
    output = probed(tmp_path, *embeddings(tmp_path, 0.6), "--seeds", "7", "8")
    rows = read(output / "predictions.csv")
    assert len(rows) == 120 and {row["missing"] for row in rows} == {"0"}
    truth = ["abc".index(row["target"]) for row in rows]
    scores = np.array([[float(row[f"probability_{name}"]) for name in "abc"] for row in rows])
    value, low, high = scores_of(output)[0]
    assert value == pytest.approx(metrics.roc_auc_score(truth, scores, multi_class="ovr")) and 0.8 < low < value < high
    f1 = metrics.f1_score([row["target"] for row in rows], [row["prediction"] for row in rows], average="macro")
    assert scores_of(output, metric="f1")[0][0] == pytest.approx(f1)
    found = json.loads((output / "probe.json").read_text())
    first = next(row for row in found["summary"] if (row["method"], row["metric"]) == ("heads", "auroc"))
    assert first["value"] == pytest.approx(value) and first["splits"] == 2
    assert first["mean"] == pytest.approx(np.mean([value for value, _, _ in scores_of(output)]))
    assert first["sd"] == pytest.approx(np.std([value for value, _, _ in scores_of(output)], ddof=1))
    assert not {"mean_low", "mean_high"} & set(first), "splits share their subjects: the mean has no interval of theirs"
    log = capsys.readouterr().out
    assert "probe method=heads seed=7" in log and "rate=" in log
    page = (output / "probe.html").read_text()
    assert "No groups were named" in page and f"{value:.3f}"[:5] in page


def test_the_logistic_regression_is_scikit_learns(tmp_path):
    linear_model = pytest.importorskip("sklearn.linear_model")
    place, table = embeddings(tmp_path, 0.6)
    subjects = probe.read_subjects(table, "selected_cohort")
    features = probe.read_embeddings(str(place), subjects)
    test, found = probe.answers(features, subjects, 42)
    probabilities, choice = found["logistic"]
    train = probe.split(subjects, 42)["train"]
    mean, deviation = features[train].mean(0), features[train].std(0)
    theirs = linear_model.LogisticRegression(C=1 / choice["l2"], tol=1e-8, max_iter=2000)
    theirs.fit((features[train] - mean) / deviation, subjects.labels[train])
    wanted = theirs.predict_proba((features[test] - mean) / deviation)
    np.testing.assert_allclose(probabilities, wanted, atol=1e-3)


def test_subjects_are_split_by_class_and_never_apart(tmp_path):
    rows = [{"id": f"s{i}_{visit}", "subject": f"s{i}", "t": "xy"[i % 2]} for i in range(60) for visit in range(2)]
    subjects = probe.read_subjects(write_table(tmp_path / "t.csv", rows), "t")
    for seed in (42, 43):
        parts = probe.split(subjects, seed)
        whose = {part: set(subjects.subjects[index]) for part, index in parts.items()}
        assert [len(whose[part]) for part in ("train", "val", "test")] == [24, 6, 30]
        assert not (whose["train"] & whose["test"] or whose["val"] & whose["test"] or whose["train"] & whose["val"])
        for part, of_class in (("train", 24), ("val", 6), ("test", 30)):
            assert np.bincount(subjects.labels[parts[part]]).tolist() == [of_class, of_class]
    assert any((probe.split(subjects, 42)["test"] != probe.split(subjects, 43)["test"]).tolist())
    mixed = [{"id": f"s{i}", "subject": f"s{i // 2}", "t": "xy"[i % 2]} for i in range(40)]
    with pytest.raises(UserError, match="class y: got 0 subjects.*subject s0 has cases of .* x, y.*--subject-column"):
        probe.split(probe.read_subjects(write_table(tmp_path / "t.csv", mixed), "t"), 42)
    few = probe.read_subjects(write_table(tmp_path / "t.csv", rows[:10]), "t")
    with pytest.raises(UserError, match="class x: got 3 subjects, wanted 4 or more"):
        probe.split(few, 42)


def test_a_tested_subject_without_an_embedding_gets_the_worst_answer_and_is_counted(tmp_path, capsys):
    place, table = embeddings(tmp_path, 2.0)
    whole = scores_of(probed(tmp_path, place, table, "--seeds", "42"))[0][0]
    for i in range(0, 240, 5):
        (place / f"p{i}.npy").unlink()
    output = probed(tmp_path, place, table, "--seeds", "42")
    rows = {row["id"]: row for row in read(output / "predictions.csv")}
    gone = [row for row in rows.values() if row["missing"] == "1"]
    assert gone and all(int(row["id"][1:]) % 5 == 0 for row in gone)
    for row in gone:
        wanted = {name: 0.0 if name == row["target"] else 0.5 for name in "abc"}
        assert {name: float(row[f"probability_{name}"]) for name in "abc"} == wanted
        assert row["prediction"] != row["target"]
    assert scores_of(output)[0][0] < whole - 0.1
    assert (
        "missing=48" in capsys.readouterr().out and "48 cases have no embedding" in (output / "probe.html").read_text()
    )


def test_a_planted_gap_between_groups_is_found_and_shown(tmp_path):
    place, table = embeddings(tmp_path, 0.9, n=600, gap=0.9)
    output = probed(tmp_path, place, table, "--groups", "sex,age:25|50|75", "--seeds", "42", "--bootstrap", "300")
    rows = [row for row in read(output / "fairness.csv") if (row["method"], row["metric"]) == ("heads", "auroc")]
    sex, age = (
        next(row for row in rows if row["kind"] == "disparity" and row["variable"] == v) for v in ("sex", "age")
    )
    assert sex["group"] == "m over f" and float(sex["low"]) > 0 and float(sex["p"]) < 0.05
    assert float(age["p"]) > 0.05
    values = [float(row["value"]) for row in rows if row["kind"] == "group" and row["variable"] == "sex"]
    assert float(sex["value"]) == pytest.approx(max(values) - min(values))
    score = next(row for row in rows if row["kind"] == "fairness")
    assert float(score["value"]) == pytest.approx(1 - (float(sex["value"]) + float(age["value"])) / 2)
    page = (output / "probe.html").read_text()
    assert "Disparity" in page and "25-50" in page and "m over f" in page


def test_heads_that_do_not_say_a_class_are_explained(tmp_path, capsys):
    rng, n = np.random.default_rng(0), 90
    rows = [{"id": f"p{i}", "t": "abc"[i % 3]} for i in range(n)]
    features = rng.normal(0, 0.05, (n, 20)) + 0.1 * rng.normal(size=(3, 20))[np.arange(n) % 3]
    table, arguments = write_table(tmp_path / "t.csv", rows), ("--target", "t", "--seeds", 42, "--bootstrap", 20)
    for offset in (0.0, 5.0):
        np.save(tmp_path / f"{offset}.npy", features + offset)
        tool("probe", tmp_path / f"{offset}.npy", "--table", table, *arguments, "--output", tmp_path / f"{offset}")
        found = json.loads((tmp_path / f"{offset}" / "probe.json").read_text())
        assert bool(found["unsaid"]) == bool(offset), "what all embeddings share is no signal"
        auroc, f1 = (row["value"] for row in found["summary"] if row["method"] == "heads")
        assert auroc > 0.9 and (f1 < 0.6) == bool(offset)
    said = "linear heads say only "
    assert said in capsys.readouterr().out and f"The {said}" in (tmp_path / "5.0" / "probe.html").read_text()


def test_an_array_is_taken_as_the_lines_of_the_table(tmp_path):
    place, table = embeddings(tmp_path, 0.6)
    rows = [np.load(place / f"p{i}.npy")[0] for i in range(240)]
    rows[5] = np.full(24, np.nan)
    np.save(tmp_path / "all.npy", np.array(rows))
    (place / "p5.npy").unlink()
    both = [scores_of(probed(tmp_path, one, table, "--seeds", "42")) for one in (place, tmp_path / "all.npy")]
    assert both[0] == both[1]
    np.save(tmp_path / "all.npy", np.array(rows[:-1]))
    with pytest.raises(UserError, match=r"got shape \(239, 24\), wanted \(240, F\)"):
        probed(tmp_path, tmp_path / "all.npy", table)


def test_mistakes_are_one_line(tmp_path):
    place, table = embeddings(tmp_path)
    cases = (
        (["--target", "cohort"], "no column 'cohort' (--target)"),
        (["--groups", "sexe"], "did you mean 'sex'?"),
        (["--groups", "sex:1|2"], "wanted a number for --groups sex:1|2"),
        (["--groups", "age:50|25"], "wanted numbers that rise"),
        (["--seeds", "1", "1"], "wanted different numbers"),
        (["--bootstrap", "0"], "--bootstrap: got 0"),
    )
    for arguments, said in cases:
        with pytest.raises(UserError) as error:
            probed(tmp_path, place, table, *arguments)
        assert said in str(error.value) and "\n" not in str(error.value)
    np.save(place / "p3.npy", np.full(24, np.inf, np.float32))
    arguments = "tools/probe.py", place, "--table", table, "--target", "selected_cohort"
    one_line_error(run_command(*arguments), "p3.npy: 24 numbers are infinite of 24, wanted finite ones")
    np.save(place / "p3.npy", np.array([np.nan, *[0] * 23], np.float32))
    with pytest.raises(UserError, match="p3.npy: 1 number is NaN of 24, wanted finite ones"):
        probed(tmp_path, place, table)
    np.save(place / "p3.npy", np.zeros(7, np.float32))
    with pytest.raises(UserError, match="7 numbers of p3"):
        probed(tmp_path, place, table)


def test_a_probe_of_other_inputs_is_not_replaced(tmp_path):
    place, table = embeddings(tmp_path, 0.6, n=60)
    arguments = "probe", place, "--table", table, "--output", tmp_path / "out", "--seeds", 42, "--bootstrap", 20
    tool(*arguments, "--target", "selected_cohort", "--groups", "sex")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    tool(*arguments, "--target", "selected_cohort", "--groups", "sex")
    for more, said in (
        (("--target", "sex"), "holds a probe of target=selected_cohort, got target=sex: wanted another --output"),
        (("--target", "selected_cohort"), "got groups="),
    ):
        with pytest.raises(UserError, match=said):
            tool(*arguments, *more)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with open(table, "a") as file:
        file.write("p99,a,F,30\n")
    with pytest.raises(UserError, match="holds a probe of table=subjects.csv"):
        tool(*arguments, "--target", "selected_cohort", "--groups", "sex")
    tool(*arguments, "--target", "sex", "--overwrite")
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["inputs"]["target"] == "sex"
    assert not (tmp_path / "out" / "fairness.csv").exists(), "of the probe that was replaced"


def test_groups_that_say_little_are_named_before_the_fairness_score(tmp_path, capsys):
    rng = np.random.default_rng(0)
    rows = [{"id": f"p{i}", "t": "ab"[i % 2], "age": 20 + i / 2, "site": "only", "sex": "fm"[i % 2]} for i in range(80)]
    for i, row in enumerate(rows):
        row["rare"] = "x" if i < 4 else "" if i < 10 else "y"
    table = write_table(tmp_path / "t.csv", rows)
    subjects = probe.read_subjects(table, "t", ("age", "site", "sex", "rare"))
    test = probe.split(subjects, 42)["test"]
    found = probe.run(rng.normal(size=(80, 4)), subjects, (42,), 20)
    tested = [rows[i]["rare"] for i in test]
    wanted = (
        "age: 80 groups of a number without edges: did you mean age:29.9|39.8|49.6?",
        f"age: {len(test)} of {len(test)} groups have fewer than 5 tested subjects: ",
        "site: one group (only) is tested, so it has no disparity",
        "sex: 2 of 2 groups have tested subjects of one class only, and no AUROC: f (20), m (20)",
        f"rare: {tested.count('')} of 40 tested subjects have no value",
        f"rare: 1 of 2 groups have fewer than 5 tested subjects: x ({tested.count('x')})",
    )
    for said in wanted:
        assert any(text.startswith(said) for text in found.facts["doubts"]), (said, found.facts["doubts"])
    np.save(tmp_path / "e.npy", rng.normal(size=(80, 4)))
    arguments = "probe", tmp_path / "e.npy", "--table", table, "--target", "t", "--seeds", 42, "--bootstrap", 20
    tool(*arguments, "--groups", "site", "--output", tmp_path / "site")
    log, page = capsys.readouterr().out, (tmp_path / "site" / "probe.html").read_text()
    said = "the fairness score by AUROC and that by F1 are undefined: no variable has two tested groups"
    assert said in log and log.index(said) < log.index("kind=fairness") and said in page
    tool(*arguments, "--groups", "sex", "--output", tmp_path / "sex")
    assert "the fairness score by AUROC is undefined" in (tmp_path / "sex" / "probe.html").read_text()
    tool(*arguments, "--groups", "rare", "--output", tmp_path / "rare")
    assert "is undefined" not in (tmp_path / "rare" / "probe.html").read_text() or tested.count("x") < 2
