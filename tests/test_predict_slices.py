"""From CT volumes to findings: extract, train, evaluate, and predict slices and volumes with one and two networks."""

import shutil

import pytest
from conftest import run_command

from fomo import config as config_module
from fomo.config import UserError
from fomo.data import ct, extract
from fomo.data.phantoms import chests
from fomo.evaluation import evaluate
from fomo.prediction import predict, predict_slices
from fomo.runs import crossval
from fomo.runtime import files
from fomo.runtime.log import Log

LABELS = ["Cardiomegaly", "Atelectasis", "Lung nodule", "Pleural effusion"]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("ct")
    chests.make(str(root / "raw"), 16, 40)
    settings = ct.Settings(slices=3, size=64, strategy="uniform")
    extract.extract(str(root / "raw" / "volumes"), str(root / "out"), settings, Log(active=False), workers=0)
    return root


@pytest.fixture(scope="module")
def runs(scans):
    """The folders of two runs, with networks of one and of three channels."""
    folders = []
    for name, channels, normalize in (("one", ["ct"], "none"), ("three", ["r", "g", "b"], "imagenet")):
        content = f"""
name: {name}
output: {scans}/runs
task: {{type: multilabel, targets: {LABELS}, loss: asymmetric}}
data: {{source: slices, csv: {scans}/out/splits/all_slices.csv, labels_csv: {scans}/raw/multi_abnormality_labels.csv,
       channels: {channels}, normalize: {normalize}, patch: [64, 64, 1]}}
model: {{name: resnet50, width: 4}}
train: {{epochs: 1, batch_size: 4, steps_per_epoch: 2, workers: 0, patience: none}}
augment: {{preset: none}}
cv: {{folds: 2, val_fraction: 0.5, folds_to_run: [1]}}
eval: {{bootstrap: 20}}
"""
        (scans / f"{name}.yaml").write_text(content)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(crossval.report, "write", lambda *_, **__: None)  # has tests of its own
            crossval.run(config_module.load(scans / f"{name}.yaml"))
        folders.append(scans / "runs" / name)
    return folders


def rows_of(path):
    return {row["id"]: row for row in files.read_csv(path)}


def members_of(*folders):
    paths = [path for folder in folders for path in predict.find_checkpoints(str(folder / "fold_1"))]
    return predict.load_members(paths, predict.choose_device("cpu"))


def test_a_run_writes_slices_volumes_and_labels(runs):
    rows, volumes = (rows_of(runs[0] / name) for name in ("predictions.csv", "predictions_volumes.csv"))
    assert {row["scan"] for row in rows.values()} == set(volumes) and len(rows) == 3 * len(volumes)
    for name in (runs[0], runs[0] / "fold_1"):
        labels = files.read_csv(name / "labels.csv")
        assert [row["label"] for row in labels] == LABELS and {"prevalence", "auroc_low", "f1", "slice_auroc"} <= set(
            labels[0]
        )
    assert "threshold" in labels[0]
    summary = files.read_json(runs[0] / "summary.json")
    assert (
        summary["headline"] == "volume_auroc_macro"
        and summary["metrics"]["volume_auroc_macro"]["pooled_low"] is not None
    )
    again = {row["metric"]: float(row["value"]) for row in files.read_csv(runs[0] / "fold_1" / "results.csv")}
    assert summary["metrics"]["volume_f1_macro_half"]["pooled"] == pytest.approx(
        again["volume_f1_macro_half"], nan_ok=True
    )


def test_predictions_equal_the_evaluation_from_files_and_from_volumes(scans, runs, tmp_path):
    members, log = members_of(runs[0]), Log(active=False)
    stored, stored_volumes = (
        rows_of(runs[0] / "fold_1" / name) for name in ("predictions.csv", "predictions_volumes.csv")
    )
    listed = predict_slices.listed_slices(str(scans / "out" / "splits" / "all_slices.csv"))
    predict_slices.predict_slices(members, [one for one in listed if one[0] in stored], str(tmp_path / "a"), log)
    wanted = next(iter(stored_volumes))
    volumes = predict_slices.listed_volumes([str(scans / "raw" / "volumes" / wanted)])
    predict_slices.predict_volumes(members, volumes, str(tmp_path / "b"), log)
    columns = [f"{kind}_{label.replace(' ', '_')}" for kind in ("probability", "decision") for label in LABELS]
    assert set(rows_of(tmp_path / "a" / "predictions.csv")) == set(stored)
    for folder in ("a", "b"):
        for name, reference in (("predictions.csv", stored), ("predictions_volumes.csv", stored_volumes)):
            for id, row in rows_of(tmp_path / folder / name).items():
                assert [float(row[c]) for c in columns] == pytest.approx(
                    [float(reference[id][c]) for c in columns], abs=1e-6
                )
    answer = files.read_json(tmp_path / "b" / "predictions.json")["volumes"][0]
    row = rows_of(tmp_path / "b" / "predictions_volumes.csv")[wanted]
    assert answer["id"] == wanted and answer["slices"] == 3 and len(answer["top"]) == len(LABELS)
    assert answer["probabilities"]["Lung nodule"] == float(row["probability_Lung_nodule"])
    assert set(answer["findings"]) == {label for label in LABELS if row[f"decision_{label.replace(' ', '_')}"] == "1"}
    assert answer["top"][0]["probability"] == max(answer["probabilities"].values())


def test_what_is_there_is_kept_and_other_checkpoints_are_refused(scans, runs, tmp_path, monkeypatch, capsys):
    members, log = members_of(runs[0]), Log()
    names = ("predictions.csv", "predictions_volumes.csv", "predictions.json")
    volumes = predict_slices.listed_volumes([str(path) for path in sorted((scans / "raw" / "volumes").iterdir())[:3]])
    listed = [
        one
        for one in predict_slices.listed_slices(str(scans / "out" / "splits" / "all_slices.csv"))
        if one[1] in dict(volumes)
    ]
    take, calls = ct.take_slices, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return take(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predict_slices, "_SAVE_S", 0)
        patch.setattr(ct, "take_slices", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_slices.predict_volumes(members, volumes, str(tmp_path / "a"), log)
    assert list(rows_of(tmp_path / "a" / "predictions_volumes.csv")) == [volumes[0][0]]
    predict_slices.predict_volumes(members, volumes, str(tmp_path / "a"), log)
    assert " volumes=3 kept=1 " in capsys.readouterr().out
    predict_slices.predict_volumes(members, volumes, str(tmp_path / "b"), log)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    predict_slices.predict_slices(members, listed[1:], str(tmp_path / "c"), log)
    part = rows_of(tmp_path / "c" / "predictions.csv")
    predict_slices.predict_slices(members, listed, str(tmp_path / "c"), log)
    assert " slices=9 kept=6 " in capsys.readouterr().out, "the scan with another slice is predicted again"
    whole = rows_of(tmp_path / "c" / "predictions.csv")
    assert (
        len(part) == 8
        and len(whole) == 9
        and all(whole[id] == row for id, row in part.items() if row["scan"] != listed[0][1])
    )
    assert {row["slices"] for row in files.read_csv(tmp_path / "c" / "predictions_volumes.csv")} == {"3"}

    with pytest.raises(UserError, match="other checkpoints"):
        predict_slices.predict_volumes(members_of(runs[1]), volumes, str(tmp_path / "a"), log)
    predict_slices.predict_volumes(members_of(runs[1]), volumes[:1], str(tmp_path / "a"), log, overwrite=True)
    assert list(rows_of(tmp_path / "a" / "predictions_volumes.csv")) == [volumes[0][0]]
    copy = shutil.copy(volumes[0][1], tmp_path / volumes[0][0])
    with pytest.raises(UserError, match=f"holds an answer for {volumes[0][0]} that is not of {copy}"):
        predict_slices.predict_volumes(members, [(volumes[0][0], str(copy))], str(tmp_path / "b"), log)
    moved = [(id, scan, str(shutil.copy(path, tmp_path / f"{id}.npy"))) for id, scan, path in listed[:3]]
    with pytest.raises(UserError, match="holds an answer for .* that is not of"):
        predict_slices.predict_slices(members, moved, str(tmp_path / "c"), log)
    before = (tmp_path / "c" / "predictions_volumes.csv").read_bytes()
    with pytest.raises(UserError, match="cannot read .*gone.npy"):
        predict_slices.predict_slices(
            members, [*listed, ("gone", "gone", "gone.npy")], str(tmp_path / "c"), log, overwrite=True
        )
    assert (tmp_path / "c" / "predictions_volumes.csv").read_bytes() == before, "what lacks a file replaces nothing"
    with pytest.raises(UserError, match="2 volumes are called"):
        predict_slices.listed_volumes([volumes[0][1], volumes[0][1]])


def test_networks_of_other_channels_are_averaged_and_each_is_built_from_its_own_checkpoint(scans, runs, tmp_path):
    wanted = str(scans / "raw" / "volumes" / next(iter(rows_of(runs[0] / "predictions_volumes.csv"))))
    for name, members in (("1", members_of(runs[0])), ("2", members_of(runs[1])), ("both", members_of(*runs))):
        predict_slices.check(members)
        predict_slices.predict_volumes(
            members, predict_slices.listed_volumes([wanted]), str(tmp_path / name), Log(active=False)
        )
    first, second, both = (
        files.read_json(tmp_path / name / "predictions.json")["volumes"][0]["probabilities"]
        for name in ("1", "2", "both")
    )
    for label in LABELS:
        assert both[label] == pytest.approx((first[label] + second[label]) / 2) and first[label] != second[label]


def test_the_command_predicts_a_folder_of_slices_and_names_a_volume_that_fails(scans, runs, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copytree(next((scans / "out" / "slices").iterdir()), tmp_path / "in" / "scan")
    done = run_command(
        "tools/predict.py", runs[0] / "fold_1", "--slices", tmp_path / "in", "--output", tmp_path / "out"
    )
    assert done.returncode == 0, done.stderr
    assert list(rows_of(tmp_path / "out" / "predictions_volumes.csv")) == ["scan"]
    (tmp_path / "bad.nii.gz").write_bytes(b"no")
    members, log = members_of(runs[0]), Log(active=False)
    good = next((scans / "raw" / "volumes").iterdir())
    with pytest.raises(UserError, match="volume bad.nii.gz: .*the results of the other volumes"):
        predict_slices.predict_volumes(
            members, predict_slices.listed_volumes([str(tmp_path / "bad.nii.gz"), str(good)]), str(tmp_path / "o"), log
        )
    assert list(rows_of(tmp_path / "o" / "predictions_volumes.csv")) == [good.name]


def test_a_scan_with_a_damaged_slice_is_named_and_the_others_are_there(scans, runs, tmp_path, monkeypatch):
    listed = []
    for folder in sorted((scans / "out" / "slices").iterdir())[:4]:
        shutil.copytree(folder, tmp_path / "in" / folder.name)
    listed = predict_slices.listed_slices(str(tmp_path / "in"))
    names = list(dict.fromkeys(scan for _, scan, _ in listed))
    bad = next(path for _, scan, path in listed if scan == names[1])
    with open(bad, "r+b") as file:
        file.truncate(200)
    members, log = members_of(runs[0]), Log(active=False)
    for chunk in (2048, 4, 1):  # all four at once, two by two, one by one
        monkeypatch.setattr(predict_slices, "_CHUNK", chunk)
        with pytest.raises(UserError, match=f"scan {names[1]}: .*; the results of the other scans are in"):
            predict_slices.predict_slices(members, listed, str(tmp_path / f"out_{chunk}"), log)
        found = rows_of(tmp_path / f"out_{chunk}" / "predictions_volumes.csv")
        assert list(found) == [names[0], *names[2:]]
        stored = rows_of(runs[0] / "fold_1" / "predictions_volumes.csv")
        for name in found.keys() & stored.keys():
            assert float(found[name]["probability_Atelectasis"]) == pytest.approx(
                float(stored[name]["probability_Atelectasis"]), abs=1e-6
            )


def test_folders_are_scans_of_their_own_name(tmp_path):
    for name in ("p1/ct/a.npy", "p2/mr/b.NPY", "p2/notes/ct/text.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [(id, scan) for id, scan, _ in predict_slices.listed_slices(str(tmp_path))] == [("a", "ct"), ("b", "mr")]
    (tmp_path / "p2/notes/ct/c.npy").write_bytes(b"")
    with pytest.raises(UserError, match="two scans are called ct: .*p1/ct and .*p2/notes/ct"):
        predict_slices.listed_slices(str(tmp_path))
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").write_bytes(b"")
    assert predict_slices.listed_volumes([f"{tmp_path}/dicom/"]) == [("dicom", f"{tmp_path}/dicom/")]


def test_volumes_are_evaluated_against_the_label_table(scans, runs, tmp_path):
    """The same numbers as the run's own; decisions and thresholds are the table's, or counted as made at 0.5."""
    labels = scans / "raw" / "multi_abnormality_labels.csv"
    kind, rows, summary = evaluate.evaluate(str(runs[0] / "fold_1"), str(labels), resamples=50)
    assert "decided_at_half" not in summary
    own = {row["metric"]: float(row["value"]) for row in files.read_csv(runs[0] / "fold_1" / "results.csv")}
    assert kind == "multilabel" and len(rows) == 8 and summary["not_predicted"]["value"] == 8
    for name in ("auroc_macro", "ap_micro", "f1_macro", "f1_macro_half", "f1_macro_common", "exact_match", "ece"):
        assert summary[name]["value"] == pytest.approx(own[f"volume_{name}"], nan_ok=True), name
    of_labels = {row["label"]: row for row in files.read_csv(runs[0] / "fold_1" / "labels.csv")}
    assert summary["auroc_Lung_nodule"]["value"] == pytest.approx(float(of_labels["Lung nodule"]["auroc"]))
    table = files.read_csv(
        runs[0] / "predictions_volumes.csv"
    )  # of the whole run: read back, its decisions are 0.0 and 1.0
    files.write_csv(
        str(tmp_path / "decided.csv"), [{k: v for k, v in row.items() if k != "threshold"} for row in table]
    )
    _, _, summary = evaluate.evaluate(str(tmp_path / "decided.csv"), str(labels), resamples=0)
    assert "f1_macro_half" in summary and "f1_macro_common" not in summary and "decided_at_half" not in summary
    del table[0]["decision_Lung_nodule"]
    files.write_csv(str(tmp_path / "blank.csv"), table)
    with pytest.raises(UserError, match="Lung nodule: got '', wanted a number"):
        evaluate.evaluate(str(tmp_path / "blank.csv"), str(labels))
    files.write_csv(
        str(tmp_path / "p.csv"), [{k: v for k, v in row.items() if k != "decision_Lung_nodule"} for row in table]
    )
    _, rows, summary = evaluate.evaluate(str(tmp_path / "p.csv"), str(labels), resamples=0)
    assert summary["decided_at_half"] == {"value": len(table), "n": len(LABELS) * len(table)}
    assert all(row["decision_Lung_nodule"] == (row["probability_Lung_nodule"] >= 0.5) for row in rows)
    short = tmp_path / "short.csv"
    short.write_text("\n".join(labels.read_text().splitlines()[:3]))
    with pytest.raises(UserError, match="no line for"):
        evaluate.evaluate(str(runs[0] / "fold_1"), str(short))
