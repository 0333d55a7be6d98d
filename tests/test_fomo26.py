"""FOMO26 from end to end on synthetic heads: its layouts are learned, its containers answer as it checks them."""

import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time

import nibabel
import numpy as np
import pytest
import yaml
from conftest import GUARD, ROOT, close_image, members_of, one_line_error, run_command, run_image, tool

from fomo import kinds
from fomo.config import UserError
from fomo.prediction import budget, challenge, single
from fomo.runs import board, crossval
from fomo.runs import challenge as ranking
from fomo.runtime import files
from fomo.runtime.log import Log

TASKS = (1, 2, 3, 4, 5)
# as the validator spells them, and what it wants
FLAGS = {1: "flair dwi adc swi", 2: "flair dwi t2s", 3: "t1", 4: "t2", 5: "t1", 6: "input"}
OTHER_FLAGS = {1: "flair dwi_b1000 adc t2s", 2: "flair dwi_b1000 swi", 3: "t1w", 4: "t2w", 5: "t1w"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Function: task -> its run folder, from configs/fomo26/demo_taskN.yaml, smaller; a wider network is not needed."""
    folder, done = tmp_path_factory.mktemp("fomo26"), {}
    tiny = ["phantom_cases=16", "phantom_size=24", "spacing_mm=[8,8,8]", "prepare_workers=0", "patch=[64,32,32]"]
    tiny = [f"data.{text}" for text in tiny]
    tiny += ["model.name=resenc_unet_s", "model.width=2", "train.epochs=1", "train.steps_per_epoch=2", "optim.lr=1e-3"]
    tiny += ["augment.preset=none", "eval.bootstrap=20", "cv.folds=2", "cv.val_fraction=0.25", "train.amp=off"]

    def run(task):
        if task not in done:
            places = [f"output={folder}", f"data.root={folder}/phantoms", f"data.cache={folder}/cache"]
            more = ["cv.stratify=false", "eval.mirror_axes=[0]"] if task in (2, 4) else []
            more += ["task.evidence=none", "model.deep_supervision=false"] if task == 1 else []
            crossval.run(kinds.load(ROOT / f"configs/fomo26/demo_task{task}.yaml", [*tiny, *places, *more]))
            done[task] = folder / f"demo_fomo26_task{task}"
        return done[task]

    return run


def scan(path, shape=(32, 32, 16), seed=0):
    """Noise, as the validator's own scans are, with an origin and voxels of its own."""
    array = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[:3, 3] = 10, 20, -5
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return str(path)


def call(folder, names):
    """The arguments of a container for scans in a folder."""
    return [
        text
        for seed, name in enumerate(names.split())
        for text in (f"--{name}", scan(folder / f"{name}.nii.gz", seed=seed))
    ]


def output_of(task):
    return "out.nii.gz" if task in (2, 4) else "out.npy" if task == 6 else "out.txt"


def validate(task, path, inputs):
    """The checks of the challenge's validator, in its order (fomo26/container_templates)."""
    assert path.stat().st_size > 0
    if task == 6:
        vector = np.load(path, allow_pickle=False)
        assert vector.squeeze().ndim == 1 and vector.dtype == np.float32 and np.isfinite(vector).all()
        return
    if task in (2, 4):
        image = nibabel.load(path)
        assert isinstance(image, nibabel.Nifti1Image)
        assert np.isfinite(image.affine).all() and image.affine.any()
        array = np.asanyarray(image.dataobj)
        assert array.ndim == 3 and np.issubdtype(array.dtype, np.integer)
        assert array.shape in [nibabel.load(source).shape for source in inputs]
        assert array.min() >= 0 and array.max() <= {2: 1, 4: 2}[task]
        return array
    (word,) = path.read_bytes().decode("utf-8").split()
    value = float(word)
    assert math.isfinite(value) and (task == 3 or 0 <= value <= 1)
    return value


@pytest.mark.parametrize("task", TASKS)
def test_each_task_is_trained_and_answered_in_both_spellings(runs, tmp_path, task):
    run, answers = runs(task), []
    for names in (FLAGS[task], OTHER_FLAGS[task]):
        folder = tmp_path / names.split()[-1]
        folder.mkdir()
        arguments, output = call(folder, names), folder / "answer" / output_of(task)
        tool("predict_fomo26", "--task", task, *arguments, "--output", output, "--checkpoints", run / "fold_1")
        answers.append(validate(task, output, arguments[1::2]))
        assert os.listdir(output.parent) == [output.name]
    assert np.array_equal(*answers), "the same scans by another name"


def test_three_classes_have_their_names_in_all_tables(runs):
    run = runs(4)
    rows = files.read_csv(run / "predictions.csv", "id")
    assert {"dice", "dice_nerve", "dice_vessels", "surface_dice_nerve", "hd95_vessels"} <= set(rows[0])
    results = (run / "aggregated_results.csv").read_text()
    assert "dice_nerve" in results and "dice_vessels" in results
    report = (run / "report.html").read_text()
    assert "Dice, nerve" in report and "surface Dice, vessels" in report
    assert {int(path.name[4:7]) for path in run.glob("fold_*/masks/*.nii.gz")} == set(range(1, 16))
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["task"]["class_names"] == ["nerve", "vessels"]
    found = board.Board(["a"], {})
    found.add_runs("task4", ranking.TASKS[4], {"a": str(run)})
    for row in found.scores:
        values = np.array([float(line[row["metric"]]) for line in rows])
        assert row["value"] == pytest.approx(values[np.isfinite(values)].mean()), row
        assert row["cases"] == np.isfinite(values).sum()
    assert [row["metric"] for row in found.scores] == ["fomo26_dice", "fomo26_nsd", "dice", "surface_dice"]


def test_a_run_scores_masks_as_the_challenge_does(runs, tmp_path):
    run, scores = runs(4), tmp_path / "scores"
    [root] = run.parent.glob("phantoms/fomo26_task4_16x24*")
    places = "--predictions", run, "--references", root, "--output", scores
    tool("evaluate", *places, "--challenge", "fomo26", "--bootstrap", 0)
    wanted = {row["id"]: row for row in files.read_csv(scores / "evaluation_cases.csv", "id")}
    names = [f"fomo26_{metric}{ending}" for metric in ("dice", "nsd") for ending in ("", "_nerve", "_vessels")]
    for row in files.read_csv(run / "predictions.csv", "id"):
        assert [float(row[name]) for name in names] == pytest.approx([float(wanted[row["id"]][name]) for name in names])
    pairs = [(row["fomo26_nsd_vessels"], row["surface_dice_vessels"]) for row in wanted.values()]
    assert any(own != ours for own, ours in pairs), "of another surface"


def test_predict_and_evaluate_read_the_layout(runs, tmp_path):
    run = runs(4)
    root = next(run.parent.glob("phantoms/fomo26_task4_16x24*"))
    shutil.copytree(root, tmp_path / "Task_4" / "Task_4")
    tool("predict", run, "--source", "fomo4", "--root", tmp_path / "Task_4", "--output", tmp_path / "answers")
    places = (
        "--predictions",
        tmp_path / "answers",
        "--references",
        tmp_path / "Task_4",
        "--output",
        tmp_path / "scores",
    )
    tool("evaluate", *places, "--challenge", "fomo26", "--bootstrap", 0)
    rows = files.read_csv(tmp_path / "scores" / "evaluation_cases.csv", "id")
    assert len(rows) == 16 and {"dice_nerve", "fomo26_dice_nerve", "fomo26_nsd_vessels", "fomo26_nsd"} <= set(rows[0])


# ------------------------------------------------------------------------------------------- the container


@pytest.fixture(scope="module")
def image(runs):
    """Function: task -> the folder that tools/fomo26.def makes, which anybody may read and nobody may change."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fomo26-", dir="/tmp"))
    folder.chmod(0o755)

    def build(task):
        root = folder / f"task{task}"
        if not root.exists():
            definition = (ROOT / "tools" / "fomo26.def").read_text()
            for source, target in re.findall(r"^ +(\S+|\{\{ checkpoints \}\}) /app/(\S+)$", definition, re.M):
                path = runs(3 if task == 6 else task) / "fold_1" / "best.pt" if "{" in source else ROOT / source
                place = root / "app" / target / ("best.pt" if "{" in source else "")
                place.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copytree if path.is_dir() else shutil.copy)(path, place)
            (root / "app" / "predict.py").symlink_to("tools/predict_fomo26.py")
            close_image(root)
        return root

    yield build
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("task", (1, 4, 6))
def test_the_container_runs_as_anybody_without_network_home_or_a_place_to_write(image, task):
    root = image(task)
    with tempfile.TemporaryDirectory(prefix="fomo26-", dir="/tmp") as place:
        place = pathlib.Path(place)
        place.chmod(0o755)
        arguments = call(place, FLAGS[task])
        (place / "output").mkdir()
        (place / "output").chmod(0o777)
        output = place / "output" / output_of(task)
        done = run_image(root, place / "output", *arguments, "--output", output, FOMO26_TASK=str(task))
        assert done.returncode == 0, (done.stdout, done.stderr)
        validate(task, output, arguments[1::2])
        assert os.listdir(output.parent) == [output.name]


def test_the_guard_of_this_test_sees_what_it_forbids(tmp_path):
    (tmp_path / "guard.py").write_text(textwrap.dedent(GUARD))
    for line in ("import socket; socket.socket()", f"open({str(tmp_path / 'x')!r}, 'w')", "import os; os.mkdir('y')"):
        (tmp_path / "tool.py").write_text(line)
        command = [sys.executable, "guard.py", str(tmp_path / "output"), "tool.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert "forbidden" in done.stderr, (line, done.stderr)


def test_the_definition_differs_from_that_of_fomo25_in_tool_and_task_only():
    first, second = ((ROOT / "tools" / f"fomo{edition}.def").read_text() for edition in (25, 26))

    def section(text, name):
        return re.sub(r"#.*", "", re.search(rf"%{name}\n(.*?)(\n\n|\Z)", text, re.S)[1]).split()

    for name in ("files", "post", "runscript"):
        one, other = section(first.replace("predict_fomo25", "predict_fomo26"), name), section(second, name)
        same = (
            one.index("python") + 2 if name == "post" else None
        )  # the last line loads the checkpoints as the task needs
        assert one[:same] == other[:same]
    assert set(section(second, "environment")) - set(section(first, "environment")) == {"FOMO26_TASK={{", "task", "}}"}
    needed = (ROOT / "requirements.txt").read_text().split()
    needed = [name for name in needed if not name.startswith(("torch", "matplotlib"))]
    assert re.findall(r'"([^" ]+)"', re.search("pip install.*", second)[0]) == needed


# ------------------------------------------------------------------------------------------------- mistakes


def test_what_does_not_fit_the_task_is_refused_in_one_line(runs, tmp_path):
    arguments = [*call(tmp_path, "t2"), "--output", tmp_path / "o.nii.gz", "--checkpoints", runs(4) / "fold_1"]
    done = run_command("tools/predict_fomo26.py", "--task", 2, *call(tmp_path, "flair"), *arguments[2:])
    one_line_error(done, "--task: got 2", "answers mask of 3 classes", "wanted checkpoints of mask of 2 classes")
    for task, said in (
        (9, "--task: got 9, wanted one of 1, 2, 3, 4, 5, 6, 7"),
        (1, "--t2: task 1 has no such channel, wanted --flair, --dwi, --adc, --swi, --t2s"),
    ):
        with pytest.raises(UserError, match=said):
            tool("predict_fomo26", "--task", task, *arguments)
    with pytest.raises(UserError, match="--t2 and --t2w: got both"):
        tool("predict_fomo26", "--task", 4, *arguments, *call(tmp_path, "t2w"))
    one = call(tmp_path, "t1")
    for wrong, said in (
        (["--task", 8, "--input", one[1]], "--task: got 8, wanted one of 1, 2, 3, 4, 5, 6, 7"),
        (["--task", 3, "--input", one[1]], "--task: got 3 with --input, wanted --t1; --input is for 6 and 7"),
        (["--task", 6, *one], "--task: got 6 without --input"),
        (["--input", one[1], *one], "--input and --t1: got both"),
        (["--task", 5, *call(tmp_path, "t1w flair")], "--flair: task 5 has no such channel, wanted --t1"),
    ):
        with pytest.raises(UserError, match=said):
            tool("predict_fomo26", *wrong, "--output", tmp_path / "o.npy", "--checkpoints", runs(4) / "fold_1")
    for task, names in ((5, "t1"), (1, "flair dwi adc swi")):  # both answer a probability, from other channels
        given = [*call(tmp_path, names), "--output", tmp_path / "o.txt", "--checkpoints", runs(6 - task) / "fold_1"]
        with pytest.raises(UserError, match=f"--task: got {task}, and .* reads the channel '.*', which the task does"):
            tool("predict_fomo26", "--task", task, *given)
    assert not [*tmp_path.glob("o.*")]


def test_the_definition_checks_that_the_checkpoints_fit_the_task(runs):
    line = re.search(r'python -c "(.*)"', (ROOT / "tools" / "fomo26.def").read_text())[1]
    folder = runs(3) / "fold_1"
    for task in (3, 6):
        exec(line.replace("{{ task }}", str(task)).replace("'checkpoints'", repr(str(folder))), {})
    with pytest.raises(UserError, match="--task: got 1"):
        challenge.check_checkpoints(folder, 1)


def test_vectors_have_one_length_whatever_the_scan(runs, tmp_path):
    lengths = set()
    for seed, shape in enumerate(((32, 32, 16), (70, 40, 36))):
        path = scan(tmp_path / f"{seed}.nii.gz", shape, seed)
        tool("predict_fomo26", "--input", path, "--output", tmp_path / "x.npy", "--checkpoints", runs(3) / "fold_1")
        lengths.add(np.load(tmp_path / "x.npy").shape)
    assert len(lengths) == 1
    with pytest.raises(UserError, match="--output: got"):
        tool("predict_fomo26", "--input", path, "--output", tmp_path / "x.txt", "--checkpoints", runs(3) / "fold_1")


def test_the_task_is_also_known_by_the_environment_or_by_the_checkpoints(runs, tmp_path, monkeypatch):
    arguments = [*call(tmp_path, "t1"), "--output", tmp_path / "o.txt", "--checkpoints", runs(5) / "fold_1"]
    tool("predict_fomo26", *arguments)
    validate(5, tmp_path / "o.txt", [])
    monkeypatch.setenv("FOMO26_TASK", "3")
    with pytest.raises(UserError, match="--task: got 3.*answers probability"):
        tool("predict_fomo26", *arguments)


@pytest.mark.parametrize(
    "wish, text, said",
    [
        (1, "0.5 0.5", "got 2 words"),
        (1, "nan", "got nan, wanted a finite number from 0 to 1"),
        (5, "1.01", "got 1.01, wanted a finite number from 0 to 1"),
        (3, "inf", "got inf, wanted a finite number"),
        (3, "old", "cannot read it"),
    ],
)
def test_a_number_that_the_validator_would_refuse_does_not_stay(tmp_path, wish, text, said):
    path = tmp_path / "o.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        challenge.check(str(path), challenge.FOMO26[wish], [])
    assert not path.exists()
    path.write_text("0.25\n")
    challenge.check(str(path), challenge.FOMO26[wish], [])


def test_a_mask_that_the_validator_would_refuse_does_not_stay(tmp_path):
    source, path = scan(tmp_path / "t2.nii.gz"), tmp_path / "o.nii.gz"
    good = np.zeros((32, 32, 16), np.uint8)
    good[0, 0, 0] = 2
    for array, affine, said in (
        (good, np.full((4, 4), np.nan), "affine"),
        (good[1:], np.eye(4), "got shape"),
        (good[..., None].repeat(2, -1), np.eye(4), "got shape"),
        (good + 1, np.eye(4), "from 1 to 3"),
        (good.astype(np.float32), np.eye(4), "float32"),
    ):
        image = nibabel.Nifti1Image(array, None)
        image.header["sform_code"], image.header["qform_code"] = 2, 0
        for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
            image.header[name] = affine[row]
        image.to_filename(path)
        with pytest.raises(UserError, match=said):
            challenge.check(str(path), challenge.FOMO26[4], [source])
        assert not path.exists()
    nibabel.save(nibabel.Nifti1Image(good, np.eye(4)), path)
    challenge.check(str(path), challenge.FOMO26[4], [source])


# ------------------------------------------------------------------------------------------------- the time


class Recorder:
    """A log that keeps its warnings."""

    def __init__(self):
        self.warnings = []

    def __call__(self, event, **values):
        pass

    def warn(self, said, **values):
        self.warnings.append(values)


@pytest.mark.parametrize(
    "seconds, views, networks",
    [(math.inf, 4, 2), (100.0, 4, 2), (1.5, 2, 2), (0.8, 1, 2), (0.6, 1, 1), (0.3, 1, 1), (-5.0, 1, 1)],
)
def test_as_many_views_as_fit_into_the_time(runs, tmp_path, monkeypatch, seconds, views, networks):
    """A clock that a pass of a network moves by 0.25 s: 2 networks of 4 views each are 8 passes, and the trial one."""
    path = scan(tmp_path / "t2.nii.gz")
    members, now, asked = members_of(runs(4), mirror_axes=(0, 1)), [0.0], []

    def infer(some, case, image, background):
        flips = [len(member.network.views) for member in some]
        asked.append(flips)
        now[0] += 0.25 * sum(flips)
        return "said"

    monkeypatch.setattr(budget, "infer", infer)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    log = Recorder()
    used, said = budget.infer_within(members, None, None, None, seconds, log)
    assert said == "said" and [len(member.network.views) for member in used] == [views] * networks
    assert now[0] <= max(seconds, 0.25) + 1e-9 and asked[-1] == [views] * networks
    fewer = (views, networks) != (4, 2)
    assert [(w["views"], w["of_views"], w["networks"]) for w in log.warnings] == fewer * [(views, 4, networks)]
    assert os.path.exists(path)


def test_the_time_is_kept_by_the_tool_and_said(runs, tmp_path, capsys, monkeypatch):
    """What remains after the start is nothing: one view, and a warning. Without haste: the answer of all views."""
    checkpoints = [runs(4) / "fold_1" / "best.pt", runs(4) / "fold_2" / "best.pt"]
    arguments = [*call(tmp_path, "t2"), "--checkpoints", *checkpoints, "--output", tmp_path / "o.nii.gz"]
    tool("predict_fomo26", "--task", 4, *arguments, "--budget", 0.001)
    said = capsys.readouterr().out
    assert "the time is short" in said and "views=1 of_views=2 networks=1 of_networks=2" in said
    begun = time.perf_counter()
    tool("predict_fomo26", "--task", 4, *arguments)
    assert time.perf_counter() - begun < 120 and "the time is short" not in capsys.readouterr().out
    everything = np.asarray(nibabel.load(tmp_path / "o.nii.gz").dataobj)
    given = {"t2w": arguments[1]}
    single.predict_to_file(members_of(runs(4)), given, str(tmp_path / "p.nii.gz"), Log(active=False))
    assert np.array_equal(everything, np.asarray(nibabel.load(tmp_path / "p.nii.gz").dataobj))
