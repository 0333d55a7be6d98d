"""Prediction from files: the stored numbers again, native space, ensembles, what is kept, and what is refused."""

import copy
import csv
import dataclasses
import importlib.util
import json
import os
import pathlib
import re
import shutil
import time

import nibabel
import numpy as np
import pytest
import torch
import yaml

from conftest import ROOT, TINY, run_command
from fomo import checkpoint, config as config_module, crossval, nets, postprocess, predict, soup, tasks, volume
from fomo.config import UserError
from fomo.data import cache, sources
from fomo.log import Log

SOURCE = {"classification": "fomo1", "segmentation": "fomo2", "regression": "fomo3"}
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def trained(tmp_path_factory, phantom_root):
    """Function: task -> the run folder of a tiny cross-validation, trained once, with a final model of another kind each."""
    done = {}
    content = {
        "data": {
            "source": "phantom",
            "cache": str(phantom_root / "cache"),
            "patch": [32, 32, 32],
            "prepare_workers": 0,
        },
        "model": {"width": 2},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 4, "steps_per_epoch": 3, "workers": 0, "patience": None},
        "augment": {"preset": "none"},
        "eval": {"bootstrap": 0, "overlap": 0.3},
    }
    special = {
        "classification": {"cv": {"final": "soup"}, "eval": {"pool_windows": "max"}},
        "segmentation": {"cv": {"final": "ensemble", "stratify": False}, "eval": {"postprocess": "auto"}},
        "regression": {"cv": {"final": "refit"}, "eval": {"mirror_axes": [0, 2]}, "data": {"cache_dtype": "float16"}},
    }

    def run(task):
        if task not in done:
            folder = tmp_path_factory.mktemp(task)
            pretrained = nets.build("unet_b_lw_dec", 1, 1, width=2)
            checkpoint.save(folder / "pretrained.pt", {"model": pretrained.state_dict()})
            mine = {
                "name": "run",
                "output": str(folder),
                "task": {"type": task},
                "weights": {"path": str(folder / "pretrained.pt")},
            }
            for name, section in content.items():
                mine[name] = {**section, **special[task].get(name, {})}
            mine["cv"] = {"folds": 2, "val_fraction": 0.25, **special[task]["cv"]}
            mine["data"].update(
                channels=TINY[task],
                root=str(phantom_root),
                phantom_cases=16,
                phantom_size=24,
                spacing_mm=[5.0, 5.0, 5.0],
            )
            (folder / "config.yaml").write_text(yaml.safe_dump(mine))
            crossval.run(config_module.load(folder / "config.yaml"))
            done[task] = folder / "run"
        return done[task]

    return run


@pytest.fixture(scope="session")
def scans(phantom_root, trained):
    """Function: task -> the folder of its phantoms, as a data set in the task's layout."""

    def root(task):
        trained(task)
        return next(phantom_root.glob(f"task{list(SOURCE).index(task) + 1}_16x24*"))

    return root


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def members_of(path, **arguments):
    return predict.load_members(predict.find_checkpoints(str(path)), CPU, **arguments)


def channel_paths(root, task, id):
    """{channel: path} of a phantom case."""
    subject, session = re.fullmatch(r"(.+)_(ses_\d+)", id).groups()
    [folder] = [
        place
        for place in root.glob(f"*/{subject}/{session}")
        if place.parts[-3] != "labels" and "masked" not in place.parts[-3]
    ]
    return {
        path.name.removesuffix(".nii.gz").removeprefix("ss_"): str(path) for path in sorted(folder.glob("*.nii.gz"))
    }


def tool(name, *arguments, root=ROOT):
    """Call main() of tools/NAME.py in this process."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", root / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


def one_line_error(done, *said):
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for text in said:
        assert text in done.stderr, done.stderr


# ------------------------------------------------------------------------------- the stored numbers


@pytest.mark.parametrize("task", SOURCE)
def test_a_folds_checkpoint_gives_its_test_cases_the_stored_numbers(trained, scans, tmp_path, task, monkeypatch, capfd):
    """To the last digit, from a copy of the checkpoint, a copy of the files and another working directory."""
    shutil.copy(trained(task) / "fold_2" / "best.pt", tmp_path / "elsewhere.pt")
    shutil.copytree(scans(task), tmp_path / "scans", ignore=shutil.ignore_patterns("labels*"))
    stored = {row["id"]: row for row in read(trained(task) / "fold_2" / "predictions.csv")}
    arguments = ["elsewhere.pt", "--source", SOURCE[task], "--root", "scans", "--ids", *stored, "--output", "out"]
    monkeypatch.chdir(tmp_path)
    if task == "segmentation":  # as a user would
        done = run_command("tools/predict.py", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        said = done.stdout
    else:
        tool("predict", *arguments)
        said = capfd.readouterr().out
    rows = read(tmp_path / "out" / "predictions.csv")
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
    case = predict.case_from_channels(TINY[task], channel_paths(scans(task), task, "sub_003_ses_1"))
    members = members_of(trained(task))
    assert [pathlib.Path(m.path).parent.name for m in members] == ["fold_1", "fold_2"]
    image, background, geometry = cache.load(case, members[0].config.data, members[0].config.task)
    parts = predict.infer(members, image, background)
    row, volumes = predict.answer(members, parts, geometry)
    if task == "classification":
        assert row["probability"] == pytest.approx(np.mean(parts))
        for thresholds, decision in (
            ((0.0, 2 * row["probability"] - 0.01), 1),
            ((0.0, 2 * row["probability"] + 0.01), 0),
        ):
            for member, threshold in zip(members, thresholds):
                member.task.state["threshold"] = threshold
            assert predict.answer(members, parts, geometry)[0]["decision"] == decision
    elif task == "regression":
        corrected = [member.task.finish([{"prediction": part}])[0]["corrected"] for member, part in zip(members, parts)]
        assert row["prediction"] == pytest.approx(np.mean(parts)) and row["corrected"] == pytest.approx(
            np.mean(corrected)
        )
        assert min(parts) != max(parts)
    else:
        native = volume.to_native((parts[0] + parts[1]) / 2, geometry)
        assert np.array_equal(volumes["probabilities"], native)
        for member in members:
            member.task.state["postprocess"] = {"fill_holes": False, "minimum_mm3": 0.0, "largest": False}
        _, volumes = predict.answer(members, parts, geometry)
        assert np.array_equal(volumes["mask"], native.argmax(0)) and volumes["mask"].dtype == np.uint8


# ------------------------------------------------------------------------------------- native space


def test_mask_and_probabilities_lie_in_the_space_of_the_input(trained, scans, tmp_path):
    """An oblique, anisotropic, flipped, scaled int16 input with a header of its own: shape, affine and header come back."""
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
    [row] = read(tmp_path / "o" / "predictions.csv")
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
    def run(fold, ids, **options):
        members = members_of(trained("classification") / fold)
        predict.predict(
            members,
            predict.cases_from_table(table(ids), TINY["classification"]),
            str(tmp_path / "out"),
            Log(),
            **options,
        )
        return {row["id"]: row for row in read(tmp_path / "out" / "predictions.csv")}

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


def test_a_bad_case_is_one_line_and_the_others_are_there(trained, table, tmp_path):
    rows = read(table(IDS))
    whole = pathlib.Path(rows[1]["flair"]).read_bytes()
    (tmp_path / "half.nii.gz").write_bytes(whole[: len(whole) // 2])
    other = nibabel.load(rows[2]["adc"])
    nibabel.save(nibabel.Nifti1Image(np.asarray(other.dataobj)[:-1], other.affine), tmp_path / "smaller.nii.gz")
    path = table(IDS, **{IDS[1]: {"flair": tmp_path / "half.nii.gz"}, IDS[2]: {"adc": tmp_path / "smaller.nii.gz"}})
    done = run_command("tools/predict.py", trained("classification"), "--cases", path, "--output", tmp_path / "out")
    one_line_error(done, "half.nii.gz", "1 more failed", IDS[2])
    assert "smaller.nii.gz" in done.stdout, "every failing case has its line in the log"
    assert [row["id"] for row in read(tmp_path / "out" / "predictions.csv")] == [IDS[0], IDS[3]]


def test_a_full_disk_leaves_nothing_partial(trained, scans, tmp_path, monkeypatch):
    members = members_of(trained("segmentation") / "fold_1")
    cases = [
        c for c in predict.cases_from_source(members[0].config, "fomo2", str(scans("segmentation"))) if c.id in IDS
    ]
    save, calls = nibabel.save, []

    def full(image, path):
        calls.append(path)
        if len(calls) == 2:
            pathlib.Path(path).write_bytes(b"half a file")
            raise OSError(28, "No space left on device")
        save(image, path)

    monkeypatch.setattr(nibabel, "save", full)
    with pytest.raises(UserError, match="No space left on device"):
        predict.predict(members, cases, str(tmp_path / "out"), Log(active=False))
    masks = sorted(os.listdir(tmp_path / "out" / "masks"))
    assert len(masks) == len(cases) - 1 and not any(name.startswith(".") for name in masks)
    assert [f"{row['id']}.nii.gz" for row in read(tmp_path / "out" / "predictions.csv")] == masks


def test_wrong_channels_are_refused_with_the_names_wanted():
    channels = ("dwi_b1000", "swi|t2s")
    case = predict.case_from_channels(channels, {"t2s": "b/t2s.nii.gz", "dwi_b1000": "a/dwi.nii.gz"})
    assert [image.path for image in case.images] == ["a/dwi.nii.gz", "b/t2s.nii.gz"] and case.id == "dwi"
    for given, said in (
        ({"dwi": "x", "swi": "y"}, "channel 'dwi' is not one of this checkpoint's, wanted dwi_b1000, swi or t2s"),
        ({"dwi_b1000": "x"}, "swi or t2s: got none"),
        ({"dwi_b1000": "x", "swi": "y", "t2s": "z"}, "got both swi and t2s"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            predict.case_from_channels(channels, given)


def test_bad_tables_are_refused(tmp_path):
    for text, said in (
        ("name,t1\na,b\n", "no column 'id'"),
        ("id,t1\n", "no lines below the header"),
        ("id,t1\na,x,y\n", "line 2: got 3 cells, wanted 2"),
        ("id,t1\na,x\na,y\n", "line 3: got the id 'a'"),
        ("id,t1\n../a,x\n", "line 2"),
        ("id,t1\na,\n", "line 2: channel t1: got none"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=re.escape(said)):
            predict.cases_from_table(str(tmp_path / "t.csv"), ("t1",))
    with pytest.raises(UserError, match="--cases: cannot read"):
        predict.cases_from_table(str(tmp_path / "none.csv"), ("t1",))


def test_checkpoints_that_do_not_fit_are_refused(trained, tmp_path):
    for path, said in ((tmp_path / "none", "no such file"), (tmp_path, "no checkpoint in it")):
        with pytest.raises(UserError, match=said):
            predict.find_checkpoints(str(path))
    with pytest.raises(UserError, match="fold 3 is not finished"):
        predict.find_checkpoints(str(trained("regression")), [3])
    assert predict.find_checkpoints(str(trained("regression")), [2]) == [
        str(trained("regression") / "fold_2" / "best.pt")
    ]
    both = [
        *predict.find_checkpoints(str(trained("regression"))),
        *predict.find_checkpoints(str(trained("classification"))),
    ]
    with pytest.raises(UserError, match="task.type=classification.*cannot predict together"):
        predict.load_members(both, CPU)
    checkpoint.save(tmp_path / "foreign.pt", {"model": {"a": torch.ones(1)}})
    with pytest.raises(UserError, match="no config, task in it"):
        members_of(tmp_path / "foreign.pt")
    content = checkpoint.load(trained("regression") / "fold_1" / "best.pt")
    content["model"].pop("decoder.fc.bias")
    checkpoint.save(tmp_path / "foreign.pt", content)
    with pytest.raises(UserError, match="weights do not fit.*decoder.fc.bias"):
        members_of(tmp_path / "foreign.pt")


def test_a_device_that_is_not_there_is_refused():
    assert predict.choose_device("cpu") == CPU
    for name in ("gpu", "cuda:77"):
        with pytest.raises(UserError, match=f"device: got {name}"):
            predict.choose_device(name)


def test_reading_network_and_writing_overlap(trained, tmp_path, monkeypatch):
    """With 50 ms each for reading and writing and 60 ms for the network, eight cases take little more than the network."""
    members = members_of(trained("classification") / "fold_1")
    cases = [sources.Case(f"c{i}", f"c{i}", (), None, None, None) for i in range(8)]
    monkeypatch.setattr(cache, "load", lambda *_: time.sleep(0.05) or (None, None, None))
    monkeypatch.setattr(predict, "infer", lambda *_: time.sleep(0.06) or [0.5])
    answer = predict.answer
    monkeypatch.setattr(predict, "answer", lambda *arguments: time.sleep(0.05) or answer(*arguments))
    start = time.perf_counter()
    predict.predict(members, cases, str(tmp_path / "out"), Log(active=False))
    assert 8 * 0.06 < time.perf_counter() - start < 8 * 0.11, "one after the other it would be 8 * 0.16 s"
    assert len(read(tmp_path / "out" / "predictions.csv")) == 8


# --------------------------------------------------------------------------- the challenge's container


@pytest.fixture(scope="session")
def container(tmp_path_factory, trained):
    """Function: task -> /app as the Dockerfile and the Apptainer definition fill it, which must be the same."""

    def build(task):
        app = tmp_path_factory.mktemp(f"app_{task}")
        run = trained(task) / "final"
        docker = re.findall(r"^COPY (\S+) /app/(\S+)$", (ROOT / "tools/Dockerfile").read_text(), re.M)
        files = re.search(r"%files\n(.*?)\n\n", (ROOT / "tools/fomo25.def").read_text(), re.S)[1]
        apptainer = re.findall(r"^ +(.+) /app/(\S+)$", files, re.M)
        assert [(s.replace("${CHECKPOINTS}", "{{ checkpoints }}"), t) for s, t in docker] == apptainer
        for source, target in docker:
            path = run if "CHECKPOINTS" in source else ROOT / source
            (app / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(
                path, app / target, ignore=shutil.ignore_patterns("__pycache__")
            ) if path.is_dir() else shutil.copy(path, app / target)
        (app / "predict.py").symlink_to("tools/predict_fomo25.py")
        return app

    return build


@pytest.mark.parametrize("task", SOURCE)
def test_the_container_answers_as_the_challenge_wants(trained, scans, container, tmp_path, task):
    paths = channel_paths(scans(task), task, "sub_002_ses_1")
    output = tmp_path / "new" / ("out.nii.gz" if task == "segmentation" else "out.txt")
    given = [text for name, path in paths.items() for text in (f"--{name}", path)]
    app = container(task)
    if task == "segmentation":
        done = run_command(app / "predict.py", *given, "--output", output, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        tool("predict_fomo25", *given, "--output", output, root=app)
    assert os.listdir(output.parent) == [output.name]
    members = members_of(trained(task) / "final")
    row = predict.predict_to_file(members, paths, str(tmp_path / output.name), Log(active=False))
    if task == "segmentation":
        mask, image = nibabel.load(output), nibabel.load(paths["flair"])
        assert (
            mask.shape == image.shape
            and np.array_equal(mask.affine, image.affine)
            and mask.get_data_dtype() == np.uint8
        )
        assert set(np.unique(mask.dataobj)) <= {0, 1} and np.asarray(mask.dataobj).sum() == row["predicted_voxels"]
    else:
        assert float(output.read_text()) == row["probability" if task == "classification" else "prediction"]


def test_the_container_refuses_in_one_line(trained, scans, container, tmp_path):
    app = container("segmentation")
    paths = channel_paths(scans("segmentation"), "segmentation", "sub_002_ses_1")
    given = [text for name, path in paths.items() for text in (f"--{name}", path)]
    one_line_error(
        run_command(app / "predict.py", *given, "--output", tmp_path / "o.txt"), "task.type=segmentation", ".nii.gz"
    )
    with pytest.raises(UserError, match="got none.*swi or t2s"):
        tool("predict_fomo25", *given[2:], "--output", tmp_path / "o.nii.gz", root=app)
    assert not list(tmp_path.iterdir())


def test_an_empty_mask_is_written_and_warned_about_and_spare_channels_are_named(trained, scans, tmp_path, capsys):
    members = members_of(trained("segmentation") / "fold_1")
    for name, parameter in members[0].network.named_parameters():
        if name.startswith("decoder.out_conv"):
            parameter.data.copy_(torch.tensor([5.0, -5.0]) if parameter.ndim == 1 else parameter * 0)
    paths = channel_paths(scans("segmentation"), "segmentation", "sub_002_ses_1")
    row = predict.predict_to_file(
        members, {**paths, "adc": "not read", "t1": "not read"}, str(tmp_path / "o.nii.gz"), Log()
    )
    assert row["predicted_voxels"] == 0 and not np.asarray(nibabel.load(tmp_path / "o.nii.gz").dataobj).any()
    said = capsys.readouterr().out
    assert "the predicted mask is empty" in said and "channels=adc,t1" in said


# ----------------------------------------------------------------------------- final models, export


def test_final_is_what_the_config_asks_for(trained, tmp_path):
    for task, kind, files in (
        ("classification", "soup", {"soup.pt"}),
        ("segmentation", "ensemble", {"fold_1.pt", "fold_2.pt"}),
        ("regression", "refit", {"best.pt"}),
    ):
        final = trained(task) / "final"
        assert json.loads((final / "final.json").read_text()) == {"kind": kind, "finished": True}
        assert {pathlib.Path(path).name for path in predict.find_checkpoints(str(final))} == files
    assert set(os.listdir(trained("regression") / "final")) == {"best.pt", "final.json", "history.csv"}
    refit = checkpoint.load(trained("regression") / "final" / "best.pt")
    assert refit["fold"] == 0 and refit["task"]["bias_correction"] is not None
    config = config_module.load(trained("classification") / "config.yaml", ["cv.final=refit"])
    with pytest.raises(UserError, match="holds the soup: delete that folder"):
        crossval.make_final(config, str(trained("classification")), [{}], {}, Log(active=False))
    half = tmp_path / "final"
    half.mkdir()
    (half / "final.json").write_text('{"kind": "refit", "finished": false}')
    with pytest.raises(UserError, match="not finished"):
        predict.find_checkpoints(str(half))


def test_post_processing_is_chosen_on_validation_cases_and_stored(trained):
    for fold in (1, 2):
        state = checkpoint.load(trained("segmentation") / f"fold_{fold}" / "best.pt")["task"]
        assert state["postprocess"] in postprocess.CANDIDATES
    config = config_module.load(trained("segmentation") / "config.yaml")
    task, seen = tasks.build(config), []

    def evaluate():
        seen.append(task._candidates)
        values = np.zeros((3, len(postprocess.CANDIDATES)))
        values[:, 5] = values[:, 7] = (0.2, 0.9, 0.4)
        return [{"candidates": row} for row in values.tolist()]

    task.calibrate(evaluate)
    assert seen == [postprocess.CANDIDATES] and task.state["postprocess"] == postprocess.CANDIDATES[5], (
        "ties: the earlier one"
    )


def test_exported_weights_load_into_plain_pytorch_and_back(trained, tmp_path):
    best = trained("segmentation") / "fold_1" / "best.pt"
    for prefix in ("", "model."):
        tool("export", best, "--output", tmp_path / "w.pt", "--prefix", prefix)
        state = torch.load(tmp_path / "w.pt", weights_only=True)
        network = nets.build("unet_b", 3, 2, width=2)
        network.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        assert all(name.startswith(prefix + ("encoder." if i < 40 else "decoder.")) for i, name in enumerate(state))
        report = checkpoint.load_weights(nets.build("unet_b", 3, 2, width=2), tmp_path / "w.pt")
        assert len(report.loaded) == len(state) == 82
    with pytest.raises(UserError, match="holds 2 checkpoints"):
        tool("export", trained("segmentation"), "--output", tmp_path / "x.pt")


def test_a_uniform_soup_is_the_mean_and_predicts_in_the_first_folds_units(trained):
    folds = [checkpoint.load(trained("regression") / f"fold_{number}" / "best.pt") for number in (1, 2)]
    assert folds[0]["task"]["scale"] != folds[1]["task"]["scale"]
    mixed = soup.average(folds)
    name = "encoder.encoder_conv2.conv1.conv.weight"
    torch.testing.assert_close(mixed["model"][name], (folds[0]["model"][name] + folds[1]["model"][name]) / 2)
    features = torch.randn(5, 32)

    def ages(content):
        head, state = content["model"], content["task"]
        return (features @ head["decoder.fc.weight"].T + head["decoder.fc.bias"]) * state["scale"] + state["mean"]

    torch.testing.assert_close(ages(mixed), (ages(folds[0]) + ages(folds[1])) / 2, rtol=1e-5, atol=1e-3)
    lines = [lambda p, c=fold["task"]["bias_correction"]: (p - c[1]) / c[0] for fold in (*folds, mixed)]
    assert lines[2](50.0) == pytest.approx((lines[0](50.0) + lines[1](50.0)) / 2)
    assert mixed["soup"] == [1, 2]


@pytest.mark.parametrize("name", ["suprem_unet3d", "resnet50", "efficientnet_b0"])
def test_a_soup_finds_the_output_layer_of_each_network(name):
    image = torch.randn(2, 1, 64, 64, 1) if name != "suprem_unet3d" else torch.randn(2, 1, 16, 16, 16)
    config = {"task": {}, "data": {}, "model": {}, "weights": {"path": "start.pt"}}
    network = nets.build(name, 1, 1, mode="regression", width=4).eval()
    folds = [
        {"model": copy.deepcopy(network.state_dict()), "config": config, "fold": i, "task": {"mean": m, "scale": s}, "subjects": ["a"]}
        for i, m, s in ((1, 40.0, 10.0), (2, 60.0, 20.0))
    ]  # one network, whose output means other ages in each fold
    mixed = soup.average(folds)
    with torch.no_grad():
        ages = [network(image) * fold["task"]["scale"] + fold["task"]["mean"] for fold in folds]
        network.load_state_dict(mixed["model"])
        torch.testing.assert_close(network(image) * 10.0 + 40.0, (ages[0] + ages[1]) / 2, rtol=1e-4, atol=1e-3)


def test_a_greedy_soup_adds_what_does_not_make_it_worse():
    def fold(number, value):
        content = {"model": {"w": torch.tensor([value])}, "fold": number, "task": {}, "subjects": [f"s{number}", "s9"]}
        return {**content, "config": {"task": {}, "data": {}, "model": {}, "weights": {"path": "start.pt"}}}

    folds = [fold(1, 1.0), fold(2, 9.0), fold(3, 3.0)]
    mixed, score = soup.greedy(folds, lambda content: -abs(float(content["model"]["w"]) - 2.0))
    assert mixed["soup"] == [1, 3] and float(mixed["model"]["w"]) == 2.0 and score == 0.0
    assert mixed["subjects"] == ["s1", "s3", "s9"]
    other = fold(2, 1.0)
    other["config"]["model"]["width"] = 3
    folds[0]["config"]["model"]["width"] = 2
    with pytest.raises(UserError, match="differ in model.width"):
        soup.average([folds[0], other])
    folds[0]["config"]["weights"]["path"] = None
    with pytest.raises(UserError, match="different random weights"):
        soup.average(folds[:1])


def test_the_command_makes_a_greedy_soup_that_predicts(trained, scans, tmp_path, capsys):
    tool("export", trained("classification"), "--soup", "greedy", "--output", tmp_path / "soup.pt")
    scores = [
        float(value) for value in re.findall(r" epoch soup=\S+ cases=\d+ val_auroc=(\S+)", capsys.readouterr().out)
    ]
    assert len(scores) == 2
    assert len(checkpoint.load(tmp_path / "soup.pt")["soup"]) == (2 if scores[1] >= scores[0] else 1)
    paths = channel_paths(scans("classification"), "classification", "sub_002_ses_1")
    row = predict.predict_to_file(members_of(tmp_path / "soup.pt"), paths, str(tmp_path / "o.txt"), Log(active=False))
    assert 0 <= row["probability"] <= 1


def test_a_dicom_folder_is_a_scan_like_any_other(tmp_path):
    case = predict.case_from_channels(("t1",), {"t1": f"{tmp_path}/scan/"})
    assert case.id == "scan" and case.images[0].path == str(tmp_path / "scan")
    checkpoint_config = config_module.Config(data=config_module.Data(source="table", csv="t.csv", channels=("t1", "t2")))
    with pytest.raises(UserError, match="--source volumes: .*t1, t2, wanted one"):
        predict.cases_from_source(checkpoint_config, "volumes", str(tmp_path))
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "1.dcm").write_bytes(b"")
    single = dataclasses.replace(checkpoint_config, data=dataclasses.replace(checkpoint_config.data, channels=("t1",)))
    assert [case.id for case in predict.cases_from_source(single, "volumes", str(tmp_path))] == ["scan"]
