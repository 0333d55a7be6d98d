"""Classification that learns from masks: what is known of each case, its pooled probability, and whole runs of it."""

import csv
import dataclasses
import json
import os
import shutil

import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import members_of, run_command, write_table
from scipy import special

from fomo import kinds, losses, tasks
from fomo.config import UserError
from fomo.data import sources
from fomo.data.cases import Case
from fomo.metrics import auroc, fit_logistic
from fomo.prediction.single import predict_to_file
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runs.splits import why_not
from fomo.runtime.log import Log
from fomo.tasks import evidence
from fomo.tasks.evidence import TOPS, Evidence

CASES = 16  # half of them with a bright ball, of which every fourth case has no mask


def scan(place, array):
    place.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), place)


def ball(number, rng):
    """(image, mask) of 20 x 24 x 18 voxels; odd numbers have the ball."""
    image = rng.normal(100, 10, (20, 24, 18)).astype(np.float32)
    grid = np.indices(image.shape) - rng.integers(6, 12, 3)[:, None, None, None]
    mask = ((grid**2).sum(0) < 9) & bool(number % 2)
    return image + 80 * mask, mask.astype(np.uint8)


def has_mask(number):
    return number % 2 and number % 4 != 3 or number == 15


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    """A data set in the layout of Task 1."""
    root, rng = tmp_path_factory.mktemp("evidence") / "data", np.random.default_rng(0)
    for number in range(CASES):
        image, mask = ball(number, rng)
        scan(root / "preprocessed" / f"sub_{number:02}" / "ses_1" / "flair.nii.gz", image)
        labels = root / "labels" / f"sub_{number:02}" / "ses_1"
        labels.mkdir(parents=True)
        (labels / "label.txt").write_text(str(number % 2))
        if has_mask(number):
            scan(labels / "seg.nii.gz", 3 * mask)  # whatever its number is
    return root


def config_of(layout, folder, overrides=(), **sections):
    content = {
        "name": "run",
        "output": str(folder),
        "task": {"type": "classification", "evidence": "auto"},
        "data": {"source": "fomo1", "root": str(layout), "channels": ["flair"], "patch": [32, 32, 32]},
        "model": {"width": 2},
        "optim": {"lr": 1e-2},
        "train": {"epochs": 2, "batch_size": 2, "steps_per_epoch": 15, "workers": 0},
        "augment": {"preset": "none"},
        "cv": {"folds": 2, "val_fraction": 0.5},
        "eval": {"bootstrap": 20},
    }
    content["data"] |= {"spacing_mm": [2.0, 2.0, 2.0], "prepare_workers": 0, "crop": False}
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return kinds.load(path, overrides)


@pytest.fixture(scope="module")
def trained(layout, tmp_path_factory):
    """The RunFolder of a cross-validation."""
    folder = tmp_path_factory.mktemp("run")
    crossval.run(config_of(layout, folder, cv={"final": "refit"}, model={"deep_supervision": True}))
    return RunFolder(folder / "run")


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_run_learns_from_the_masks_that_there_are(trained):
    line = next(line for line in open(trained.log_path) if " evidence=" in line)
    assert "evidence=mask positives=8 with_mask=5 negatives=8" in line and "count as empty masks" in line
    assert yaml.safe_load(open(trained.config_path))["task"]["evidence"] == "mask", "a checkpoint says what it is"
    rows = read(os.path.join(trained.path, "predictions.csv"))
    assert len(rows) == CASES and {row["decision"] for row in rows} <= {"0", "1"}
    assert all(0 < float(row["probability"]) < 1 for row in rows)
    known = [row["id"] for row in rows if row["located"] != "nan"]
    assert known == [f"sub_{number:02}_ses_1" for number in range(CASES) if has_mask(number)]
    metrics = json.load(open(trained.summary_path))["metrics"]
    assert metrics["auroc"]["pooled"] > 0.9, "bright balls are easy, also without their masks"
    assert metrics["located"]["pooled"] > 0.7
    assert "data.foreground_fraction" not in open(trained.log_path).read(), "it is read"


def test_the_report_draws_the_evidence_of_each_case(trained):
    pytest.importorskip("matplotlib")
    page = open(trained.report_path).read()
    assert ">Evidence<" in page and "its highest voxel is in the mask" in page
    for fold in trained.all_folds():
        for row in fold.results().rows:
            stored = np.load(fold.evidence(row["id"]))
            assert stored["reference_0"].any() == has_mask(int(row["id"][4:6]))
            assert stored["evidence_0"].shape == stored["image_0"].shape == (1, 24, 18)
        assert f"{row['id']}: class" in page


def test_what_a_fold_has_fitted_is_in_its_checkpoint_and_the_refit_has_their_mean(trained):
    from fomo import checkpoint

    folds = [checkpoint.load(fold.best) for fold in trained.all_folds()]
    for content in folds:
        assert content["task"]["top"][0] in TOPS and content["task"]["line"][0][0] > 0
        assert content["config"]["task"]["evidence"] == "mask"
    final = checkpoint.load(trained.final.best)
    np.testing.assert_allclose(final["task"]["line"], np.mean([fold["task"]["line"] for fold in folds], axis=0))
    assert final["task"]["threshold"] == pytest.approx(np.mean([fold["task"]["threshold"] for fold in folds]))
    assert final["epoch"] == final["config"]["train"]["epochs"] == round(np.median([fold["epoch"] for fold in folds]))
    assert len(final["subjects"]) == CASES and final["calibrated"]


def test_prediction_gives_the_numbers_of_the_folds_and_the_evidence_as_volumes(trained, layout, tmp_path):
    fold = trained.fold(1)
    arguments = [fold.path, "--source", "fomo1", "--root", layout, "--output", tmp_path / "said", "--probabilities"]
    done = run_command("tools/predict.py", *map(str, arguments))
    assert done.returncode == 0, done.stderr
    said = {row["id"]: row for row in read(tmp_path / "said" / "predictions.csv")}
    for row in fold.results().rows:
        assert float(said[row["id"]]["probability"]) == row["probability"]
        assert int(said[row["id"]]["decision"]) == row["decision"]
    image = nibabel.load(tmp_path / "said" / "probabilities" / "sub_00_ses_1.nii.gz")
    assert image.shape == (20, 24, 18) and 0 <= image.get_fdata().min() and image.get_fdata().max() <= 1
    done = run_command("tools/evaluate.py", "--predictions", tmp_path / "said", "--references", layout)
    assert done.returncode == 0 and "metric=auroc" in done.stdout, done.stderr


def test_an_ensemble_averages_the_calibrated_probabilities(trained):
    members = members_of(trained.path)
    parts = [evidence.Part([[odds] * len(TOPS)], np.zeros(0), np.array([-odds])) for odds in (-1.0, 3.0)]
    tasks_of = [member.task for member in members]
    own = [task.probabilities(part.odds, part.whole) for task, part in zip(tasks_of, parts)]
    geometry = _geometry(trained)
    row, volumes = Evidence.answer(
        tasks_of, [part._replace(finding=np.full((1, *geometry.shape), 0.25, np.float32)) for part in parts], geometry
    )
    assert row["probability"] == pytest.approx(np.mean(own))
    assert row["decision"] == (row["probability"] >= np.mean([task.state["threshold"] for task in tasks_of]))
    background, finding = volumes["probabilities"]
    assert finding.max() == pytest.approx(0.25) and background.min() == pytest.approx(0.75)


def test_the_containers_answer_is_the_probability(trained, layout, tmp_path):
    members, path = members_of(trained.path), layout / "preprocessed" / "sub_01" / "ses_1" / "flair.nii.gz"
    row = predict_to_file(members, {"flair": str(path)}, str(tmp_path / "answer.txt"), Log(active=False))
    assert float((tmp_path / "answer.txt").read_text()) == row["probability"] and 0 < row["probability"] < 1
    with pytest.raises(UserError, match="--output: got .*mask.nii.gz, wanted a text file for one number"):
        predict_to_file(members, {"flair": str(path)}, str(tmp_path / "mask.nii.gz"), Log(active=False))


def _geometry(trained):
    config = trained.config()
    wanted = tasks.wanted(config)
    return sources.prepare(sources.list_cases(config.data, wanted)[:1], config.data, wanted)[0].geometry


def test_auto_without_masks_learns_the_labels(layout, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(layout, bare, ignore=shutil.ignore_patterns("seg.nii.gz"))
    config = config_of(bare, tmp_path)
    settled, said = kinds.settle(config)
    assert settled.task.evidence == "none" and said["data"]["with_mask"] == 0 and said["data"]["positives"] == 8
    assert tasks.build(settled).mode == "classification"
    assert kinds.settle(settled) == (settled, {})
    done = run_command("cv.py", tmp_path / "config.yaml", "--dry-run")
    assert done.returncode == 0 and "evidence=none" in done.stdout and "labels only" in done.stdout


@pytest.mark.parametrize("masks, folds", [((1, 5), 2), ((1, 5, 9), 4)])
def test_auto_with_fewer_masks_than_folds_learns_the_labels_and_warns(layout, tmp_path, masks, folds):
    few = tmp_path / "few"
    shutil.copytree(layout, few)
    for path in few.glob("labels/*/*/seg.nii.gz"):
        if int(path.parts[-3].removeprefix("sub_")) not in masks:
            path.unlink()
    config_of(few, tmp_path, cv={"folds": folds, "val_fraction": 0.5})
    done = run_command("cv.py", tmp_path / "config.yaml", "--dry-run")
    [warning] = [line for line in done.stdout.splitlines() if " WARN warn " in line]
    said = f"{len(masks)} of 8 cases of class 1 have a mask, which are too few (wanted {max(3, folds)}): labels only"
    assert done.returncode == 0 and said in warning
    assert f"evidence=none positives=8 with_mask={len(masks)} negatives=8" in warning


def test_auto_where_a_fold_would_have_no_mask_learns_the_labels(table):
    folds = {f"c{n:02}": {"fold": "a" if has_mask(n) or n % 4 == 0 else "b"} for n in range(CASES)}
    config = table(**folds)
    config = dataclasses.replace(config, cv=dataclasses.replace(config.cv, kind="fold_column"))
    settled, said = kinds.settle(config, why_not)
    assert settled.task.evidence == "none"
    assert "5 of 8 cases of class 1 have a mask, which are too few (fold 1: " in said["warn"]["message"]
    asked = dataclasses.replace(config, task=dataclasses.replace(config.task, evidence="mask"))
    assert "training cases of class 1 without a mask" in why_not(
        asked, sources.list_cases(config.data, tasks.wanted(asked))
    )
    assert kinds.settle(table(), why_not)[0].task.evidence == "mask"
    alone = dataclasses.replace(config, cv=dataclasses.replace(config.cv, kind="leave_one_group_out"))
    assert why_not(alone, sources.list_cases(alone.data, tasks.wanted(alone))) is None, "the run says it itself"


def prepared(config):
    wanted = tasks.wanted(config)
    return sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted)


def test_folds_spread_the_sizes_of_the_finding(layout, tmp_path):
    config = config_of(layout, tmp_path, ["task.evidence=mask"])
    cases = sources.list_cases(config.data, tasks.wanted(config))
    strata = tasks.build(config).strata(cases)
    assert {name for name, _ in strata} == {"0", "1"}
    assert [size > 0 for _, size in strata] == [bool(has_mask(number)) for number in range(CASES)]


def test_masks_are_wanted_and_a_patch_that_shows_what_has_none(layout, tmp_path):
    config = config_of(layout, tmp_path, ["task.evidence=mask", "data.patch=[16,32,16]"])
    cases, task = prepared(config), tasks.build(config)
    [message] = task.fit(cases, cases)
    assert message.startswith("3 of 8 training cases of class 1 have no mask, and data.patch may not show")
    without = [case for case in cases if case.findings == (None,)]
    with pytest.raises(UserError, match="task.evidence: got 3 training cases of class 1 without a mask, wanted masks"):
        task.fit(without, cases)
    assert tasks.build(config_of(layout, tmp_path, ["task.evidence=mask"])).fit(cases, cases) == []


def batch_of(known, target):
    mask = torch.zeros(len(known), 4, 4, 4, dtype=torch.uint8)
    mask[0, :2] = 1
    return {"known": torch.tensor(known)[:, None], "target": torch.tensor(target), "mask": mask}


def test_the_loss_of_a_case_depends_on_what_is_known_of_it(layout, tmp_path):
    task = tasks.build(config_of(layout, tmp_path, ["task.evidence=mask"]))
    task.state["class_weights"] = [0.5, 2.0]
    logits = torch.randn(3, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    batch = batch_of([True, True, False], [1.0, 0.0, 1.0])
    whole = torch.tensor([[0.5], [-1.0], [2.0]])
    found = task.loss((logits, whole, None), batch)
    by_voxel = losses.dice_focal(logits, batch["mask"])
    odds = np.sort((logits[2, 1] - logits[2, 0]).detach().numpy().ravel())[-TOPS[3] :]
    of_map = [2 * by_voxel[0].item(), 0.5 * by_voxel[1].item(), 2 * np.log1p(np.exp(-odds.mean()))]
    of_head = [2 * np.log1p(np.exp(-0.5)), 0.5 * np.log1p(np.exp(-1)), 2 * np.log1p(np.exp(-2))]
    wanted = np.add(of_map, of_head).tolist()
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)
    found[2].backward()
    assert torch.count_nonzero(logits.grad[2, 1]) == TOPS[3], "it is somewhere: the most probable voxels are asked"
    supervised = task.loss(([logits, logits[..., ::2, ::2, ::2]], whole, None), batch)
    assert supervised[2].item() == pytest.approx(wanted[2], rel=1e-5) and supervised[0].item() != found[0].item()


def test_the_score_is_the_log_odds_of_the_mean_of_the_most_probable_voxels():
    odds = torch.from_numpy(np.random.default_rng(0).normal(-2, 3, (12, 10, 9)))
    highest = np.sort(special.expit(odds.numpy().ravel()))[::-1]
    wanted = [special.logit(highest[:top].mean()) for top in TOPS]
    assert evidence._of_tops(odds) == pytest.approx(wanted)
    sure = evidence._of_tops(torch.full((3, 3, 3), 60.0))  # whose probabilities all are 1 in float64
    assert sure == pytest.approx([60.0] * len(TOPS))


def test_of_equally_good_tops_the_middle_one_is_taken():
    labels, middle = np.array([0, 0, 0, 1, 1, 1]), len(TOPS) // 2
    perfect = np.arange(6.0)
    odds = np.tile(perfect[:, None], len(TOPS))
    assert evidence._choose(labels, odds) == middle
    swapped = np.array([0, 1, 3, 2, 4, 5.0])
    odds[:, middle] = swapped  # one pair of nine
    assert evidence._choose(labels, odds) == middle, "one pair of cases is luck"
    odds[:, middle] = -perfect
    assert evidence._choose(labels, odds) in (middle - 1, middle + 1)


def test_logistic_calibration_of_many_cases_is_maximum_likelihood():
    rng = np.random.default_rng(0)
    scores = rng.normal(3, 4, 20_000)
    labels = rng.random(20_000) < special.expit(0.7 * scores - 1.5)
    assert fit_logistic(labels, scores) == pytest.approx((0.7, -1.5), abs=0.05)


@pytest.mark.parametrize("labels", [[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 1, 0, 1]])
def test_logistic_calibration_of_few_cases_is_sure_of_nothing_and_keeps_the_order(labels):
    scores = np.array([-900.0, -20, -9, -8, 4, 5, 6, 800])
    slope, intercept = fit_logistic(labels, scores)
    assert slope > 0 and np.isfinite(intercept)
    inner = special.expit(slope * scores[1:7] + intercept)
    assert (np.diff(inner) > 0).all() and 0.05 < inner[0] and inner[-1] < 0.95
    assert np.isfinite(fit_logistic([0, 1], [2.0, 2.0])).all()


@pytest.fixture
def table(layout, tmp_path):
    def write(**changes):
        """A table of the layout; changes: {id: {column: text}}."""
        rows = []
        for number in range(CASES):
            folder = f"{number:02}"
            mask = layout / "labels" / f"sub_{folder}" / "ses_1" / "seg.nii.gz"
            row = {"id": f"c{folder}", "subject": folder, "mask": str(mask) if mask.exists() else ""}
            row["flair"] = str(layout / "preprocessed" / f"sub_{folder}" / "ses_1" / "flair.nii.gz")
            row["state"] = ("healthy", "infarct")[number % 2]
            rows.append({**row, **changes.get(row["id"], {})})
        data = {"source": "table", "csv": write_table(tmp_path / "table.csv", rows), "root": None}
        return config_of(layout, tmp_path, data=data, task={"targets": ["state"]})

    return write


def test_a_table_has_masks_of_some_cases(table, layout):
    config, said = kinds.settle(table())
    assert config.task.evidence == "mask" and said["data"]["with_mask"] == 5
    cases = sources.list_cases(config.data, tasks.wanted(config))
    assert [case.mask is not None for case in cases] == [bool(has_mask(number)) for number in range(CASES)]
    healthy = str(layout / "labels" / "sub_01" / "ses_1" / "seg.nii.gz")
    with pytest.raises(UserError, match="line 4: column 'mask': got .*seg.nii.gz, which has a voxel above 0, wanted"):
        kinds.settle(table(c02={"mask": healthy}))
    with pytest.raises(UserError, match="line 6: column 'mask': got .*nowhere.nii, which does not exist"):
        kinds.settle(table(c04={"mask": "nowhere.nii"}))


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["task.type=segmentation", "task.evidence=mask"], "task.evidence: got mask, wanted none for"),
        (["task.classes=3", "task.evidence=mask"], "task.evidence: got mask, wanted none: one target of two"),
        (["task.evidence=mask", "eval.saliency=2"], "eval.saliency: got 2, wanted 0 for .* task.evidence=mask"),
        (["task.evidence=mask", "task.loss=focal"], "task.loss: got focal, wanted one of auto, dice_focal"),
        (["task.evidence=mask", "augment.mix=mixup"], "augment.mix: got mixup, wanted none"),
        (["model.name=suprem_unet3d", "eval.windows=1"], "model.name: got suprem_unet3d, wanted one of unet_b"),
    ],
)
def test_what_does_not_fit_is_refused(layout, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(layout, tmp_path, overrides)


def test_networks_that_learned_otherwise_do_not_predict_together(trained, layout, tmp_path):
    crossval.run(config_of(layout, tmp_path, ["task.evidence=none", "train.epochs=1", "train.steps_per_epoch=1"]))
    paths = [RunFolder(tmp_path / "run").fold(1).best, trained.fold(1).best]
    done = run_command("tools/predict.py", *paths, "--source", "fomo1", "--root", layout, "--output", tmp_path / "x")
    assert done.returncode == 2 and "task.evidence=mask, and" in done.stderr


def test_merging_states_takes_the_lower_median_of_top():
    states = [{"top": [top], "line": [[1.0, 0.0, top]], "threshold": 0.5} for top in (1, 30, 10, 100)]
    assert Evidence.merge(states) == {"top": [10], "line": [[1.0, 0.0, 35.25]], "threshold": 0.5}


def test_the_head_is_added_to_the_evidence_where_validation_cases_show_that_it_helps():
    rng, labels = np.random.default_rng(0), np.arange(400) % 2
    odds, head = labels + rng.normal(0, 1, 400), labels + rng.normal(0, 1, 400)
    slope, beside, intercept = fit_logistic(labels, odds, head)
    assert slope == pytest.approx(1, abs=0.3) and beside == pytest.approx(1, abs=0.3)
    assert auroc(labels, slope * odds + beside * head) > auroc(labels, odds) + 0.05
    assert fit_logistic(labels, odds, -head) == pytest.approx((fit_logistic(labels, odds)[0], 0, -0.5), abs=0.1)
    slope, beside, _ = fit_logistic([0, 1, 0, 1], [-1.0, 1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0])
    assert slope > 0.5 and 0 < beside < 0.6, "of few cases the head is hardly believed, even where it is right"
    assert np.isfinite(fit_logistic([0, 1], [0.0, 0.0], [2.0, 2.0])).all()


def test_a_case_knows_what_its_mask_holds(layout, tmp_path):
    config = config_of(layout, tmp_path)
    case = sources.list_cases(config.data, tasks.wanted(config))[1]
    mask = nibabel.load(case.mask.path).get_fdata()
    assert case.foreground_mm3 == np.count_nonzero(mask) * 8.0
    assert Case("a", "a", ()).foreground_mm3 is None
