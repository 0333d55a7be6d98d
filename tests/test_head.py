"""A multistage head in whole runs: it starts at the linear fit, goes on from there, and is kept where it is known."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from conftest import tool
from dummies import task as dummy_task

from fomo import checkpoint, kinds, nets, tasks
from fomo.config import UserError, to_dict
from fomo.data import sources
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runtime import interrupt
from fomo.space import patches
from fomo.training import head
from fomo.training.evaluate import evaluate
from fomo.training.fold import build_network, inspect, start_from
from fomo.training.state import Training


def lines(folder, event):
    return [line for line in (folder / "log.txt").read_text().splitlines() if f" {event} " in line]


def started(config, type="regression"):
    """(task, network with its head fitted, prepared cases, what was logged)."""
    config, logged = kinds.load(config), []
    wanted = tasks.wanted(config)
    cases = sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted)
    task = tasks.build(config)
    inspect(task, cases)
    task.fit(cases[:10], cases[10:])
    network = build_network(config, task, 1)
    head.start_head(config, task, network, cases[:10], lambda event, **values: logged.append((event, values)))
    return task, network, cases, logged


def test_a_regression_starts_at_the_answer_of_a_linear_fit(tiny_config):
    task, network, cases, [(event, values)] = started(tiny_config("regression"))
    assert event == "head" and values["cases"] == 10 and values["features"] == 2 * (6 * 31 + 10)
    assert values["scans"] == 60, "each case is also seen as five other scans might show it"
    targets = np.array([case.target for case in cases[:10]])
    rows = evaluate(task.config, task, network, cases[:10]).rows
    found = np.array([row["prediction"] for row in sorted(rows, key=lambda row: row["id"])])
    order = np.argsort([case.id for case in cases[:10]])
    assert np.corrcoef(found, targets[order])[0, 1] > 0.5, "it says something of the cases that it was fitted to"
    assert abs(found.mean() - targets.mean()) < 0.05 * targets.mean()


@pytest.mark.parametrize("targets", [["gender"], ["cohort"], ["cohort", "gender"]])
def test_classes_start_as_logits_that_lean_to_the_right_ones(tiny_config, targets):
    type = {"type": "classification", "targets": targets, "classes": 3 if targets == ["cohort"] else 2}
    data = {"phantom_layout": "table", "channels": ["t1", "t2"], "phantom_cases": 24}
    task, network, cases, [(_, values)] = started(tiny_config("classification", task=type, data=data))
    patch, losses = task.config.data.patch, []
    network.eval()
    for case in cases[:10]:
        start = patches.draw_start(case.shape, patch, None, "center")
        image = torch.from_numpy(patches.read(np.asarray(case.image()), start, patch, case.background))[None]
        with torch.no_grad():
            outputs = network(image)
        target = torch.tensor([case.target], dtype=torch.float32)
        constant = torch.zeros_like(outputs)
        losses.append([float(task.loss(one, {"target": target})) for one in (outputs, constant)])
    ours, chance = np.mean(losses, axis=0)
    assert np.isfinite(ours) and ours < chance


def test_a_run_that_continues_does_not_fit_again_and_a_known_head_is_kept(tiny_config, tmp_path):
    sections = {"cv": {"folds": 2, "val_fraction": 0.25, "folds_to_run": [1]}, "train": {"epochs": 1, "mode": "train"}}
    config = tiny_config("regression", **sections)
    crossval.run(kinds.load(config))
    folder = tmp_path / "runs" / "run"
    assert len(lines(folder, "head")) == 1
    fold = RunFolder(str(folder)).fold(1)
    first = checkpoint.load(fold.best)["model"]
    assert set(first) >= {"decoder.mean", "decoder.deviation", "decoder.share", "decoder.fc.weight"}
    assert first["decoder.deviation"].min() > 0 and not torch.equal(first["decoder.mean"], torch.zeros(392))
    again = tiny_config("regression", name="again", weights={"path": fold.best}, **sections)
    crossval.run(kinds.load(again))
    folder = tmp_path / "runs" / "again"
    assert "new=0" in lines(folder, "weights")[0] and not lines(folder, "head")
    second = checkpoint.load(RunFolder(str(folder)).fold(1).best)["model"]
    assert torch.equal(first["decoder.mean"], second["decoder.mean"])


def test_resuming_within_an_epoch_gives_the_same_network(tiny_config, tmp_path, monkeypatch):
    sections = {"cv": {"folds": 2, "val_fraction": 0.25, "folds_to_run": [1]}, "train": {"epochs": 2, "mode": "train"}}
    sections["train"]["save_every_s"] = 0
    crossval.run(kinds.load(tiny_config("regression", **sections)))
    whole = checkpoint.load(RunFolder(str(tmp_path / "runs" / "run")).fold(1).last)["model"]
    stopped = kinds.load(tiny_config("regression", name="stopped", **sections))
    read, steps = Training.advance, []

    def stop(self, step):
        steps.append(step)
        if len(steps) == 4:
            raise RuntimeError("stopped")
        read(self, step)

    monkeypatch.setattr(Training, "advance", stop)
    with pytest.raises(Exception, match="stopped|fold"):
        crossval.run(stopped)
    monkeypatch.setattr(Training, "advance", read)
    crossval.run(stopped)
    folder = tmp_path / "runs" / "stopped"
    assert len(lines(folder, "head")) == 1
    continued = checkpoint.load(RunFolder(str(folder)).fold(1).last)["model"]
    assert whole.keys() == continued.keys() and all(torch.equal(whole[name], continued[name]) for name in whole)


def test_of_many_cases_some_are_drawn_and_seen_once(tiny_config, monkeypatch):
    monkeypatch.setattr(head, "_CASES", 8)
    monkeypatch.setattr(head, "_SCANS", 15)
    *_, [(_, values)] = started(tiny_config("regression"))
    assert values["cases"] == values["scans"] == 8


def test_a_case_is_seen_as_it_is_and_as_other_scans_that_are_the_same_each_time(tiny_config, monkeypatch):
    config = kinds.load(tiny_config("regression", data={"patch": [48, 32, 32]}))
    wanted = tasks.wanted(config)
    cases = sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted)[:4]
    network = build_network(config, tasks.build(config), 1)
    first, turned = head.statistics(config, network, cases), head.statistics(config, network, cases[::-1])
    assert first.shape[:2] == (6, 4) and np.array_equal(first, turned[:, ::-1]), "whatever cases are beside it"
    spread = np.median(first[1:].std(0).mean(0) / np.maximum(first[0].std(0), 1e-9))
    assert 0.01 < spread < 2, "the scans of a case differ, about as much as cases do"
    monkeypatch.setattr(head, "_SCANS", 15)
    some = head.statistics(config, network, cases)
    assert np.array_equal(some, first[:3]), "as many as there may be in all"
    masks = dataclasses.replace(config, task=dataclasses.replace(config.task, evidence="mask"))
    assert np.array_equal(head.statistics(masks, network, cases), first[:1])


def test_a_signal_stops_the_start_of_a_head(tiny_config, monkeypatch):
    config = kinds.load(tiny_config("regression"))
    cases = sources.prepare(sources.list_cases(config.data, tasks.wanted(config)), config.data, tasks.wanted(config))
    monkeypatch.setattr(interrupt, "requested", lambda: True)
    with pytest.raises(interrupt.Interrupted):
        head.statistics(config, build_network(config, tasks.build(config), 1), cases)


def test_too_few_subjects_are_an_error_that_names_the_key(tiny_config):
    with pytest.raises(UserError, match="model.head=multistage: the training cases cannot start it: subjects: got 2"):
        config = kinds.load(tiny_config("regression"))
        wanted = tasks.wanted(config)
        cases = sources.prepare(sources.list_cases(config.data, wanted)[:2], config.data, wanted)
        task = tasks.build(config)
        head.start_head(config, task, build_network(config, task, 1), cases, lambda *_, **__: None)


def test_a_task_without_targets_for_a_head_has_a_linear_one(tiny_config, monkeypatch):
    dummy_task.register(monkeypatch)
    data = {"phantom_layout": "table", "channels": ["t1", "t2"]}
    config = kinds.load(tiny_config("regression", task={"type": "count", "targets": ["age"]}, data=data))
    network = tasks.build_network(config, tasks.build(config))
    assert network.decoder.kind == "linear"
    with pytest.raises(TypeError, match="head_targets: got none, wanted a method for the option model.head"):
        type("Headless", (dummy_task.Count,), {"options": ("model.head",)})


@pytest.mark.parametrize("key, value", [("dropout", 0.5), ("head", "mlp"), ("fusion", "late")])
def test_what_no_head_reads_is_a_config_error(tiny_config, key, value):
    with pytest.raises(UserError, match=f"model.{key}: got {value}, wanted .* for task.type=segmentation"):
        kinds.load(tiny_config("segmentation", model={key: value}))
    assert kinds.load(tiny_config("classification", model={key: value}))


def test_weights_of_one_channel_see_each_channel_alone_and_say_so(tiny_config, tmp_path):
    one, two = (nets.build("unet_b_lw_dec", channels, channels, width=2) for channels in (1, 2))
    for channels, network in (("one", one), ("two", two)):
        checkpoint.save(tmp_path / f"{channels}.pt", {"model": network.state_dict()})
    path = tiny_config("regression")
    for weights, fusion in ((None, "early"), ("one.pt", "late"), ("two.pt", "early")):
        overrides = [] if weights is None else [f"weights.path={tmp_path / weights}"]
        settled, said = kinds.settle(kinds.load(path, overrides))
        assert settled.model.fusion == fusion and ("model" in said) == (fusion == "late")
    given = kinds.settle(kinds.load(path, [f"weights.path={tmp_path / 'one.pt'}", "model.fusion=early"]))[0]
    assert given.model.fusion == "early"
    masks = kinds.settle(kinds.load(tiny_config("segmentation"), [f"weights.path={tmp_path / 'one.pt'}"]))[0]
    assert masks.model.fusion == "auto" and tasks.build_network(masks, tasks.build(masks)).encoder, "not read there"
    assert kinds.load(tiny_config("segmentation"), ["model.fusion=early"]), "as old checkpoints have it"


def test_the_probe_of_all_stages_is_what_fine_tuning_starts_at(tiny_config, tmp_path, capsys):
    pretrained = tmp_path / "pretrained.pt"
    checkpoint.save(pretrained, {"model": nets.build("unet_b_lw_dec", 1, 1, width=2).state_dict()})
    path, overrides = tiny_config("regression"), [f"weights.path={pretrained}"]
    tool("probe_stages", path, *overrides)
    lines = [line for line in capsys.readouterr().out.splitlines() if " probe " in line]
    fields = [dict(part.split("=") for part in re.findall(r'\w+=(?:"[^"]*"|\S+)', line)) for line in lines]
    assert [one["start"] for one in fields] == ["random"] * 37 + ["weights"] * 37, "all, 6 depths, 10 and 5 x 4"
    assert fields[1]["features"] == str(2 * 10)
    assert all(one["features"] == str(2 * 2 * 2**stage * 6) for stage, one in enumerate(fields[2:7]))
    config = kinds.settle(kinds.load(path, overrides))[0]
    cases = sources.prepare(sources.list_cases(config.data, tasks.wanted(config)), config.data, tasks.wanted(config))
    task, lines = tasks.build(config), []
    inspect(task, cases)
    task.fit(cases, cases)
    for start in ("random", "weights"):
        network = build_network(config, task, 1)
        if start == "weights":
            start_from(config, task, network)
        head.start_head(config, task, network, cases, lambda event, **what: lines.append(what))
    found = [float(one["r2"]) for one in fields if one["stage"] == "all"]
    assert found == pytest.approx([line["left_out_r2"] for line in lines], abs=1e-4)
    with pytest.raises(UserError, match="wanted one output per case"):
        tool("probe_stages", tiny_config("segmentation"))


def test_weights_of_another_width_are_named_by_their_width(tiny_config, tmp_path):
    checkpoint.save(tmp_path / "wide.pt", {"model": nets.build("unet_b_lw_dec", 1, 1, width=4).state_dict()})
    config = kinds.settle(kinds.load(tiny_config("regression"), [f"weights.path={tmp_path / 'wide.pt'}"]))[0]
    task = tasks.build(config)
    with pytest.raises(UserError, match="look like weights of model.width=4, and the network has 2"):
        start_from(config, task, build_network(config, task, 1))
    masks = kinds.settle(kinds.load(tiny_config("segmentation"), [f"weights.path={tmp_path / 'wide.pt'}"]))[0]
    with pytest.raises(UserError, match="look like weights of model.width=4, and the network has 2"):
        start_from(masks, tasks.build(masks), build_network(masks, tasks.build(masks), 1))


def test_intensities_are_scaled_as_for_the_weights_or_by_what_is_not_0(tiny_config, tmp_path):
    network = nets.build("unet_b_lw_dec", 3, 3, width=2).state_dict()
    path = tiny_config("segmentation", data={"normalize": "auto"})
    plain = to_dict(kinds.load(path, ["data.normalize=percentile"]))
    checkpoint.save(tmp_path / "foreign.pt", {"model": network})
    checkpoint.save(tmp_path / "own.pt", {"model": network, "config": plain})
    for weights, kind in ((None, "zscore_nonzero"), ("foreign.pt", "zscore"), ("own.pt", "percentile")):
        overrides = [] if weights is None else [f"weights.path={tmp_path / weights}"]
        settled, said = kinds.settle(kinds.load(path, overrides))
        assert settled.data.normalize == kind and said["data"] == {"normalize": kind}
    dark = kinds.settle(kinds.load(tiny_config("regression"), ["data.normalize=auto"]))[0]
    assert dark.data.normalize == "zscore", "its head takes the darkest part for air"
    both = ["data.normalize=auto", "task.evidence=auto"]
    said = kinds.settle(kinds.load(tiny_config("classification"), both))[1]["data"]
    assert said["normalize"] == "zscore" and "evidence" in said
    path = tiny_config("segmentation", data={"normalize": "auto"})
    tested = ["train.mode=evaluate", f"train.checkpoint={tmp_path / 'own.pt'}"]
    assert kinds.settle(kinds.load(path, tested))[0].data.normalize == "percentile"
