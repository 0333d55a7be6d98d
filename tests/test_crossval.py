"""The main job as a user meets it: commands, run folder, resume, ranks, refusals."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, one_line_error, run_command

from fomo import kinds, nets
from fomo.runs import crossval
from fomo.runtime import dist


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def finished(done):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def run_folder(config_path):
    content = yaml.safe_load(pathlib.Path(config_path).read_text())
    return pathlib.Path(content["output"]) / content["name"]


HEADLINE = {"classification": "auroc", "segmentation": "dice", "regression": "mae"}


@pytest.mark.parametrize("task", ["classification", "segmentation", "regression"])
def test_one_command_leaves_a_complete_run_folder(tiny_config, tmp_path, task):
    path = tiny_config(task, augment={"preset": "all"})
    (tmp_path / "elsewhere").mkdir()
    done = finished(run_command("cv.py", path, cwd=tmp_path / "elsewhere"))
    folder = run_folder(path)
    assert not any((tmp_path / "elsewhere").iterdir()), "nothing is written outside the run folder"

    # every case is out of fold exactly once, on no side twice
    splits = json.loads((folder / "splits.json").read_text())
    ids = sorted(splits["cases"])
    rows = read(folder / "predictions.csv")
    assert [row["id"] for row in rows] == ids and len(ids) >= 16
    for number, split in enumerate(splits["folds"], 1):
        subjects = {part: {splits["cases"][i]["subject"] for i in members} for part, members in split.items()}
        assert not subjects["train"] & subjects["val"] and not subjects["train"] & subjects["test"]
        assert not subjects["val"] & subjects["test"]
        assert sorted(split["train"] + split["val"] + split["test"]) == ids
        fold = folder / f"fold_{number}"
        assert {"best.pt", "last.pt", "history.csv", "results.csv", "predictions.csv"} <= set(os.listdir(fold))
        assert read(fold / "predictions.csv") == [row for row in rows if row["id"] in split["test"]], "to the letter"
        assert len(read(fold / "history.csv")) == 2

    # the tables agree with each other
    summary = json.loads((folder / "summary.json").read_text())
    headline = HEADLINE[task]
    assert {"auroc": "AUROC", "dice": "Dice", "mae": "MAE"}[headline] in (folder / "report.html").read_text()
    assert summary["headline"] == headline and summary["cases"] == len(ids) and summary["folds_done"] == [1, 2]
    aggregated = {row["metric"]: row for row in read(folder / "aggregated_results.csv")}
    per_fold = [float(row[headline]) for row in read(folder / "fold_results.csv")]
    assert float(aggregated[headline]["mean"]) == pytest.approx(np.mean(per_fold))
    assert float(aggregated[headline]["std"]) == pytest.approx(np.std(per_fold, ddof=1))
    assert summary["metrics"][headline]["pooled"] == pytest.approx(float(aggregated[headline]["pooled"]))
    for number, value in enumerate(per_fold, 1):
        own = {row["metric"]: row["value"] for row in read(folder / f"fold_{number}" / "results.csv")}
        assert float(own[headline]) == pytest.approx(value)

    if task == "segmentation":
        check_masks(folder, rows)
    if task == "regression":
        assert len(re.findall(r' WARN warn fold=\d message="age-bias correction from ', done.stdout)) == 2, (
            "what calibrate says"
        )
    check_log(folder, done.stdout)


def check_masks(folder, rows):
    """Masks lie in the space of the reference files, and the stored Dice follows from them."""
    import nibabel

    [root] = [
        path
        for path in pathlib.Path(yaml.safe_load((folder / "config.yaml").read_text())["data"]["root"]).glob("task2*")
    ]
    for row in rows:
        mask = nibabel.load(next(folder.glob(f"fold_*/masks/{row['id']}.nii.gz")))
        subject, session = re.fullmatch(r"(.+)_(ses_\d+)", row["id"]).groups()
        reference = nibabel.load(root / "labels" / subject / session / "seg.nii.gz")
        assert mask.shape == reference.shape and np.allclose(mask.affine, reference.affine)
        predicted, true = np.asarray(mask.dataobj) > 0, np.asarray(reference.dataobj) > 0
        size = predicted.sum() + true.sum()
        expected = 2 * (predicted & true).sum() / size if size else np.nan
        assert float(row["dice"]) == pytest.approx(expected, nan_ok=True)


def check_log(folder, stdout):
    """The log is what tools/README.md says: events, keys, and the same lines on the screen and in the file."""
    text = (folder / "log.txt").read_text()
    assert text.strip() in stdout
    readme = (ROOT / "tools" / "README.md").read_text()
    for line in text.splitlines():
        event = re.match(r"\S+ (INFO|WARN|ERROR) (\w+)", line)[2]
        assert f"| `{event}` |" in readme, f"tools/README.md does not list the event {event}"
    train = [line for line in text.splitlines() if " train " in line]
    assert len(train) == 12
    for name in ("fold", "epoch", "step", "loss", "lr", "data_s", "step_s", "eta_s", "mem_gb", "samples_per_s"):
        assert all(re.search(rf" {name}=\S+", line) for line in train)
    assert len(re.findall(r" epoch fold=\d epoch=\d step=\d lr=\S+ train_loss=\S+ val_loss=\S+", text)) == 4
    assert len(re.findall(r" cv folds=2 of=2 ", text)) == 1


def weights(folder, name="last.pt"):
    return {
        number: torch.load(folder / f"fold_{number}" / name, weights_only=True)["model"]
        for number in (1, 2)
        if (folder / f"fold_{number}" / name).exists()
    }


@pytest.mark.parametrize("task", [pytest.param("classification", marks=pytest.mark.slow), "segmentation", "regression"])
def test_one_rank_and_two_ranks_agree(tiny_config, tmp_path, task):
    path = tiny_config(task, augment={"preset": "basic"}, cv={"folds_to_run": [1]}, train={"epochs": 2})
    finished(run_command("cv.py", path, f"output={tmp_path}/one"))
    finished(run_command("cv.py", path, f"output={tmp_path}/two", "train.workers=2", ranks=2))
    one, two = (tmp_path / name / "run" for name in ("one", "two"))
    losses = [
        [float(value) for value in re.findall(r" train .* loss=(\S+) lr", (folder / "log.txt").read_text())]
        for folder in (one, two)
    ]
    assert len(losses[0]) == 6
    np.testing.assert_allclose(losses[0], losses[1], atol=1e-4)
    a, b = read(one / "predictions.csv"), read(two / "predictions.csv")
    assert [row["id"] for row in a] == [row["id"] for row in b]
    for name in {"classification": ["probability"], "regression": ["prediction"], "segmentation": ["dice", "loss"]}[
        task
    ]:
        scale = 100 if task == "regression" else 1  # ages in years
        np.testing.assert_allclose(*([float(row[name]) for row in rows] for rows in (a, b)), atol=1e-4 * scale)


def test_workers_change_nothing(tiny_config, tmp_path):
    path = tiny_config("segmentation", augment={"preset": "all"}, cv={"folds_to_run": [1]})
    for workers in (0, 2):
        finished(run_command("cv.py", path, f"output={tmp_path}/w{workers}", f"train.workers={workers}"))
    one, two = weights(tmp_path / "w0" / "run"), weights(tmp_path / "w2" / "run")
    assert all(torch.equal(one[1][name], two[1][name]) for name in one[1])
    assert (tmp_path / "w0/run/predictions.csv").read_text() == (tmp_path / "w2/run/predictions.csv").read_text()


SLICES = {"model": {"name": "efficientnet_b0", "width": 4, "dropout": 0.3}, "data": {"patch": [64, 64, 1]}}


@pytest.mark.parametrize(
    "seed, sections", [(0, {}), *(pytest.param(*given, marks=pytest.mark.slow) for given in ((1, {}), (2, SLICES)))]
)
def test_killed_at_any_moment_and_run_again_equals_the_uninterrupted_run(tiny_config, tmp_path, seed, sections):
    path = tiny_config(
        "classification",
        **sections,
        augment={"preset": "basic"},
        train={"epochs": 4, "ema": 0.9},
        finetune={"strategy": "gradual", "unfreeze_epoch": 3},
    )
    finished(run_command("cv.py", path, f"output={tmp_path}/whole"))
    whole = tmp_path / "whole" / "run"
    lines = len((whole / "log.txt").read_text().splitlines())
    stop_at = int(np.random.default_rng(seed).integers(6, lines - 1))

    command = [sys.executable, str(ROOT / "cv.py"), str(path), f"output={tmp_path}/cut"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for count, _ in enumerate(process.stdout, 1):
        if count == stop_at:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    assert process.returncode == -signal.SIGKILL
    finished(run_command("cv.py", path, f"output={tmp_path}/cut"))
    cut = tmp_path / "cut" / "run"
    for name in ("last.pt", "best.pt"):
        one, two = weights(whole, name), weights(cut, name)
        assert one.keys() == two.keys() == {1, 2}
        assert all(torch.equal(one[fold][key], two[fold][key]) for fold in one for key in one[fold])
    for name in ("predictions.csv", "fold_results.csv", "aggregated_results.csv"):
        assert (whole / name).read_text() == (cut / name).read_text()


def test_a_finished_run_is_not_run_again_and_folds_can_be_run_apart(tiny_config):
    path = tiny_config(cv={"folds": 2})
    finished(run_command("train.py", path))
    folder = run_folder(path)
    assert json.loads((folder / "summary.json").read_text())["folds_done"] == [1]
    first = (folder / "fold_1" / "best.pt").stat().st_mtime_ns
    finished(run_command("cv.py", path))
    assert json.loads((folder / "summary.json").read_text())["folds_done"] == [1, 2]
    assert (folder / "fold_1" / "best.pt").stat().st_mtime_ns == first
    again = finished(run_command("cv.py", path))
    assert " train " not in again.stdout
    one_line_error(
        run_command("train.py", path, "cv.folds_to_run=[2]"), "cv.folds_to_run: got [2], wanted none for train.py"
    )
    (folder / "fold_2" / "predictions.csv").unlink()
    one_line_error(run_command("cv.py", path), "fold_2/predictions.csv", "No such file", "restore it")


def test_gradual_unfreezing_trains_the_encoder_from_its_epoch_on(tiny_config):
    path = tiny_config(
        train={"epochs": 4}, finetune={"strategy": "gradual", "unfreeze_epoch": 3}, cv={"folds_to_run": [1]}
    )
    log = finished(run_command("cv.py", path, ranks=2)).stdout
    assert log.count("finetune.strategy=gradual freezes random weights: weights.path is none") == 1
    assert re.search(r" freeze fold=1 epoch=1 frozen=encoder\. ", log)
    assert re.search(r" freeze fold=1 epoch=3 frozen=none ", log)
    last = torch.load(run_folder(path) / "fold_1" / "last.pt", weights_only=True)
    steps = {float(state["step"]) for state in last["optimizer"]["state"].values()}
    assert steps == {12.0, 6.0}, "the head is trained in all 12 steps, the encoder in the last 6"


def test_stagewise_unfreezing_of_a_network_with_batch_norms_on_two_ranks(tiny_config):
    path = tiny_config(
        model={"name": "resnet50", "width": 2},
        data={"patch": [64, 64, 1]},
        train={"epochs": 4, "ema": 0.5},
        finetune={"strategy": "stagewise", "unfreeze_epoch": 2, "unfreeze_every": 2},
        cv={"folds_to_run": [1]},
    )
    log = finished(run_command("cv.py", path, ranks=2)).stdout
    frozen = re.findall(r" freeze fold=1 epoch=(\d) frozen=(\S+) ", log)
    early = ["conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4."]
    assert frozen == [("1", ",".join(early)), ("2", ",".join(early[:-1])), ("4", ",".join(early[:-2]))]
    last = torch.load(run_folder(path) / "fold_1" / "last.pt", weights_only=True)
    counts = {name: int(value) for name, value in last["model"].items() if name.endswith("num_batches_tracked")}
    assert counts["layer4.2.bn3.num_batches_tracked"] == 9 and counts["layer3.0.bn1.num_batches_tracked"] == 3
    assert not any(count for name, count in counts.items() if name.startswith(tuple(early[:-2])))
    assert not last["model"]["layer2.0.bn1.running_mean"].any() and last["model"]["layer3.0.bn1.running_mean"].any()


def test_pretrained_weights_are_loaded_and_counted_and_only_they_are_frozen(tiny_config, tmp_path):
    from fomo import tasks
    from fomo.training import fold

    pretrained = nets.build("unet_b_lw_dec", 1, 1, width=2)
    state = {f"model._orig_mod.{name}": value for name, value in pretrained.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "pretrained.ckpt")
    for task, (loaded, new, adapted) in {
        "classification": (40, 5, 0),  # each channel goes alone through the stem
        "segmentation": (39 + 8 + 16, 16 + 2, 1),
        "regression": (40, 5, 0),
    }.items():
        path = tiny_config(
            task,
            name=task,
            task={"type": task, "classes": 3} if task == "segmentation" else {"type": task},
            weights={"path": str(tmp_path / "pretrained.ckpt")},
            finetune={"strategy": "head_only"},
            cv={"folds_to_run": [1]},
            train={"epochs": 1, "steps_per_epoch": 1},
        )
        log = finished(run_command("cv.py", path)).stdout
        assert re.search(rf" weights fold=1 loaded={loaded} new={new} adapted={adapted} ignored=\d+ ", log), log
        trained = torch.load(run_folder(path) / "fold_1" / "last.pt", weights_only=True)["model"]
        name = "encoder.encoder_conv4.conv2.conv.weight"
        assert torch.equal(trained[name], pretrained.state_dict()[name]), (
            "head_only leaves the encoder as it was loaded"
        )
        assert "random weights" not in log
        if task == "segmentation":
            assert 'message="masks: no training case of class 2: not learned, ' in log, "what fit says"
            assert ",decoder.upsample4,decoder.decoder_conv4.conv1. " in log
            config = kinds.load(path)
            random = fold.build_network(config, tasks.build(config), 1).state_dict()
            loaded = [f"decoder.decoder_conv{i}.conv1.conv.weight" for i in range(1, 5)]
            assert all(torch.equal(trained[name], pretrained.state_dict()[name]) for name in loaded)
            new = [name.replace("conv1.conv", "conv2.conv") for name in loaded]
            assert not any(torch.equal(trained[name], random[name]) for name in new), "what was not loaded is trained"

    torch.save({"something.else": torch.ones(3)}, tmp_path / "foreign.pt")
    refused = run_command("cv.py", path, f"weights.path={tmp_path}/foreign.pt", "name=foreign")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr


def test_a_run_of_another_config_is_never_touched(tiny_config):
    path = tiny_config(cv={"folds_to_run": [1]})
    finished(run_command("cv.py", path))
    folder = run_folder(path)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}
    one_line_error(run_command("cv.py", path, "optim.lr=0.5"), "optim.lr=0.001 there, 0.5 now", "choose another `name`")
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_foreign_folder_is_never_touched(tiny_config):
    path = tiny_config()
    folder = run_folder(path)
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    one_line_error(run_command("cv.py", path), "not a run folder")
    assert os.listdir(folder) == ["thesis.txt"]


def test_splits_are_not_reused_for_other_cases(tiny_config):
    path = tiny_config(cv={"folds_to_run": [1]})
    finished(run_command("cv.py", path))
    splits = run_folder(path) / "splits.json"
    content = json.loads(splits.read_text())
    [first, *_] = content["folds"]
    moved = first["test"][0]
    first["train"].append(moved)
    splits.write_text(json.dumps(content))
    one_line_error(run_command("cv.py", path), "splits.json", moved)
    first["train"].remove(moved)
    removed = content["cases"].popitem()[0]
    splits.write_text(json.dumps(content))
    one_line_error(run_command("cv.py", path), "made for other cases", removed)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["cv.folds_to_run=[3]"], "folds from 1 to cv.folds=2"),
        (["data.patch=[40,32,32]"], "multiples of 16"),
        (["data.source=fomo1", "data.root=nowhere"], "nowhere"),
        (["cv.folds=9"], "class"),
        (["train.amp=fp16"], "fp16 on the CPU"),
        (["augment.parameters.rotate.degrees=[30,-30]"], "augment.parameters.rotate.degrees"),
        (["augment.parameters.resample=3"], "augment.parameters.resample: got 3"),
        (["augment.device=gpu"], "augment.device"),
    ],
)
def test_mistakes_end_with_one_line_before_anything_is_trained(tiny_config, arguments, said):
    if arguments == ["augment.device=gpu"] and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    path = tiny_config()
    one_line_error(run_command("cv.py", path, *arguments), said)
    assert not list(run_folder(path).glob("fold_*"))


def test_a_batch_that_does_not_divide_over_the_ranks(tiny_config):
    done = run_command("cv.py", tiny_config(train={"batch_size": 3}), ranks=2)
    assert done.returncode != 0 and done.stderr.count("a multiple of the 2 ranks") == 1
    path = tiny_config(train={"batch_size": 3}, cv={"parallel": "folds", "final": "refit"})  # which all ranks share
    done = run_command("cv.py", path, ranks=2)
    assert done.returncode != 0 and "a multiple of the 2 ranks" in done.stderr and " train " not in done.stdout


def test_what_is_chosen_for_the_open_folds_can_always_go_on(tiny_config, monkeypatch):
    config = kinds.load(tiny_config(train={"batch_size": 2}, cv={"folds": 5, "parallel": "auto"}))
    for world, chosen in ((4, "folds"), (2, "ddp")):
        monkeypatch.setattr(dist, "world_size", lambda: world)
        assert crossval.choose_parallel(config, [1])[0] == chosen, "a batch of 2 does not divide over 4 ranks"
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    assert crossval.choose_parallel(config, [1, 2])[0] == "folds"


def test_leave_one_group_out_tests_each_site_once(tiny_config, tmp_path):
    listed = run_command("cv.py", tiny_config(), "--dry-run").stdout
    subjects = sorted(set(re.findall(r"subject=(\S+)", listed)))
    sites = {subject: f"site_{index % 3}" for index, subject in enumerate(subjects)}
    (tmp_path / "sites.csv").write_text("subject,group\n" + "".join(f"{s},{g}\n" for s, g in sites.items()))
    path = tiny_config(
        data={"groups": str(tmp_path / "sites.csv")},
        cv={"kind": "leave_one_group_out", "val_fraction": 0.4},
        train={"epochs": 1, "steps_per_epoch": 1},
    )
    finished(run_command("cv.py", path))
    splits = json.loads((run_folder(path) / "splits.json").read_text())
    assert len(splits["folds"]) == 3
    for fold, site in zip(splits["folds"], ("site_0", "site_1", "site_2")):
        for part, members in fold.items():
            assert {sites[splits["cases"][i]["subject"]] == site for i in members} == {part == "test"}


def test_dry_run_shows_everything_and_trains_nothing(tiny_config):
    path = tiny_config(optim={"plateau_patience": 2})
    done = finished(run_command("cv.py", path, "--dry-run", "--print-config"))
    assert "keys=optim.plateau_patience" in done.stdout, "it is set, and not read"
    assert "steps_per_epoch: 3" in done.stdout and "case id=" in done.stdout
    assert re.search(r"\ncase id=sub_001_ses_1 subject=sub_001 target=[01]\n", done.stdout)
    assert re.search(r"fold 2 train: cases=\d+ class_0=\d+ class_1=\d+\n", done.stdout)
    assert " parameters=" in done.stdout.splitlines()[-1]
    assert "steps_per_epoch" not in finished(run_command("cv.py", path, "--dry-run")).stdout
    assert not run_folder(path).exists()


def test_parts_that_cannot_be_learned_from_are_refused_before_images_are_prepared(tiny_config):
    path = tiny_config(cv={"folds": 2, "val_fraction": 0.1, "stratify": False}, seed=3)
    for arguments in (("--dry-run",), ()):
        done = run_command("cv.py", path, *arguments)
        assert done.returncode == 2 and "prepared=" not in done.stdout
        assert "of class " in done.stderr and "set cv.stratify=true, lower cv.folds" in done.stderr
    assert not (run_folder(path) / "splits.json").exists()
    mended = ("cv.stratify=true", "train.epochs=1", "train.steps_per_epoch=1")  # begins, in the same folder
    assert run_command("cv.py", path, *mended).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--train.epochs=3",), "wanted keys without dashes: train.epochs=3"),
        (("--dryrun",), "wanted --dry-run"),
        (("--resume",), "wanted nothing: the same command continues"),
        (("--verbose",), "wanted one of --dry-run, --print-config, --help, or key=value"),
    ],
)
def test_arguments_of_other_programs_get_the_hint_that_helps(tiny_config, arguments, wanted):
    done = run_command("cv.py", tiny_config(), *arguments)
    assert done.returncode == 2 and wanted in done.stderr


def test_a_command_without_a_config_says_what_it_wants(tmp_path):
    assert "got no config, wanted a YAML file" in run_command("cv.py").stderr
    assert "wanted the YAML file, and then key=value" in run_command("cv.py", "train.epochs=3").stderr


def test_a_run_goes_on_when_its_data_have_moved(tiny_config, tmp_path):
    overrides = ["data.source=fomo1", "data.channels=[dwi_b1000,flair,adc,swi|t2s]", "cv.folds_to_run=[1]"]
    path = tiny_config(cv={"folds": 2}, train={"epochs": 1, "steps_per_epoch": 1})
    finished(run_command("cv.py", path, f"data.root={tmp_path / 'phantoms'}", "--dry-run"))
    [made] = (tmp_path / "phantoms").glob("task1_*")
    made.rename(tmp_path / "here")
    finished(run_command("cv.py", path, *overrides, f"data.root={tmp_path / 'here'}"))
    (tmp_path / "here").rename(tmp_path / "there")
    overrides[-1] = "cv.folds_to_run=[1,2]"
    done = finished(run_command("cv.py", path, *overrides, f"data.root={tmp_path / 'there'}"))
    assert "finished=1" in done.stdout and "have changed" not in done.stdout


def test_the_report_is_the_last_line_and_a_finished_run_says_so(tiny_config):
    path = tiny_config(cv={"folds": 2}, train={"epochs": 1, "steps_per_epoch": 1})
    first, again = (finished(run_command("cv.py", path)).stdout for _ in range(2))
    for text in (first, again):
        assert re.search(r"INFO report path=\S+report\.html$", text.strip())
    assert "nothing: all these folds are finished" in again and "nothing: all these folds" not in first


@pytest.mark.slow
def test_shuffled_labels_score_like_chance(tiny_config, phantom_root, tmp_path):
    """Nothing leaks: with labels drawn at random the pooled AUROC is 0.5 up to chance."""
    import shutil

    finished(run_command("cv.py", tiny_config(), "--dry-run"))  # generates the phantoms
    [made] = phantom_root.glob("task1*")
    root = tmp_path / "shuffled"
    shutil.copytree(made, root)
    shutil.rmtree(root / "labels_masked", ignore_errors=True)
    shutil.rmtree(root / "labels")
    aurocs = []
    for seed in range(4):
        generator = np.random.default_rng(seed)
        subjects = sorted(os.listdir(root / "preprocessed"))
        for subject, label in zip(subjects, generator.permutation(np.arange(len(subjects)) % 2)):
            (root / "labels" / subject).mkdir(parents=True, exist_ok=True)
            (root / "labels" / subject / "label.txt").write_text(str(label))
        path = tiny_config(
            name=f"seed{seed}",
            seed=seed,
            data={"source": "fomo1", "root": str(root)},
            train={"epochs": 4, "steps_per_epoch": 6},
            model={"width": 4},
            cv={"folds": 4},
        )
        finished(run_command("cv.py", path))
        aurocs.append(json.loads((run_folder(path) / "summary.json").read_text())["metrics"]["auroc"]["pooled"])
    assert abs(np.mean(aurocs) - 0.5) < 0.15, aurocs


def test_the_version_of_the_code_is_that_of_its_sources(tmp_path, monkeypatch):
    """Of their bytes: wherever the package lies, whatever it is called, and without what Python leaves beside them."""
    shutil.copytree(ROOT / "fomo", tmp_path / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    own = crossval.code_version()
    monkeypatch.setattr(crossval.importlib.resources, "files", lambda name: tmp_path / "copied")
    assert crossval.code_version() == own
    with open(tmp_path / "copied" / "nets" / "unet.py", "a") as file:
        file.write("# more\n")
    assert crossval.code_version() != own
