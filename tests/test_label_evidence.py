"""Several labels of which some are learned from masks: what is known of each, and a whole run of it."""

import csv
import json
import os

import nibabel
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, members_of, run_command, write_table

from fomo import checkpoint, kinds, losses, nets, tasks
from fomo.config import UserError
from fomo.data import loader, sources
from fomo.nets.multihead import MultiHead
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.space import volume
from fomo.tasks import evidence
from fomo.tasks.evidence import TOPS, LabelEvidence

CASES, LABELS = 20, ["big ball", "dark", "bright"]  # the first two have masks, of some of the cases; they may overlap
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def flags(number):
    return number % 2, number // 2 % 2, number % 3 == 0


def has_mask(number, label):
    return bool(flags(number)[label]) and label < 2 and number not in (3, 7)


def draw(number, rng):
    """(image, [mask of each label]) of 18 x 20 x 16 voxels."""
    image = rng.normal(100, 10, (18, 20, 16)).astype(np.float32)
    corner, masks = rng.integers(4, 9, 3), np.zeros((3, *image.shape), np.uint8)
    grid = np.indices(image.shape) - corner[:, None, None, None]
    masks[0] = (grid**2).sum(0) < 12
    masks[1, corner[0] : corner[0] + 5, corner[1] : corner[1] + 3, corner[2] : corner[2] + 3] = 1  # it reaches into it
    masks *= np.array(flags(number), np.uint8)[:, None, None, None]
    return image + 80 * masks[0] - 60 * masks[1] + 40 * flags(number)[2], masks


def scan(place, array):
    place.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), place)
    return str(place)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The lines of the table."""
    root, rng, found = tmp_path_factory.mktemp("labels"), np.random.default_rng(0), []
    for number in range(CASES):
        image, masks = draw(number, rng)
        row = {"id": f"c{number:02}", "subject": f"{number:02}", "t1": scan(root / f"{number}.nii.gz", image)}
        row |= {name: int(flag) for name, flag in zip(LABELS, flags(number))}
        for label in range(2):
            path = scan(root / f"{number}_{label}.nii.gz", 5 * masks[label]) if has_mask(number, label) else ""
            row[f"mask_{LABELS[label]}"] = path
        found.append(row)
    return found


def config_of(rows, folder, overrides=(), **sections):
    content = {
        "name": "run",
        "output": str(folder),
        "task": {"type": "multilabel", "targets": LABELS, "evidence": "auto", "class_weights": "inverse_frequency"},
        "data": {"source": "table", "csv": write_table(folder / "table.csv", rows), "channels": ["t1"]},
        "model": {"width": 2},
        "optim": {"lr": 1e-2},
        "train": {"epochs": 2, "batch_size": 2, "steps_per_epoch": 15, "workers": 0},
        "augment": {"preset": "none"},
        "cv": {"folds": 2, "val_fraction": 0.4},
        "eval": {"bootstrap": 20},
    }
    content["data"] |= {"spacing_mm": [2.0, 2.0, 2.0], "prepare_workers": 0, "crop": False, "patch": [32, 32, 16]}
    for name, section in sections.items():
        content[name] = {**content.get(name, {}), **section}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return kinds.load(path, overrides)


@pytest.fixture(scope="module")
def trained(rows, tmp_path_factory):
    """The RunFolder of a cross-validation."""
    folder = tmp_path_factory.mktemp("run")
    crossval.run(config_of(rows, folder))
    return RunFolder(folder / "run")


def read(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def prepared(config):
    wanted = tasks.wanted(config)
    return sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted)


def test_a_run_says_what_each_label_is_learned_from_and_scores_all(trained):
    line = next(line for line in open(trained.log_path) if " evidence=" in line)
    masked = [sum(has_mask(number, label) for number in range(CASES)) for label in range(2)]
    assert f'from_masks="big ball:{masked[0]}/10",dark:{masked[1]}/10 from_labels=bright:0/7' in line
    assert yaml.safe_load(open(trained.config_path))["task"]["evidence"] == "mask"
    rows = read(os.path.join(trained.path, "predictions.csv"))
    assert [row["id"] for row in rows] == [f"c{number:02}" for number in range(CASES)]
    for number, row in enumerate(rows):
        assert [int(row[f"target_{name}"]) for name in ("big_ball", "dark", "bright")] == [*map(int, flags(number))]
        assert (row["located_big_ball"] != "nan") == has_mask(number, 0) and "located_bright" not in row
    metrics = json.load(open(trained.summary_path))["metrics"]
    assert metrics["volume_auroc_macro"]["pooled"] > 0.6 and metrics["located"]["pooled"] > 0.4
    labels = read(os.path.join(trained.path, "labels.csv"))
    assert [row["label"] for row in labels] == LABELS and float(labels[0]["auroc"]) > 0.7
    state = checkpoint.load(trained.fold(1).best)["task"]
    assert (
        state["masked"] == [0, 1] and all(top in TOPS for top in state["top"]) and state["line"][2] == [1.0, 0.0, 0.0]
    )
    assert np.allclose(np.array(state["class_weights"]).shape, (3, 2))


def test_the_report_draws_the_evidence_of_the_labels(trained):
    pytest.importorskip("matplotlib")
    page = open(trained.report_path).read()
    assert ">Evidence<" in page and "big_ball 1, probability" in page and "its highest voxel is" in page
    fold = trained.fold(1)
    for row in fold.results().rows:
        stored = np.load(fold.evidence(row["id"]))
        assert sorted(stored["labels"]) == [0, 1] and stored["evidence_2"].shape == (2, 18, 20)
        number = int(row["id"][1:])
        shown = {int(label): plane.any() for label, plane in zip(stored["labels"], stored["reference_0"])}
        assert not any(shown[label] and not has_mask(number, label) for label in range(2))


def test_prediction_gives_the_numbers_of_the_fold_and_a_map_of_each_finding(trained, rows, tmp_path):
    fold = trained.fold(1)
    table = write_table(tmp_path / "cases.csv", [{"id": row["id"], "t1": row["t1"]} for row in rows])
    arguments = [fold.path, "--cases", table, "--output", tmp_path / "said", "--probabilities"]
    done = run_command("tools/predict.py", *map(str, arguments))
    assert done.returncode == 0, done.stderr
    said = {row["id"]: row for row in read(tmp_path / "said" / "predictions.csv")}
    for row in fold.results().rows:
        for name in ("big_ball", "dark", "bright"):
            assert float(said[row["id"]][f"probability_{name}"]) == pytest.approx(row[f"probability_{name}"], abs=1e-9)
            assert int(said[row["id"]][f"decision_{name}"]) == row[f"decision_{name}"]
    volumes = nibabel.load(tmp_path / "said" / "probabilities" / "c00.nii.gz").get_fdata()
    assert volumes.shape == (18, 20, 16, 3) and 0 <= volumes.min() and volumes.max() <= 1
    np.testing.assert_allclose(volumes[..., 0], 1 - volumes[..., 1:].max(-1), atol=1e-6)
    references = write_table(tmp_path / "references.csv", rows)
    done = run_command("tools/evaluate.py", "--predictions", tmp_path / "said", "--references", references)
    assert done.returncode == 0 and "metric=auroc_macro" in done.stdout, done.stderr


def test_an_ensemble_decides_at_the_mean_thresholds_and_a_merged_state_has_the_mean_of_each_label(trained):
    tasks_of = [member.task for member in members_of(trained.path)]
    states = [task.state for task in tasks_of]
    merged = LabelEvidence.merge(states)
    assert merged["top"] == [min(own) for own in zip(*(state["top"] for state in states))]
    np.testing.assert_allclose(merged["line"], np.mean([state["line"] for state in states], axis=0))
    parts = [evidence.Part([[odds] * len(TOPS)] * 2, None, np.array([0.0, 1.0, odds])) for odds in (-1.0, 3.0)]
    own = np.array([task.probabilities(part.odds, part.whole) for task, part in zip(tasks_of, parts)])
    geometry = volume.preprocess([np.arange(1.0, 65).reshape(4, 4, 4)], np.eye(4), spacing_mm=None)[2]
    finding = np.zeros((2, *geometry.shape), np.float32)
    row, _ = LabelEvidence.answer(tasks_of, [part._replace(finding=finding) for part in parts], geometry)
    assert [row[f"probability_{name}"] for name in tasks_of[0].names] == pytest.approx(own.mean(0))
    assert own[:, 2] == pytest.approx(1 / (1 + np.exp([1.0, -3.0]))), "of a label without masks the head's alone"
    thresholds = np.mean([state["thresholds"]["volume"]["each"] for state in states], axis=0)
    assert [row[f"decision_{name}"] for name in tasks_of[0].names] == (own.mean(0) >= thresholds).astype(int).tolist()


def test_other_tasks_start_from_its_network_without_the_head(trained):
    for mode, new in (("segmentation", "decoder.out_conv"), ("classification", "decoder.fc")):
        network = nets.build("unet_b", 1, 2, mode=mode, width=2)
        report = checkpoint.load_weights(network, trained.fold(1).best)
        assert "encoder.in_conv.conv1.conv.weight" in report.loaded and any(name.startswith(new) for name in report.new)
        assert any(name.startswith("heads.") for name in report.ignored)


def test_a_finding_is_a_bit_of_the_prepared_mask(rows, tmp_path):
    config = config_of(rows, tmp_path, ["task.evidence=mask"])
    cases = prepared(config)
    for number, case in enumerate(cases):
        assert [mask is not None for mask in case.findings] == [has_mask(number, label) for label in range(3)]
        if case.class_voxels:
            for label in range(2):
                native = (
                    nibabel.load(rows[number][f"mask_{LABELS[label]}"]).get_fdata() if has_mask(number, label) else 0
                )
                np.testing.assert_array_equal(np.array(case.mask()) >> label & 1, native > np.zeros((18, 20, 16)))
    both = [number for number in range(CASES) if has_mask(number, 0) and has_mask(number, 1)]
    assert any(cases[number].class_voxels[3] for number in both), "findings overlap"
    assert set(np.unique(cases[both[0]].foreground()[:, 3])) <= {1, 2, 3}
    task = tasks.build(config)
    task.inspect(cases)
    samples = loader.read_batch(config, task, cases, 1, range(len(cases)))
    assert samples["known"].shape == samples["target"].shape == (len(cases), 3)
    for known, id in zip(samples["known"].tolist(), samples["id"]):
        number = int(id[1:])
        assert known == [has_mask(number, label) or not flags(number)[label] for label in range(3)]
    strata = task.strata(cases)
    assert strata[3] == [1, 1, 1, 0, 0] and strata[9] == [1, 0, 1, 1, 0]


def test_the_loss_is_the_mean_over_labels_of_what_is_known_of_each(rows, tmp_path):
    task = tasks.build(config_of(rows, tmp_path, ["task.evidence=mask"]))
    task.state["masked"], task.state["class_weights"] = [0, 1], [[0.5, 2.0], [1.0, 1.0], [1.0, 3.0]]
    generator = torch.Generator().manual_seed(0)
    dense, whole = torch.randn(1, 4, 4, 4, 4, generator=generator), torch.randn(1, 3, generator=generator)
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    mask[0, :2], mask[0, 1:3] = 1, mask[0, 1:3] | 2
    batch = {"target": torch.tensor([[1.0, 1.0, 1.0]]), "known": torch.tensor([[True, False, False]]), "mask": mask}
    odds = torch.sort((dense[0, 3] - dense[0, 2]).flatten()).values[-30:].mean()
    first = losses.dice_focal(dense[:, :2], mask & 1)[0]
    of_head = (torch.tensor([2.0, 1.0, 3.0]) * torch.nn.functional.softplus(-whole[0])).sum()
    wanted = 2 * first + torch.nn.functional.softplus(-odds) + of_head
    assert task.loss((dense, whole, None), batch).item() == pytest.approx(wanted.item() / 3, rel=1e-5)


def test_the_gradient_of_labels_that_have_maps_stays_in_the_head():
    network = MultiHead(nets.build("unet_b", 1, 4, width=2), 1, 3, "multistage", apart=[0, 1])
    for label, reaches in ((0, False), (1, False), (2, True)):
        network.zero_grad()
        dense, whole, _ = network(torch.randn(2, 1, 32, 32, 16, generator=torch.Generator().manual_seed(0)))
        whole[:, label].sum().backward()
        assert network.heads.fc.weight.grad[label].abs().sum() > 0
        assert (network.encoder.in_conv.conv1.conv.weight.grad.abs().sum() > 0) == reaches, label
    assert not any("stays" in name for name in network.state_dict()), "the task says it, and no checkpoint"


def test_too_few_masks_are_no_evidence(rows, tmp_path):
    bare = [{**row, "mask_big ball": "", "mask_dark": ""} for row in rows]
    settled, said = kinds.settle(config_of(bare, tmp_path))
    assert settled.task.evidence == "none" and said["data"]["from_masks"] == []
    assert type(tasks.build(settled)).__name__ == "Multilabel"
    config = config_of(bare, tmp_path, ["task.evidence=mask"])
    message = r"task.evidence: got at most 0 masks of a label \(the column mask_big ball\), wanted 3 of one, or"
    with pytest.raises(UserError, match=message):
        tasks.build(config).inspect(sources.list_cases(config.data, tasks.wanted(config)))
    done = run_command("cv.py", tmp_path / "config.yaml", "task.evidence=mask", "--dry-run")
    assert done.returncode == 2 and "task.evidence: got at most 0 masks" in done.stderr


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda row, mask: {**row, "dark": 0, "mask_dark": mask}, "column 'mask_dark': got .* has a voxel above 0"),
        (lambda row, mask: {**row, "mask_dark": "empty"}, "column 'mask_dark': got .* has no voxel above 0"),
        (lambda row, mask: {**row, "mask_dark": "half"}, "case c02: mask: .*: got the value 0.5, wanted whole numbers"),
        (lambda row, mask: {**row, "mask_dark": "gone.nii"}, "column 'mask_dark': got .* which does not exist"),
        (lambda row, mask: {**row, "big ball": 1, "mask_big ball": mask}, "twice, wanted a file for each channel and"),
    ],
)
def test_masks_that_contradict_their_label_are_refused(rows, tmp_path, change, message):
    wrong = {"empty": np.zeros((18, 20, 16), np.uint8), "half": np.full((18, 20, 16), 0.5, np.float32)}
    row = change(rows[2], rows[2]["mask_dark"])
    if row["mask_dark"] in wrong:
        row["mask_dark"] = scan(tmp_path / "mask.nii.gz", wrong[row["mask_dark"]])
    with pytest.raises(UserError, match=message):
        config = config_of([*rows[:2], row, *rows[3:]], tmp_path)
        sources.list_cases(config.data, tasks.wanted(config))


def test_a_fold_without_masks_is_refused_by_name_and_an_unvalidated_label_stays_uncalibrated(rows, tmp_path):
    config = config_of(rows, tmp_path, ["task.evidence=mask"])
    cases, task = prepared(config), tasks.build(config)
    task.inspect(cases)
    message = r"got \d training cases with dark without a mask, wanted masks of some of them \(the column mask_dark\)"
    with pytest.raises(UserError, match=message):
        task.fit([case for case in cases if case.findings[1] is None], cases)
    task.fit(cases, cases)
    columns = task.names_of("target"), task.names_of("probability")
    said = tasks.Results(
        [dict(zip(columns[0], (i % 2, 0, 1 - i % 2))) | {"id": str(i), "loss": 0.0} for i in range(6)],
        kept=[evidence.Part([[float(i % 2)] * len(TOPS)] * 2, None, np.array([0.0, 0.0, 0.5])) for i in range(6)],
    )
    messages = task.calibrate(lambda: said)
    assert "of the 6 validation cases have: dark (0)" in messages[0]
    assert task.state["line"][1] == [1.0, 0.0, 0.0] and task.state["line"][0] != [1.0, 0.0, 0.0]


def test_numbers_are_learned_beside_their_mask_by_the_config_for_them(rows, tmp_path):
    lines = []
    for number, row in enumerate(rows[:12]):
        _, masks = draw(2 * number + 1, np.random.default_rng(number))  # each has the ball
        mask = scan(tmp_path / f"{number}.nii.gz", masks[0])
        lines.append({"id": row["id"], "subject": row["subject"], "t1": row["t1"]})
        lines[-1] |= {"mask": mask, "volume": int(masks[0].sum()), "score": number % 3}
    given = {"output": tmp_path, "data.csv": write_table(tmp_path / "table.csv", lines), "data.channels": "[t1]"}
    given |= {"data.patch": "[32,32,16]", "data.spacing_mm": "[2,2,2]", "data.prepare_workers": 0, "model.width": 2}
    given |= {"train.steps": 2, "train.workers": 0, "cv.folds": 2, "cv.val_fraction": 0.25, "eval.bootstrap": 20}
    config = kinds.load(ROOT / "configs" / "table_numbers.yaml", [f"{key}={value}" for key, value in given.items()])
    crossval.run(config)
    metrics = json.load(open(tmp_path / "table_numbers" / "summary.json"))["metrics"]
    assert {"numbers_volume_mae", "numbers_score_mae", "finding_dice"} <= set(metrics)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["task.loss=focal"], "task.loss: got focal, wanted one of auto, dice_focal"),
        (["model.name=suprem_unet3d", "eval.windows=1"], "model.name: got suprem_unet3d, wanted one of unet_b"),
        (["augment.mix=mixup"], "augment.mix: got mixup, wanted none for task.type=multilabel task.evidence=auto"),
        (["eval.calibrate=half"], "eval.calibrate: got half, wanted none"),
        (["task.type=classification"], "wanted none: one target of two classes learns from masks, or several as task"),
        (
            ["task.type=regression", "task.class_weights=none"],
            "task.evidence: got auto, wanted none.*task.type=multitask",
        ),
    ],
)
def test_what_does_not_fit_is_refused(rows, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        config_of(rows, tmp_path, overrides)
