"""Several tasks on one encoder: what is refused, the network, the loss, and whole runs whose parts are scored alone."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, members_of, run_command, tool
from report_runs import Page

from fomo import checkpoint, config, kinds, nets, report, tasks
from fomo.config import UserError
from fomo.data import loader, sources
from fomo.evaluation import evaluate
from fomo.nets.multihead import MultiHead, one_task
from fomo.prediction import members as prediction
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runtime import files
from fomo.training import head as training_head

PARTS = {
    "lesion": {"type": "segmentation", "classes": 3},
    "sex": {"type": "classification", "targets": ["gender"], "weight": 0.5},
    "age": {"type": "regression", "targets": ["age"], "weight": 0.25},
}


@pytest.fixture
def several(tiny_config, phantom_root):
    """Function that writes a config of several tasks; keyword arguments are sections."""

    def write(parts=PARTS, task=None, **sections):
        data = {"channels": ["t1", "t2"], "phantom_layout": "table", **sections.pop("data", {})}
        sections = {"cv": {"stratify": True}, "model": {"width": 4}, **sections}
        path = tiny_config("segmentation", task={"type": "multitask", **(task or {})}, data=data, **sections)
        content = yaml.safe_load(path.read_text())
        content["task"]["parts"] = json.loads(json.dumps(parts))  # copies: YAML's aliases are refused
        path.write_text(yaml.safe_dump(content, sort_keys=False))  # the main part comes first
        return path

    return write


def with_part(**changes):
    return {**PARTS, **changes}


REFUSED = {
    "one part": ({"lesion": PARTS["lesion"]}, "task.parts: got 1 parts, wanted two or more"),
    "a name": (
        with_part(my_part=PARTS["age"]),
        "task.parts.my_part: got the name 'my_part', wanted letters and digits",
    ),
    "no section": (with_part(age=3), "task.parts.age: got 3, wanted a section"),
    "two masks": (with_part(other=PARTS["lesion"]), "task.parts: got several masks (lesion, other), wanted one"),
    "a type": (with_part(age={"type": "mae"}), "task.parts.age.type: got 'mae', wanted one of segmentation"),
    "a column twice": (
        with_part(older={"type": "regression", "targets": ["age"]}),
        "task.parts.older.targets: got age twice",
    ),
    "no column": (with_part(age={"type": "regression"}), "task.parts.age.targets: got [], wanted at least one column"),
    "a weight": (with_part(age={**PARTS["age"], "weight": 0}), "task.parts.age.weight: got 0, wanted a number above 0"),
    "a key": (with_part(age={**PARTS["age"], "tagets": []}), "unknown key 'task.parts.age.tagets'"),
    "a key of another type": (
        with_part(age={**PARTS["age"], "class_weights": "inverse_frequency"}),
        "task.parts.age.class_weights: got 'inverse_frequency', which type=regression does not read",
    ),
    "a loss": (
        with_part(age={**PARTS["age"], "loss": "bce"}),
        "task.parts.age.loss: got bce, wanted one of auto, huber",
    ),
    "evidence": (
        with_part(sex={**PARTS["sex"], "evidence": "mask"}),
        "task.parts.sex.evidence: got mask, wanted none: make the mask a part of its own",
    ),
    "a rule of the part": (
        with_part(lesion={**PARTS["lesion"], "class_names": ["a"]}),
        "task.parts.lesion.class_names: got [a], wanted none, or 2 different words",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_that_cannot_work_are_one_line(name, several):
    parts, said = REFUSED[name]
    with pytest.raises(UserError) as caught:
        kinds.load(several(parts))
    assert f"config.yaml: {said}" in str(caught.value) and "\n" not in str(caught.value)


def test_a_dry_run_finds_masks_of_more_classes_than_the_part_has(several):
    done = run_command("cv.py", several(with_part(lesion={"type": "segmentation", "classes": 2})), "--dry-run")
    assert done.returncode == 2 and "got the mask values 2, wanted whole numbers below task.classes=2" in done.stderr


@pytest.mark.parametrize(
    "overrides, said",
    (
        (
            ["model.name=suprem_unet3d", "model.width=4", "eval.windows=1"],
            "model.name: got suprem_unet3d, wanted one of",
        ),
        (["cv.final=refit"], "cv.final: got refit, wanted none or ensemble"),
        (["model.channel_dropout=0.2"], "model.channel_dropout: got 0.2, wanted 0 for model.head=multistage"),
        (["task.targets=[age]"], "task.targets: got [age], wanted none: each of task.parts has its own"),
        (["task.classes=3"], "task.classes: got 3, wanted 2"),
        (["data.phantom_layout=fomo"], "no other has a several to learn"),
    ),
)
def test_keys_that_do_not_fit_are_refused(overrides, said, several):
    with pytest.raises(UserError) as caught:
        loaded = kinds.load(several(), overrides)
        sources.list_cases(loaded.data, tasks.wanted(loaded))
    assert said in str(caught.value)


def test_keys_of_a_part_stand_on_the_command_line_and_reach_its_task(several):
    loaded = kinds.load(several(), ["task.parts.lesion.loss=tversky", "task.parts.age.label_scaling=none"])
    task = tasks.build(loaded)
    assert task.tasks["lesion"].config.task.loss == "tversky"
    assert task.tasks["age"].config.task.label_scaling == "none"
    assert [part.weight for part in task.parts] == [1, 0.5, 0.25]
    assert task.select == "lesion_dice" and task.higher_is_better


def test_a_part_of_another_task_sees_only_its_columns(several):
    loaded = kinds.load(several())
    wanted = tasks.wanted(loaded)
    assert wanted.masked and wanted.classes == 3 and wanted.kinds == ("class", "number")
    cases = sources.list_cases(loaded.data, wanted)
    lesion, sex, age = tasks.build(loaded).parts
    for case in cases:
        assert age.case(case).target == case.target[1] and age.case(case).labels == ()
        assert sex.case(case).target == case.target[0] and sex.case(case).labels == case.labels[:1]
        assert lesion.case(case).target == float(case.foreground_mm3 > 0)
        assert age.case(case).id == case.id and age.case(case).subject == case.subject


def network_of(several, **more):
    loaded = kinds.load(several(**more))
    task = tasks.build(loaded)
    cases = sources.list_cases(loaded.data, tasks.wanted(loaded))
    task.inspect(cases)
    return loaded, task, tasks.build_network(loaded, task), cases


def test_one_encoder_feeds_decoder_and_head(several):
    _, task, network, _ = network_of(several)
    x = torch.randn(2, 2, 32, 32, 32)
    network.eval()
    with torch.no_grad():
        dense, whole, log_variances = network(x)
        assert dense.shape == (2, 3, 32, 32, 32) and whole.shape == (2, 3) and log_variances is None
        torch.testing.assert_close(network.dense(x), dense)
        torch.testing.assert_close(network.whole(x), whole)
        for (part, _, place), columns in zip(task._outputs(), (None, slice(0, 2), slice(2, 3))):
            own = one_task(network, place)(x)
            torch.testing.assert_close(own, dense if part.dense else whole[:, columns])
    for outputs in (network(x)[0], network(x)[1]):
        network.zero_grad()
        (outputs[0] if isinstance(outputs, list) else outputs).sum().backward()
        assert network.encoder.in_conv.conv1.conv.weight.grad.abs().sum() > 0
    names = [name for name, _ in network.named_parameters()]
    for name in names:
        assert sum(name.startswith(stage) for stage in network.stages) == 1, name


def test_pretrained_weights_load_and_the_heads_are_new(several, tmp_path):
    pretrained = nets.build("unet_b_lw_dec", 1, 1, width=4)
    checkpoint.save(tmp_path / "w.pt", {"model": pretrained.state_dict()})
    _, _, network, _ = network_of(several)
    report = checkpoint.load_weights(network, tmp_path / "w.pt")
    assert all(
        name.startswith(("heads.", "decoder.out_conv", "decoder.decoder_conv", "decoder.ds")) for name in report.new
    )
    torch.testing.assert_close(
        network.encoder.encoder_conv4.conv2.conv.weight, pretrained.encoder.encoder_conv4.conv2.conv.weight
    )
    torch.testing.assert_close(network.decoder.upsample1.weight, pretrained.decoder.upsample1.weight)


def test_without_a_mask_there_is_no_decoder(several):
    parts = {"sex": PARTS["sex"], "age": PARTS["age"]}
    loaded, task, network, _ = network_of(several, parts=parts)
    assert not any(name.startswith("decoder") for name, _ in network.named_parameters())
    dense, whole, _ = network(torch.randn(1, 2, 32, 32, 32))
    assert dense is None and whole.shape == (1, 3) and task.volumes == ()
    assert not tasks.wanted(loaded).masked and task.select == "sex_auroc"


@pytest.fixture
def batch(several):
    loaded, task, network, listed = network_of(several, task={"weighting": "uncertainty"})
    cases = sources.prepare(listed, loaded.data, tasks.wanted(loaded))
    task.fit(cases, cases)
    return task, network, loader.read_batch(loaded, task, cases, 1, [0, 1, 2, 3])


def test_the_loss_is_the_weighted_sum_of_those_of_the_parts(batch):
    task, network, one = batch
    dense, whole, _ = network(one["image"])
    target = one["target"]
    expected = (
        task.tasks["lesion"].loss(dense, one)
        + 0.5 * task.tasks["sex"].loss(whole[:, :2], {**one, "target": target[:, 0]})
        + 0.25 * task.tasks["age"].loss(whole[:, 2:], {**one, "target": target[:, 1]})
    )
    torch.testing.assert_close(task.loss((dense, whole, None), one), expected)


def test_learned_variances_weigh_each_loss_by_its_size(batch):
    """At the best variances each part adds one plus the logarithm of its loss: large losses are divided by more."""
    task, network, one = batch
    assert network.log_variances.shape == (3,) and any(n == "log_variances" for n, _ in network.named_parameters())
    with torch.no_grad():
        dense, whole, _ = network(one["image"])
    free = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.Adam([free], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        task.loss((dense, whole, free), one).mean().backward()
        optimizer.step()
    target = one["target"]
    losses = [
        task.tasks["lesion"].loss(dense, one),
        task.tasks["sex"].loss(whole[:, :2], {**one, "target": target[:, 0]}),
        task.tasks["age"].loss(whole[:, 2:], {**one, "target": target[:, 1]}),
    ]
    wanted = [math.log(float(loss.mean())) for loss in losses]
    assert free.tolist() == pytest.approx(wanted, abs=0.02)


def test_a_multistage_head_starts_each_part_in_its_own_unit(several):
    loaded, task, network, listed = network_of(several)
    cases = sources.prepare(listed, loaded.data, tasks.wanted(loaded))
    task.fit(cases, cases)
    log = type("Log", (), {"__call__": lambda self, event, **values: None})()
    training_head.start_head(loaded, task, network, cases, log)
    network.eval()
    with torch.no_grad():
        whole = torch.cat([network.whole(torch.from_numpy(np.array(padded(case)))[None]) for case in cases]).numpy()
    ages = np.array([case.target[1] for case in cases])
    scaled = (ages - ages.mean()) / ages.std()
    assert np.corrcoef(whole[:, 2], scaled)[0, 1] > 0.5, "a number in units of the training cases' deviation"
    assert np.abs(whole[:, 2]).max() < 6 and np.isfinite(whole).all()


def padded(case):
    from fomo.space import patches

    start = patches.draw_start(case.shape, (32, 32, 32), None, "center")
    return patches.read(case.image(), start, (32, 32, 32), case.background, np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory, phantom_root):
    """The folder of a finished run of three parts, and its data."""
    folder = tmp_path_factory.mktemp("multitask")
    content = {
        "name": "run",
        "output": str(folder),
        "task": {"type": "multitask", "parts": PARTS},
        "data": {
            "source": "phantom", "root": str(phantom_root), "cache": str(phantom_root / "cache"),
            "phantom_layout": "table", "channels": ["t1", "t2"], "patch": [32, 32, 32], "spacing_mm": [8.0, 8.0, 8.0],
            "phantom_cases": 24, "phantom_size": 24, "prepare_workers": 0,
        },
        "model": {"width": 4},
        "optim": {"lr": 1e-2},
        "train": {"epochs": 3, "batch_size": 4, "workers": 0, "amp": "off"},
        "augment": {"preset": "none"},
        "cv": {"folds": 2, "val_fraction": 0.4, "final": "ensemble"},
        "eval": {"bootstrap": 30, "mirror_axes": [0]},
    }  # fmt: skip
    crossval.run(kinds.from_dict(content, "here"))
    return folder / "run"


def test_each_part_of_a_run_is_scored_as_its_own_task(run):
    summary = json.loads((run / "summary.json").read_text())["metrics"]
    rows = files.read_numbers(run / "predictions.csv")
    task = tasks.build(RunFolder(run).config())
    for name, type in (("lesion", "segmentation"), ("sex", "classification"), ("age", "regression")):
        alone = tasks.TASKS[type](config.Config(task=task.tasks[name].config.task))
        own = [
            {k.removeprefix(f"{name}_"): v for k, v in row.items() if k.startswith(f"{name}_")}
            | {k: row[k] for k in ("id", "subject", "fold")}
            for row in rows
        ]
        expected = alone.score(tasks.Results(own))
        for metric, value in expected.items():
            if isinstance(value, float) and math.isfinite(value):
                assert summary[f"{name}_{metric}"]["pooled"] == pytest.approx(value), (name, metric)
        assert len(expected) > 3
    assert len(list(run.glob("fold_*/masks/*.nii.gz"))) == len(rows)


def test_the_page_shows_every_part(run):
    page = open(report.write(run)).read()
    for text in ("Lesion: masks", "Sex:", "Age:", "lesion: Dice", "sex: AUROC", "age: MAE"):
        assert text in page, text
    head, *rows = Page(page).table("Every out-of-fold case")
    titles = [cell.text for cell in head]
    assert titles[0] == "case" and len(titles) < 30, "what the views of the parts show, and not every column"
    found = {row[0].text: row[titles.index("age: absolute error")].value for row in rows}
    stored = files.read_numbers(run / "predictions.csv")
    assert found == pytest.approx({row["id"]: abs(row["age_prediction"] - row["age_target"]) for row in stored})


def test_each_part_that_is_no_mask_is_audited(run, several):
    audits, log = json.loads((run / "audit" / "audit.json").read_text())["audits"], (run / "log.txt").read_text()
    summary = json.loads((run / "summary.json").read_text())["metrics"]
    assert [one["part"] for one in audits] == ["sex", "age"]
    for one in audits:
        assert one["value"] == pytest.approx(summary[f"{one['part']}_{one['metric']}"]["pooled"])
        assert "volume of the head" in [rival["name"] for rival in one["rivals"]] and one["cases"] == 24
        assert f"audit part={one['part']} metric=" in log
    page = open(report.write(run)).read()
    assert page.count("<h3>Sex</h3>") and page.count("Rivals on the same folds and cases") >= 2
    with pytest.raises(
        UserError, match="audit.shuffled: got 1, wanted 0 for task.type=multitask: its labels are masks"
    ):
        kinds.load(several(audit={"shuffled": 1}))
    parts = {name: PARTS[name] for name in ("sex", "age")}
    assert kinds.load(several(parts, audit={"shuffled": 1})).audit.shuffled == 1


def table_and_masks(phantom_root):
    [root] = phantom_root.glob("heads_24x24_*")
    return root


def test_predictions_are_those_of_the_folds_and_each_part_is_evaluated(run, phantom_root, tmp_path):
    root = table_and_masks(phantom_root)
    rows = list(csv.DictReader(open(root / "table.csv")))
    first = files.read_numbers(run / "fold_1" / "predictions.csv")
    tested = {row["id"] for row in first}
    chosen = [row for row in rows if row["id"] in tested]
    table = tmp_path / "cases.csv"
    with open(table, "w", newline="") as file:
        writer = csv.DictWriter(file, chosen[0])
        writer.writeheader()
        writer.writerows(
            {k: str(root / v) if k in ("t1", "t2", "mask") else v for k, v in row.items()} for row in chosen
        )
    answers = tmp_path / "answers"
    tool("predict", run / "fold_1" / "best.pt", "--cases", table, "--output", answers, "--mutual-information")
    said = {row["id"]: row for row in files.read_csv(answers / "predictions.csv")}
    for row in first:
        for column in ("sex_probability", "age_prediction"):
            assert float(said[row["id"]][column]) == pytest.approx(row[column], abs=1e-5)
        assert int(said[row["id"]]["lesion_predicted_voxels"]) == row["lesion_predicted_voxels"]
        assert "lesion_mutual_information" in said[row["id"]]  # of the mask, over the two test-time views
    scores = {row["metric"]: row["value"] for row in files.read_csv(run / "fold_1" / "results.csv")}
    references = tmp_path / "references"
    references.mkdir()
    for row in chosen:
        shutil.copy(root / row["mask"], references / f"{row['id']}.nii.gz")
    for part, place, metric in (("lesion", references, "dice_1"), ("sex", table, "auroc"), ("age", table, "mae")):
        _, own, summary = evaluate.evaluate(answers, str(place), resamples=0, part=part)
        assert len(own) == len(first)
        assert summary[metric]["value"] == pytest.approx(float(scores[f"{part}_{metric}"]), abs=1e-5), part
    with pytest.raises(UserError, match="--part: got none, wanted one of lesion, sex, age"):
        evaluate.evaluate(answers, str(table))
    with pytest.raises(UserError, match="--part: got x, wanted one of lesion"):
        evaluate.evaluate(run, str(table), part="x")
    _, own, summary = evaluate.evaluate(run, str(root / "table.csv"), resamples=0, part="sex")
    pooled = json.loads((run / "summary.json").read_text())["metrics"]["sex_auroc"]["pooled"]
    assert summary["auroc"]["value"] == pytest.approx(pooled)


def test_several_networks_are_averaged_part_by_part(run):
    members = members_of(run)
    task = members[0].task
    cases = prepared(run)[:1]
    image = np.asarray(cases[0].image())
    both = prediction.infer(members, cases[0], image, cases[0].background)
    row, volumes = prediction.answer(members, both, cases[0].geometry)
    alone = []
    for member in members:
        said = prediction.infer([member], cases[0], image, cases[0].background)
        alone.append(prediction.answer([member], said, cases[0].geometry))
    for column in ("sex_probability", "age_prediction"):
        assert row[column] == pytest.approx(np.mean([one[column] for one, _ in alone]))
    mean = np.mean([list(found["probabilities"]) for _, found in alone], axis=0)
    np.testing.assert_allclose(volumes["probabilities"], mean, atol=1e-5)
    assert volumes["mask"].dtype == np.uint8 and task.volumes == ("mask",)


def prepared(run):
    loaded = RunFolder(run).config_of_folds()
    wanted = tasks.wanted(loaded)
    return sources.prepare(sources.list_cases(loaded.data, wanted), loaded.data, wanted)


def test_runs_of_the_same_parts_are_compared_part_by_part(run, tmp_path):
    shutil.copytree(run, tmp_path / "other")
    rows, _ = report.compare([str(run), str(tmp_path / "other")], resamples=50)
    assert {"lesion_dice", "lesion_hd95", "sex_auroc", "sex_auroc_within", "age_mae"} <= {row["metric"] for row in rows}
    assert all(row["difference"] == 0 for row in rows if row["cases"])
    config = tmp_path / "other" / "config.yaml"
    config.write_text(config.read_text().replace("    age:", "    years:"))
    with pytest.raises(UserError, match="of other metrics"):
        report.compare([str(run), str(tmp_path / "other")], resamples=50)


def test_numbers_and_classes_without_a_mask_and_learned_weights(several, tmp_path):
    parts = {"age": PARTS["age"], "who": {"type": "classification", "targets": ["cohort", "gender"]}}
    crossval.run(
        kinds.load(several(parts, {"weighting": "uncertainty"}, cv={"stratify": True, "folds": 2, "val_fraction": 0.4}))
    )
    summary = json.loads((tmp_path / "runs" / "run" / "summary.json").read_text())
    assert summary["headline"] == "age_mae" and {"who_auroc_macro", "who_gender_auroc"} <= set(summary["metrics"])
    content = checkpoint.load(tmp_path / "runs" / "run" / "fold_1" / "best.pt")
    assert content["model"]["log_variances"].abs().max() > 0, "they are learned"
    assert {row["target"] for row in files.read_csv(tmp_path / "runs" / "run" / "who_confusion.csv")} == {
        "cohort",
        "gender",
    }


def test_the_demo_is_a_config_of_three_parts():
    loaded = kinds.load(ROOT / "configs" / "demo_multitask.yaml")
    assert [part.name for part in tasks.build(loaded).parts] == ["lesion", "cohort", "age"]


def test_the_wrapper_keeps_what_freezing_and_transfer_need():
    network = MultiHead(nets.build("resenc_unet_s", 1, 2, width=2), 1, 4, "multistage", masked=False)
    assert network.unused_prefixes == ("decoder.",) and network.encoder_prefixes == ("encoder.",)
    assert all(stage[0].startswith(("encoder.", "heads.")) for stage in network.stages)
