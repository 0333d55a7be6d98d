"""Prediction from files: the stored numbers again, native space, ensembles, what is kept, and what is refused."""

import copy
import csv
import dataclasses
import os
import pathlib
import re
import shutil
import threading

import nibabel
import numpy as np
import pytest
import torch
from conftest import TINY, channel_paths, members_of, one_line_error, run_command, tool

from fomo import checkpoint, kinds, tasks
from fomo import config as config_module
from fomo.config import UserError, to_dict
from fomo.data import cache
from fomo.data.cases import Case
from fomo.prediction import loop, readers
from fomo.prediction.folder import PredictionFolder
from fomo.prediction.inputs import case_from_channels, cases_from_source, cases_from_table
from fomo.prediction.members import answer, choose_device, describe, find_checkpoints, infer, load_members
from fomo.runtime import files
from fomo.runtime.log import Log
from fomo.space import nifti, postprocess, volume
from fomo.tasks import Answer, Results
from fomo.training.restore import restore

SOURCE = {"classification": "fomo1", "segmentation": "fomo2", "regression": "fomo3"}
CPU = torch.device("cpu")


def predict_cases(members, cases, output, log=None, **options):
    loop.predict(readers.Cases(members, cases), PredictionFolder(output, members), log or Log(active=False), **options)


# ------------------------------------------------------------------------------- the stored numbers


@pytest.mark.parametrize("task", SOURCE)
def test_a_folds_checkpoint_gives_its_test_cases_the_stored_numbers(trained, scans, tmp_path, task, monkeypatch, capfd):
    """To the last digit, from a copy of the checkpoint, a copy of the files and another working directory."""
    shutil.copy(trained(task) / "fold_2" / "best.pt", tmp_path / "elsewhere.pt")
    shutil.copytree(scans(task), tmp_path / "scans", ignore=shutil.ignore_patterns("labels*"))
    stored = {row["id"]: row for row in files.read_csv(trained(task) / "fold_2" / "predictions.csv")}
    arguments = ["elsewhere.pt", "--source", SOURCE[task], "--root", "scans", "--ids", *stored, "--output", "out"]
    monkeypatch.chdir(tmp_path)
    if task == "segmentation":  # as a user would
        done = run_command("tools/predict.py", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        tool("predict", *arguments)
        said = capfd.readouterr().out
    assert " networks=1 device=cpu amp=off output=out" in said and "is no test" not in said
    rows = files.read_csv(tmp_path / "out" / "predictions.csv")
    assert [row["id"] for row in rows] == sorted(stored)
    names = {
        "classification": ["probability", "decision"],
        "segmentation": ["predicted_voxels"],
        "regression": ["prediction", "corrected"],
    }
    for row in rows:
        assert float(row["seconds"]) > 0
        for name in names[task]:
            assert row[name] == stored[row["id"]][name]
        if task == "segmentation":
            ours = nibabel.load(tmp_path / "out" / "masks" / f"{row['id']}.nii.gz")
            theirs = nibabel.load(trained(task) / "fold_2" / "masks" / f"{row['id']}.nii.gz")
            assert np.array_equal(np.asarray(ours.dataobj), np.asarray(theirs.dataobj)) and np.array_equal(
                ours.affine, theirs.affine
            )
    assert len(re.findall(r" predict id=\S+ .*read_s=\S+ network_s=\S+ write_s=\S+ done=\d+ of=\d+", said)) == len(rows)
    assert (tmp_path / "out" / "log.txt").read_text() in said


@pytest.mark.parametrize("task", SOURCE)
def test_all_folds_are_averaged(trained, scans, task):
    """Probabilities and ages by their mean; masks from the mean of the probabilities; thresholds by their mean."""
    case = case_from_channels(TINY[task], channel_paths(scans(task), task, "sub_003_ses_1"))
    members = members_of(trained(task))
    assert [pathlib.Path(m.path).parent.name for m in members] == ["fold_1", "fold_2"]
    image, background, geometry = cache.load(case, members[0].config.data, tasks.wanted(members[0].config))
    parts = infer(members, case, image, background)
    row, volumes = answer(members, parts, geometry)
    if task == "classification":
        assert row["probability"] == pytest.approx(np.mean(parts))
        for thresholds, decision in (
            ((0.0, 2 * row["probability"] - 0.01), 1),
            ((0.0, 2 * row["probability"] + 0.01), 0),
        ):
            for member, threshold in zip(members, thresholds):
                member.task.state["threshold"] = threshold
            assert answer(members, parts, geometry)[0]["decision"] == decision
    elif task == "regression":
        answers = [[Answer({"prediction": part})] for part in parts]
        corrected = [m.task.finish(own).rows[0]["corrected"] for m, own in zip(members, answers)]
        assert row["prediction"] == pytest.approx(np.mean(parts)) and row["corrected"] == pytest.approx(
            np.mean(corrected)
        )
        assert min(parts) != max(parts)
    else:
        first, second = (infer([member], case, image, background)[0] for member in members)
        native = volume.to_native((first + second) / 2, geometry)
        written = np.stack(list(volumes["probabilities"]))
        assert np.array_equal(written[1:], native[1:])
        outside = native.sum(0) == 0  # which the network has not seen, as it is outside the box that is kept
        assert outside.any() and np.all(written[0][outside] == 1)
        assert written.sum(0) == pytest.approx(1, abs=1e-5)
        for member in members:
            member.task.state["postprocess"] = {"fill_holes": False, "minimum_mm3": 0.0, "largest": False}
        _, volumes = answer(members, parts, geometry)
        assert np.array_equal(volumes["mask"], native.argmax(0)) and volumes["mask"].dtype == np.uint8


# ------------------------------------------------------------------------------------- native space


def test_mask_and_probabilities_lie_in_the_space_of_the_input(trained, scans, tmp_path):
    """An oblique, anisotropic, flipped, scaled int16 input with its own header: shape, affine and header come back."""
    generator = np.random.default_rng(0)
    turn = np.array([[0, -1.0, 0.1], [1.0, 0, 0], [0, 0.1, 1.0]]) @ np.diag([1.0, -1.0, 1.0])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * (3.0, 2.5, 8.0), (-40, 60, 5)
    paths = {}
    for name in ("dwi_b1000", "flair", "t2s"):
        image = nibabel.Nifti1Image(generator.integers(1, 900, (40, 50, 21)).astype(np.int16), affine)
        image.header.set_slope_inter(2.0, 7.0)
        image.header["descrip"] = b"scanner 7"
        image.set_sform(affine, 2)
        image.set_qform(None, 0)
        paths[name] = tmp_path / f"{name}.nii.gz"
        nibabel.save(image, paths[name])
    given = [f"{name}={path}" for name, path in paths.items()]
    tool(
        "predict",
        trained("segmentation") / "final",
        "--input",
        *given,
        "--id",
        "a",
        "--output",
        tmp_path / "o",
        "--probabilities",
    )
    original = nibabel.load(paths["dwi_b1000"])
    for folder, dtype in (("masks", np.uint8), ("probabilities", np.float32)):
        result = nibabel.load(tmp_path / "o" / folder / "a.nii.gz")
        assert result.shape == original.shape and np.array_equal(result.affine, original.affine)
        assert result.get_data_dtype() == dtype and (result.dataobj.slope, result.dataobj.inter) == (1, 0)
        for field in ("sform_code", "qform_code", "descrip", "xyzt_units", "pixdim"):
            assert np.array_equal(result.header[field], original.header[field]), field
    [row] = files.read_csv(tmp_path / "o" / "predictions.csv")
    assert int(row["predicted_voxels"]) == np.asarray(nibabel.load(tmp_path / "o" / "masks" / "a.nii.gz").dataobj).sum()


# --------------------------------------------------------------------- what is kept, what is refused


@pytest.fixture
def table(trained, scans, tmp_path):
    """Function: (ids, broken path or None) -> a table of classification cases."""

    def write(ids, **replaced):
        rows = []
        for id in ids:
            paths = {**channel_paths(scans("classification"), "classification", id), **replaced.get(id, {})}
            rows.append(
                {"id": id, **{name: paths.get(name, "") for name in ("dwi_b1000", "flair", "adc", "swi", "t2s")}}
            )
        with open(tmp_path / "table.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return str(tmp_path / "table.csv")

    return write


IDS = ["sub_001_ses_1", "sub_002_ses_1", "sub_003_ses_1", "sub_004_ses_1"]


def test_what_is_there_is_kept_and_other_checkpoints_are_refused(trained, table, tmp_path, capsys):
    def run(fold, ids, replaced=None, **options):
        members = members_of(trained("classification") / fold)
        cases = cases_from_table(table(ids, **(replaced or {})), members[0].config.data)
        predict_cases(members, cases, tmp_path / "out", Log(), **options)
        return {row["id"]: row for row in files.read_csv(tmp_path / "out" / "predictions.csv")}

    first = run("fold_1", IDS[:2])
    again = run("fold_1", IDS[1:])
    assert sorted(again) == IDS and again[IDS[0]] == first[IDS[0]] and again[IDS[1]] == first[IDS[1]]
    assert " kept=1 " in capsys.readouterr().out
    with pytest.raises(UserError, match="other checkpoints"):
        run("fold_2", IDS)
    over = run("fold_2", IDS[:1], overwrite=True)
    assert list(over) == IDS[:1] and over[IDS[0]]["probability"] != first[IDS[0]]["probability"]
    kept = run("fold_2", IDS[1:2])[IDS[0]]
    assert run("fold_2", IDS[1:2], overwrite=True)[IDS[0]] == kept, "only what was asked for is predicted again"
    before = (tmp_path / "out" / "predictions.csv").read_bytes()
    with pytest.raises(UserError, match="cannot read .*gone.nii.gz"):
        run("fold_2", IDS[:2], {IDS[1]: {"flair": "gone.nii.gz"}}, overwrite=True)
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == before, "what lacks a file replaces nothing"


def test_an_answer_for_other_files_of_the_same_name_is_never_kept(trained, scans, tmp_path, monkeypatch, capsys):
    """Every subject's t1.nii.gz is called so; a patient must not get another one's age."""
    output, places = tmp_path / "out", []
    for number in (1, 2):
        shutil.copytree(scans("regression") / f"preprocessed/sub_{number:03d}/ses_1", tmp_path / f"s{number}")
        places.append([f"{name}={tmp_path}/s{number}/{name}.nii.gz" for name in ("t1", "t2")])
    command = ["predict", trained("regression") / "fold_1", "--output", output, "--input"]
    tool(*command, *places[0])
    first = (output / "predictions.csv").read_bytes()
    with pytest.raises(
        UserError, match="holds an answer for t1 that is not of .*s2/t1.nii.gz as it is now: .*--overwrite"
    ):
        tool(*command, *places[1])
    assert (output / "predictions.csv").read_bytes() == first
    tool(*command, *places[0])
    assert " cases=1 kept=1 " in capsys.readouterr().out
    os.utime(tmp_path / "s1/t2.nii.gz", ns=(0, 0))
    with pytest.raises(UserError, match="s1/t1.nii.gz as it is now"):
        tool(*command, *places[0])

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(readers, "infer", stop)
        with pytest.raises(KeyboardInterrupt):
            tool(*command, *places[1], "--overwrite")
    assert not (output / "predictions.csv").exists(), "what is replaced is not there while it is"
    tool(*command, *places[1])
    [row] = files.read_csv(output / "predictions.csv")
    assert row["prediction"].encode() not in first


def test_half_precision_is_left_out_on_the_cpu_and_said(trained, tmp_path):
    content = checkpoint.load(str(trained("regression") / "fold_1" / "best.pt"))
    content["config"]["train"]["amp"] = "fp16"
    checkpoint.save(str(tmp_path / "fp16.pt"), content)
    [member] = members_of(tmp_path / "fp16.pt")
    assert member.amp == "off"
    assert describe([member]) == {"networks": 1, "device": "cpu", "amp": ["off"]}


def test_a_final_model_that_is_not_finished_or_damaged_is_refused(tmp_path):
    for text, said in (
        ('{"kind": "soup", "finished": false}', "not finished"),
        ("{", "cannot read .*final.json .*restore it"),
        ("[]", "it is a list"),
    ):
        (tmp_path / "final.json").write_text(text)
        with pytest.raises(ValueError, match=said) as caught:
            find_checkpoints(str(tmp_path))
        assert caught.value.exit_code == 2


def test_cases_that_a_checkpoint_was_trained_on_are_said(trained, scans, tmp_path, capsys):
    stored = files.read_csv(trained("classification") / "fold_2" / "predictions.csv")
    arguments = [
        "--source",
        "fomo1",
        "--root",
        scans("classification"),
        "--ids",
        stored[0]["id"],
        "--output",
        tmp_path / "out",
    ]
    tool("predict", trained("classification"), *arguments)
    warned = [line for line in capsys.readouterr().out.splitlines() if "is no test" in line]
    assert len(warned) == 1 and "fold_1/best.pt" in warned[0], "fold 2 has not seen it"
    assert f"subjects={stored[0]['subject']} of=1" in warned[0]


def test_what_would_be_ignored_is_refused(trained, tmp_path):
    run = trained("regression")
    best, both = run / "fold_1" / "best.pt", ["--input", "t1=a", "t2=b"]
    for places, options, said in (
        ([best], ["--folds", 1, *both], "--folds: got 1, and .*best.pt is no run folder"),
        ([best, best.parent], both, "best.pt: the same checkpoint as .*best.pt"),
        ([run], ["--folds", 1, 1, *both], "best.pt: the same checkpoint as .*best.pt"),
        ([best], ["--mirror", 0, 0, *both], "--mirror: got 0 0, wanted each axis once"),
        (
            [best],
            ["--input", "t1=a", "t1=b", "t2=c"],
            "--input: got t1=a t1=b t2=c, wanted CHANNEL=PATH, each channel once",
        ),
        ([best], ["--input", "t1", "t2=c"], "wanted CHANNEL=PATH"),
        ([best], ["--id", "../../evil", *both], "got the id '../../evil'"),
        ([best], ["--probabilities", *both], "--probabilities: got checkpoints of task.type=regression"),
    ):
        with pytest.raises(UserError, match=said):
            tool("predict", *places, *options, "--output", tmp_path / "out")
    for options in (
        ["--id", "x", "--cases", "t.csv"],
        ["--ids", "x", *both],
        [],
        ["--root", "x", *both],
        ["--source", "fomo3"],
    ):
        with pytest.raises(SystemExit, match="2"):
            tool("predict", best, *options, "--output", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_has_the_layout_of_the_training_where_none_is_named(trained, scans, tmp_path):
    id = files.read_csv(trained("regression") / "fold_1" / "predictions.csv")[0]["id"]
    best = trained("regression") / "fold_1" / "best.pt"  # trained on phantoms, which can be made anywhere
    tool("predict", best, "--root", scans("regression").parent, "--ids", id, "--output", tmp_path / "out")
    (tmp_path / "own").mkdir()
    with pytest.raises(UserError, match="no synthetic heads in .*own, wanted .* or other data .* --source fomo3"):
        tool("predict", best, "--root", tmp_path / "own", "--output", tmp_path / "other")
    assert not any((tmp_path / "own").iterdir()), "nothing is made there"
    assert [row["id"] for row in files.read_csv(tmp_path / "out" / "predictions.csv")] == [id]


def test_sources_that_list_a_folder_of_volumes_can_be_named(capsys):
    with pytest.raises(SystemExit, match="0"):
        tool("predict", "--help")
    assert "--source {fomo1,fomo2,fomo3,fomo4,fomo5,volumes,phantom}" in capsys.readouterr().out


def test_a_bad_case_is_one_line_and_the_others_are_there(trained, table, tmp_path):
    rows = files.read_csv(table(IDS))
    whole = pathlib.Path(rows[1]["flair"]).read_bytes()
    (tmp_path / "half.nii.gz").write_bytes(whole[: len(whole) // 2])
    other = nibabel.load(rows[2]["adc"])
    nibabel.save(nibabel.Nifti1Image(np.asarray(other.dataobj)[:-1], other.affine), tmp_path / "smaller.nii.gz")
    path = table(IDS, **{IDS[1]: {"flair": tmp_path / "half.nii.gz"}, IDS[2]: {"adc": tmp_path / "smaller.nii.gz"}})
    done = run_command("tools/predict.py", trained("classification"), "--cases", path, "--output", tmp_path / "out")
    one_line_error(done, "half.nii.gz", "1 more failed", IDS[2])
    assert "smaller.nii.gz" in done.stdout, "every failing case has its line in the log"
    assert [row["id"] for row in files.read_csv(tmp_path / "out" / "predictions.csv")] == [IDS[0], IDS[3]]


def test_a_case_that_is_too_large_for_the_gpu_is_one_line_and_the_others_are_there(
    trained, table, tmp_path, monkeypatch
):
    members = members_of(trained("classification") / "fold_1")
    infer, calls = type(members[0].task).infer, []

    def limited(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return infer(self, *arguments)

    monkeypatch.setattr(type(members[0].task), "infer", limited)
    cases = cases_from_table(table(IDS), members[0].config.data)
    with pytest.raises(
        UserError, match=rf"{IDS[1]}: out of memory on cpu: predicting case {IDS[1]} of \d+x\d+x\d+ voxels"
    ):
        predict_cases(members, cases, tmp_path / "out")
    assert [row["id"] for row in files.read_csv(tmp_path / "out" / "predictions.csv")] == [IDS[0], *IDS[2:]]


def test_a_full_disk_leaves_nothing_partial(trained, scans, tmp_path, monkeypatch):
    members = members_of(trained("segmentation") / "fold_1")
    cases = [c for c in cases_from_source(members[0].config, "fomo2", str(scans("segmentation"))) if c.id in IDS]
    save, calls = nifti._save, []

    def full(image, volumes, path):
        calls.append(path)
        if len(calls) == 2:
            pathlib.Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        save(image, volumes, path)

    monkeypatch.setattr(nifti, "_save", full)
    with pytest.raises(UserError, match="No space left on device"):
        predict_cases(members, cases, tmp_path / "out")
    masks = sorted(os.listdir(tmp_path / "out" / "masks"))
    assert len(masks) == len(cases) - 1 and not any(name.startswith(".") for name in masks)
    assert [f"{row['id']}.nii.gz" for row in files.read_csv(tmp_path / "out" / "predictions.csv")] == masks


def test_checkpoints_that_do_not_fit_are_refused(trained, tmp_path):
    for path, said in ((tmp_path / "none", "no such file"), (tmp_path, "no checkpoint in it")):
        with pytest.raises(UserError, match=said):
            find_checkpoints(str(path))
    with pytest.raises(UserError, match="fold 3 is not finished"):
        find_checkpoints(str(trained("regression")), [3])
    assert find_checkpoints(str(trained("regression")), [2]) == [str(trained("regression") / "fold_2" / "best.pt")]
    both = [*find_checkpoints(str(trained("regression"))), *find_checkpoints(str(trained("classification")))]
    with pytest.raises(UserError, match="task.type=classification.*cannot predict together"):
        load_members(both, CPU)
    checkpoint.save(tmp_path / "foreign.pt", {"model": {"a": torch.ones(1)}})
    with pytest.raises(UserError, match="no config, task, subjects in it"):
        members_of(tmp_path / "foreign.pt")
    content = checkpoint.load(trained("regression") / "fold_1" / "best.pt")
    content["model"].pop("decoder.fc.bias")
    checkpoint.save(tmp_path / "foreign.pt", content)
    with pytest.raises(UserError, match="weights do not fit.*decoder.fc.bias"):
        members_of(tmp_path / "foreign.pt")
    name, _ = content["task"].popitem()
    checkpoint.save(tmp_path / "old.pt", content)
    with pytest.raises(UserError, match=f"no {name} in what was fitted, as an earlier version .* train again"):
        members_of(tmp_path / "old.pt")


def test_of_an_earlier_version_a_mask_is_as_deeply_supervised_as_its_weights_say(tiny_config):
    config = kinds.load(tiny_config("segmentation"))  # whose model.deep_supervision=auto once was true
    task, deep = tasks.build(config), dataclasses.replace(config.model, deep_supervision=True)
    for made in (dataclasses.replace(config, model=deep), config):
        network = tasks.build_network(made, task)
        content = {"model": network.state_dict(), "config": to_dict(config), "task": task.state, "calibrated": True}
        for asked in (None, config):
            found, own = restore(copy.deepcopy(content), "old.pt", asked)[2].state_dict(), content["model"]
            assert found.keys() == own.keys() and all(torch.equal(found[name], own[name]) for name in own)


def test_a_device_that_is_not_there_is_refused():
    assert choose_device("cpu") == CPU
    for name in ("gpu", "cuda:77"):
        with pytest.raises(UserError, match=f"device: got {name}"):
            choose_device(name)


def test_reading_network_and_writing_overlap(trained, tmp_path, monkeypatch):
    """While the network is at a case, the next one is read and the one before is written."""
    members = members_of(trained("classification") / "fold_1")
    cases = [Case(f"c{i}", f"c{i}", (), None, None, None) for i in range(8)]
    read, written = ([threading.Event() for _ in cases] for _ in range(2))
    waited = []

    def load(case, *_):
        read[int(case.id[1:])].set()
        return int(case.id[1:]), None, int(case.id[1:])

    def see(members, case, index, background):
        beside = [*read[index + 1 : index + 2], *written[:index][-1:]]
        waited.append(all(event.wait(30) for event in beside))
        return [0.5]

    def write(members, parts, index):
        written[index].set()
        return answer(members, parts, None)

    for name, function in (("infer", see), ("answer", write)):
        monkeypatch.setattr(readers, name, function)
    monkeypatch.setattr(cache, "load", load)
    predict_cases(members, cases, tmp_path / "out")
    assert waited == [True] * 8
    assert len(files.read_csv(tmp_path / "out" / "predictions.csv")) == 8


def test_a_dicom_folder_is_a_scan_like_any_other(tmp_path):
    case = case_from_channels(("t1",), {"t1": f"{tmp_path}/scan/"})
    assert case.id == "scan" and case.images[0].path == str(tmp_path / "scan")
    checkpoint_config = config_module.Config(
        data=config_module.Data(source="table", csv="t.csv", channels=("t1", "t2"))
    )
    with pytest.raises(UserError, match="--source volumes: .*t1, t2, wanted one"):
        cases_from_source(checkpoint_config, "volumes", str(tmp_path))
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "1.dcm").write_bytes(b"")
    single = dataclasses.replace(checkpoint_config, data=dataclasses.replace(checkpoint_config.data, channels=("t1",)))
    assert [case.id for case in cases_from_source(single, "volumes", str(tmp_path))] == ["scan"]


def test_post_processing_is_chosen_on_validation_cases_and_stored(trained):
    for fold in (1, 2):
        state = checkpoint.load(trained("segmentation") / f"fold_{fold}" / "best.pt")["task"]
        assert state["postprocess"] in postprocess.CANDIDATES
    config = kinds.load(trained("segmentation") / "config.yaml")
    task, seen = tasks.build(config), []

    def evaluate():
        seen.append(task._candidates)
        values = np.zeros((3, len(postprocess.CANDIDATES)))
        values[:, 5] = values[:, 7] = (0.2, 0.9, 0.4)
        return Results([], kept=values.tolist())

    task.calibrate(evaluate)
    assert seen == [postprocess.CANDIDATES] and task.state["postprocess"] == postprocess.CANDIDATES[5], (
        "ties: the earlier one"
    )
