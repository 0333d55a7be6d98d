"""From CT volumes to findings: extract, train, evaluate, and predict slices and volumes with one and two networks."""

import dataclasses
import pathlib
import re
import shutil
import threading

import nibabel
import numpy as np
import pytest
import torch
from conftest import run_command, tool
from report_runs import needs_figures, shown

from fomo import kinds
from fomo.config import UserError
from fomo.data import ct, extract
from fomo.data.cases import Volume
from fomo.data.phantoms import chests
from fomo.evaluation import evaluate
from fomo.prediction import loop, readers
from fomo.prediction.folder import PredictionFolder
from fomo.prediction.inputs import Scan, listed_slices, listed_volumes
from fomo.prediction.members import choose_device, find_checkpoints, load_members
from fomo.runs import crossval
from fomo.runtime import files
from fomo.runtime.log import Log
from fomo.training import optimization

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
            crossval.run(kinds.load(scans / f"{name}.yaml"))
        folders.append(scans / "runs" / name)
    return folders


def rows_of(path):
    return {row["id"]: row for row in files.read_csv(path)}


def members_of(*folders):
    paths = [path for folder in folders for path in find_checkpoints(str(folder / "fold_1"))]
    return load_members(paths, choose_device("cpu"))


def predict_slices(members, scans, output, log, **options):
    loop.predict(readers.Slices(members, scans), PredictionFolder(output, members), log, **options)


def predict_volumes(members, scans, output, log, **options):
    loop.predict(readers.Volumes(members, scans), PredictionFolder(output, members), log, **options)


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


@needs_figures
@pytest.mark.parametrize("index", (0, 1))
def test_the_page_has_the_slices_of_each_scan(runs, index):
    """Each scan's as one plane of three slices and one channel, also where a slice is repeated in three."""
    folder = runs[index]
    found = shown(str(folder))
    scans = rows_of(folder / "predictions_volumes.csv")
    text = (folder / "report.html").read_text()
    assert text.count('<details name="case">') == len(scans) and all(f"<summary>{id}</summary>" in text for id in scans)
    assert text.count('type="range"') == text.count('max="2"') == text.count("axial</figcaption>") == len(scans)
    assert f'<b style="top:0%">{("ct", "r")[index]}</b>' in text and "top:33" not in text
    assert "coronal" not in text and "Up to" in found.text and "the cache" not in found.text


@needs_figures
def test_the_page_says_that_the_table_of_the_slices_is_gone(scans, runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "moved")
    config = (tmp_path / "moved" / "config.yaml").read_text()
    (tmp_path / "moved" / "config.yaml").write_text(config.replace("all_slices.csv", "gone.csv"))
    assert "gone.csv does not lead to them" in shown(str(tmp_path / "moved")).text


def test_predictions_equal_the_evaluation_from_files_and_from_volumes(scans, runs, tmp_path):
    members, log = members_of(runs[0]), Log(active=False)
    stored, stored_volumes = (
        rows_of(runs[0] / "fold_1" / name) for name in ("predictions.csv", "predictions_volumes.csv")
    )
    listed = listed_slices(str(scans / "out" / "splits" / "all_slices.csv"))
    predict_slices(members, [scan for scan in listed if set(scan.slices) <= set(stored)], str(tmp_path / "a"), log)
    wanted = next(iter(stored_volumes))
    volumes = listed_volumes([str(scans / "raw" / "volumes" / wanted)])
    predict_volumes(members, volumes, str(tmp_path / "b"), log)
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
    volumes = listed_volumes([str(path) for path in sorted((scans / "raw" / "volumes").iterdir())[:3]])
    listed = [
        scan
        for scan in listed_slices(str(scans / "out" / "splits" / "all_slices.csv"))
        if scan.id in [volume.id for volume in volumes]
    ]
    read = readers.Volumes.read

    def stop(self, scan):
        if scan.id == volumes[1].id:
            raise KeyboardInterrupt
        return read(self, scan)

    with monkeypatch.context() as patch:
        patch.setattr(readers.Volumes, "read", stop)
        with pytest.raises(KeyboardInterrupt):
            predict_volumes(members, volumes, str(tmp_path / "a"), log)
    assert list(rows_of(tmp_path / "a" / "predictions_volumes.csv")) == [volumes[0].id]
    predict_volumes(members, volumes, str(tmp_path / "a"), log)
    assert " volumes=3 kept=1 " in capsys.readouterr().out
    predict_volumes(members, volumes, str(tmp_path / "b"), log)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name

    first = dataclasses.replace(listed[0], slices=listed[0].slices[1:], images=listed[0].images[1:])
    predict_slices(members, [first, *listed[1:]], str(tmp_path / "c"), log)
    part = rows_of(tmp_path / "c" / "predictions.csv")
    predict_slices(members, listed, str(tmp_path / "c"), log)
    assert " slices=9 kept=6 " in capsys.readouterr().out, "the scan with another slice is predicted again"
    whole = rows_of(tmp_path / "c" / "predictions.csv")
    assert (
        len(part) == 8
        and len(whole) == 9
        and all(whole[id] == row for id, row in part.items() if row["scan"] != listed[0].id)
    )
    assert {row["slices"] for row in files.read_csv(tmp_path / "c" / "predictions_volumes.csv")} == {"3"}

    with pytest.raises(UserError, match="other checkpoints"):
        predict_volumes(members_of(runs[1]), volumes, str(tmp_path / "a"), log)
    predict_volumes(members_of(runs[1]), volumes[:1], str(tmp_path / "a"), log, overwrite=True)
    assert list(rows_of(tmp_path / "a" / "predictions_volumes.csv")) == [volumes[0].id]
    copy = shutil.copy(volumes[0].images[0].path, tmp_path / volumes[0].id)
    with pytest.raises(UserError, match=f"holds an answer for {volumes[0].id} that is not of {copy}"):
        predict_volumes(members, listed_volumes([str(copy)]), str(tmp_path / "b"), log)
    paths = [shutil.copy(image.path, tmp_path) for image in listed[0].images]
    moved = dataclasses.replace(listed[0], images=tuple(Volume(str(path)) for path in paths))
    with pytest.raises(UserError, match="holds an answer for .* that is not of"):
        predict_slices(members, [moved], str(tmp_path / "c"), log)
    before = (tmp_path / "c" / "predictions_volumes.csv").read_bytes()
    with pytest.raises(UserError, match="cannot read .*gone.npy"):
        predict_slices(
            members,
            [*listed, Scan("gone", "gone", (Volume("gone.npy"),), ("gone",))],
            str(tmp_path / "c"),
            log,
            overwrite=True,
        )
    assert (tmp_path / "c" / "predictions_volumes.csv").read_bytes() == before, "what lacks a file replaces nothing"
    with pytest.raises(UserError, match="2 volumes are called"):
        listed_volumes([volumes[0].images[0].path] * 2)


def test_networks_of_other_channels_are_averaged_and_each_is_built_from_its_own_checkpoint(scans, runs, tmp_path):
    wanted = str(scans / "raw" / "volumes" / next(iter(rows_of(runs[0] / "predictions_volumes.csv"))))
    for name, members in (("1", members_of(runs[0])), ("2", members_of(runs[1])), ("both", members_of(*runs))):
        predict_volumes(members, listed_volumes([wanted]), str(tmp_path / name), Log(active=False))
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
        predict_volumes(members, listed_volumes([str(tmp_path / "bad.nii.gz"), str(good)]), str(tmp_path / "o"), log)
    assert list(rows_of(tmp_path / "o" / "predictions_volumes.csv")) == [good.name]


def test_a_scan_with_a_damaged_slice_is_named_and_the_others_are_there(scans, runs, tmp_path, monkeypatch):
    listed = []
    for folder in sorted((scans / "out" / "slices").iterdir())[:4]:
        shutil.copytree(folder, tmp_path / "in" / folder.name)
    listed = listed_slices(str(tmp_path / "in"))
    names = [scan.id for scan in listed]
    bad = listed[1].images[0].path
    with open(bad, "r+b") as file:
        file.truncate(200)
    members, log = members_of(runs[0]), Log(active=False)
    for chunk in (64, 6, 1):  # all four at once, two by two, one by one
        monkeypatch.setattr(readers.Slices, "together", chunk)
        with pytest.raises(UserError, match=f"scan {names[1]}: .*; the results of the other scans are in"):
            predict_slices(members, listed, str(tmp_path / f"out_{chunk}"), log)
        found = rows_of(tmp_path / f"out_{chunk}" / "predictions_volumes.csv")
        assert list(found) == [names[0], *names[2:]]
        stored = rows_of(runs[0] / "fold_1" / "predictions_volumes.csv")
        for name in found.keys() & stored.keys():
            assert float(found[name]["probability_Atelectasis"]) == pytest.approx(
                float(stored[name]["probability_Atelectasis"]), abs=1e-6
            )


def _ways(scans, name):
    """The options by which a volume of the phantoms is predicted: itself, or the folder of its slices."""
    return (
        ("--volumes", scans / "raw" / "volumes" / name),
        ("--slices", scans / "out" / "slices" / name.removesuffix(".nii.gz")),
    )


def test_patients_that_a_checkpoint_was_trained_on_are_said(scans, runs, tmp_path, capsys):
    [member] = members_of(runs[0])
    tested = set(rows_of(runs[0] / "fold_1" / "predictions_volumes.csv"))
    known = next(path.name for path in sorted((scans / "raw" / "volumes").iterdir()) if path.name not in tested)
    patient = re.match("[a-z]+_[0-9]+", known)[0]
    assert patient in member.subjects
    for name, said in ((known, [f"subjects={patient} of=1 path={member.path}"]), (min(tested), [])):
        for option, place in _ways(scans, name):
            tool("predict", runs[0] / "fold_1", option, place, "--output", tmp_path / f"{option}_{name}")
            lines = [line for line in capsys.readouterr().out.splitlines() if " WARN " in line]
            assert [re.search("subjects=.*", line)[0] for line in lines if "is no test" in line] == said, option
    rows = [row for row in files.read_csv(scans / "out" / "splits" / "all_slices.csv") if row["volume_name"] == known]
    for row in rows:
        row["file_path"] = str(scans / "out" / "splits" / row["file_path"])
        row.update(volume_name="anonymous", patient=patient)
    files.write_csv(str(tmp_path / "table.csv"), rows)
    assert [scan.subject for scan in listed_slices(str(tmp_path / "table.csv"))] == [patient]
    files.write_csv(str(tmp_path / "table.csv"), [*rows[:-1], {**rows[-1], "patient": "another"}])
    with pytest.raises(UserError, match=f"scan anonymous: got the patients another, {patient}, wanted one"):
        listed_slices(str(tmp_path / "table.csv"))


def test_doubts_about_libraries_are_said_whatever_is_predicted(scans, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(optimization, "doubts", lambda device, *networks: ["cuDNN 9.9: is wrong"])
    for option, place in _ways(scans, next(iter(rows_of(runs[0] / "predictions_volumes.csv")))):
        tool("predict", runs[0] / "fold_1", option, place, "--output", tmp_path / option)
        assert 'WARN warn message="cuDNN 9.9: is wrong"' in capsys.readouterr().out


def test_volumes_without_geometry_are_said_and_slices_have_none(scans, runs, tmp_path, capsys):
    path = next(iter(sorted((scans / "raw" / "volumes").iterdir())))
    array = np.asarray(nibabel.load(path).dataobj)
    np.save(tmp_path / "v.npy", array.repeat(-(-200 // len(array)), 0).repeat(-(-200 // array.shape[1]), 1))
    predict_volumes(members_of(runs[0]), listed_volumes([str(tmp_path / "v.npy")]), str(tmp_path / "a"), Log())
    assert ".npy files have no orientation and voxel size" in capsys.readouterr().out
    place = next((scans / "out" / "slices").iterdir())
    predict_slices(members_of(runs[0]), listed_slices(str(place)), str(tmp_path / "b"), Log())
    assert ".npy files" not in capsys.readouterr().out


class Greedy(torch.nn.Module):
    """A network that does not fit from its call number `fails` on, `times` times."""

    def __init__(self, network, fails, times=1):
        super().__init__()
        self.network, self.fails, self.calls = network, range(fails, fails + times), 0

    def forward(self, batch):
        self.calls += 1
        if self.calls in self.fails:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.network(batch)


def greedy(members, *arguments):
    return [dataclasses.replace(member, network=Greedy(member.network, *arguments)) for member in members]


def test_what_does_not_fit_the_memory_is_one_line_and_the_others_are_there(scans, runs, tmp_path, monkeypatch):
    places = [str(path) for path in sorted((scans / "raw" / "volumes").iterdir())[:3]]
    volumes, names = listed_volumes(places), [pathlib.Path(place).name for place in places]
    said = "out of memory on cpu: predicting 3 slices of 64x64 pixels at once does not fit: free the device"
    with pytest.raises(UserError, match=f"volume {names[1]}: {said}.*; the results of the other volumes are in"):
        predict_volumes(greedy(members_of(runs[0]), 2), volumes, str(tmp_path / "a"), Log(active=False))
    monkeypatch.setattr(readers.Slices, "together", 3)
    listed = listed_slices(str(scans / "out" / "splits" / "all_slices.csv"))
    listed = [scan for scan in listed if scan.id in names]
    with pytest.raises(UserError, match=f"scan {listed[1].id}: {said}.*; the results of the other scans are in"):
        predict_slices(greedy(members_of(runs[0]), 2), listed, str(tmp_path / "b"), Log(active=False))
    for folder in "ab":
        assert list(rows_of(tmp_path / folder / "predictions_volumes.csv")) == [names[0], names[2]]


def test_nothing_of_other_checkpoints_stays_when_all_of_the_new_ones_fails(scans, runs, tmp_path):
    volumes = listed_volumes([str(path) for path in sorted((scans / "raw" / "volumes").iterdir())[:2]])
    predict_volumes(members_of(runs[0]), volumes, str(tmp_path), Log(active=False))
    assert len(list(tmp_path.glob("predictions*"))) == 3
    with pytest.raises(UserError, match="1 more failed"):
        predict_volumes(greedy(members_of(runs[1]), 1, 2), volumes, str(tmp_path), Log(active=False), overwrite=True)
    assert not list(tmp_path.glob("predictions*"))


def test_volumes_are_read_while_the_networks_are_at_others(scans, runs, tmp_path, monkeypatch):
    volumes = listed_volumes([str(path) for path in sorted((scans / "raw" / "volumes").iterdir())[:4]])
    read, done, waited = readers.Volumes.read, [threading.Event() for _ in volumes], []
    infer = readers.Volumes.infer

    def note(self, scan):
        content = read(self, scan)
        done[volumes.index(scan)].set()
        return content

    def wait(self, contents):
        next_one = volumes.index(contents[0][0]) + 1
        waited.append(all(event.wait(30) for event in done[next_one : next_one + 1]))
        return infer(self, contents)

    monkeypatch.setattr(readers.Volumes, "read", note)
    monkeypatch.setattr(readers.Volumes, "infer", wait)
    predict_volumes(members_of(runs[0]), volumes, str(tmp_path), Log(active=False))
    assert waited == [True] * 4


def test_networks_of_volumes_are_refused_for_slices_and_the_other_way_round(scans, runs, trained, tmp_path):
    volume = next((scans / "raw" / "volumes").iterdir())
    for option, place in _ways(scans, volume.name):
        with pytest.raises(UserError, match="got a network of data.source=phantom, wanted one of slices"):
            tool("predict", trained("regression") / "fold_1", option, place, "--output", tmp_path / "out")
    with pytest.raises(UserError, match="networks that see slices: wanted --slices or --volumes"):
        tool("predict", runs[0] / "fold_1", "--input", f"ct={volume}", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_are_scans_of_their_own_name(tmp_path):
    for name in ("p1/ct/a.npy", "p2/mr/b.NPY", "p2/notes/ct/text.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [(*scan.slices, scan.id) for scan in listed_slices(str(tmp_path))] == [("a", "ct"), ("b", "mr")]
    (tmp_path / "p2/notes/ct/c.npy").write_bytes(b"")
    with pytest.raises(UserError, match="two scans are called ct: .*p1/ct and .*p2/notes/ct"):
        listed_slices(str(tmp_path))
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").write_bytes(b"")
    [scan] = listed_volumes([f"{tmp_path}/dicom/"])
    assert (scan.id, scan.images) == ("dicom", (Volume(f"{tmp_path}/dicom/"),))


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
