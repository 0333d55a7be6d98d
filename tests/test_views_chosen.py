"""Test-time views that are chosen on validation cases: the rule, what is stored, what predicts, what it gained."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import members_of, run_command, tool

from fomo import checkpoint, inference, kinds, tasks
from fomo.config import UserError
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runtime.log import Log
from fomo.tasks import Results
from fomo.training import views


def test_gammas_are_averaged_beside_the_flips():
    batch = torch.rand(2, 3, 8, 9, 7, generator=torch.manual_seed(0)) * 4 - 1
    batch[1, 2] = 0.3  # a channel that is missing
    before = batch.clone()

    def powered(gamma):
        found = batch.clone()
        for channel in found.flatten(0, 1):
            low, high = channel.min(), channel.max()
            if high > low:
                new = ((channel - low) / (high - low)) ** gamma
                ratio = channel.std(correction=0) / new.std(correction=0)
                channel.copy_((new - new.mean()) * ratio + channel.mean())
        return found

    network = inference.Mirrored(lambda batch: batch**2, (0,), gammas=(0.8, 1.25))
    expected = (batch**2 + batch**2 + powered(0.8) ** 2 + powered(1.25) ** 2) / 4
    torch.testing.assert_close(network(batch), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(batch, before)
    assert len(inference.Mirrored(torch.nn.Identity(), (0,), 3, (0.8,)).views) == 3


def validated(monkeypatch, plain, by_view, subjects=None):
    """Let a network's losses on validation cases be those given: `plain` (n,), by_view {text of the views: (n,)}."""
    subjects = subjects or [f"s{i}" for i in range(len(plain))]

    def evaluate(config, task, network, cases):
        own = {"axes": getattr(network, "axes", ()), "gammas": getattr(network, "gammas", ())}
        losses = by_view.get(views.text(own), plain) if own["axes"] or own["gammas"] else plain
        rows = [
            {"id": str(i), "subject": subject, "target": 0.0, "prediction": float(loss), "loss": float(loss)}
            for i, (loss, subject) in enumerate(zip(losses, subjects))
        ]
        return Results(rows)

    monkeypatch.setattr(views, "evaluate", evaluate)


def choose(tiny_config, cases=12):
    config = kinds.load(tiny_config("regression", eval={"views": "auto"}))
    return views.choose(config, tasks.build(config), torch.nn.Identity(), [None] * cases, Log(active=False))


def test_views_are_taken_only_where_they_are_better_by_more_than_chance(tiny_config, monkeypatch):
    rng = np.random.default_rng(0)
    plain = rng.uniform(1, 2, 12)
    validated(monkeypatch, plain, {"flips_of_y": plain - 0.2, "flips_of_xyz": plain - 0.3})
    assert choose(tiny_config) == {"axes": [0, 1, 2], "gammas": []}
    validated(monkeypatch, plain, {"gamma_0.8_1.25": plain * 0.9})
    assert choose(tiny_config) == {"axes": [], "gammas": [0.8, 1.25]}
    lucky = plain - 0.05 + rng.normal(0, 0.3, 12)
    validated(monkeypatch, plain, {"flips_of_x": lucky})
    assert choose(tiny_config) == views.NONE
    validated(monkeypatch, plain, {})
    assert choose(tiny_config) == views.NONE
    validated(monkeypatch, plain[:6], {"flips_of_x": plain[:6] - 0.5})  # too few to know: 2 of 64 patterns
    assert choose(tiny_config) == views.NONE
    subjects = [f"s{i // 3}" for i in range(12)]  # four subjects of three cases
    validated(monkeypatch, plain, {"flips_of_x": plain - 0.5}, subjects)
    assert choose(tiny_config) == views.NONE


def test_by_chance_alone_views_are_hardly_ever_chosen(tiny_config, monkeypatch):
    config = kinds.load(tiny_config("regression", eval={"views": "auto"}))
    task, rng, taken = tasks.build(config), np.random.default_rng(1), 0
    monkeypatch.setattr(views.metrics.paired_permutation, "__defaults__", (500, 0))
    names = [views.text(one) for one in views.candidates(config)]
    assert names == ["flips_of_x", "flips_of_y", "flips_of_z", "flips_of_xyz", "gamma_0.8_1.25"]
    for _ in range(100):
        plain = rng.uniform(1, 2, 20)
        validated(monkeypatch, plain, {name: plain + rng.normal(0, 0.2, 20) for name in names})
        chosen = views.choose(config, task, torch.nn.Identity(), [None] * 20, Log(active=False))
        taken += chosen != views.NONE
    assert taken <= 8


def test_only_axes_with_several_voxels_are_flipped(tiny_config):
    config = kinds.load(tiny_config("regression", eval={"views": "auto"}))
    flat = replace(config, data=replace(config.data, patch=(32, 32, 1)))
    assert [one["axes"] for one in views.candidates(flat)] == [[0], [1], [0, 1], []]


def test_folds_keep_their_views_and_predict_with_them(tiny_config, tmp_path, phantom_root, monkeypatch):
    """Fold 1 with flips, fold 2 with powers: stored, used by prediction, and what they gained is in the tables."""
    asked = iter([{"axes": [0], "gammas": []}, {"axes": [], "gammas": [0.8, 1.25]}])
    monkeypatch.setattr(views, "choose", lambda config, task, network, cases, log: next(asked))
    config = kinds.load(tiny_config("regression", eval={"views": "auto"}, cv={"final": "ensemble"}))
    crossval.run(config)
    folder = RunFolder(f"{config.output}/{config.name}")
    stored = [checkpoint.load(folder.fold(number).best)["views"] for number in (1, 2)]
    assert stored == [{"axes": [0], "gammas": []}, {"axes": [], "gammas": [0.8, 1.25]}]
    members = members_of(folder.path)
    assert [len(member.network.views) for member in members] == [2, 3]
    assert len(members_of(folder.path, mirror_axes=(0, 1))[1].network.views) == 4
    assert [len(member.network.views) for member in members_of(folder.final.path)] == [2, 3]
    with open(f"{folder.path}/fold_results.csv", newline="") as file:
        gains = [float(row["views_gain"]) for row in csv.DictReader(file)]
    log = open(folder.log_path).read()
    for number, gained in zip((1, 2), gains):
        plain = members_of(folder.fold(number).best, mirror_axes=())[0]
        mae_of = _mae(config, plain, folder.fold(number))
        assert gained == pytest.approx(mae_of - folder.fold(number).scores()["mae"], abs=1e-4) and gained != 0
        assert f"views fold={number} test=mae gain={gained:.6g}" in log
    root = next(path for path in tmp_path.parent.glob("phantoms*/task3_16x24*"))
    test = folder.fold(2).results().rows[0]
    tool(
        "predict",
        folder.fold(2).best,
        "--source",
        "fomo3",
        "--root",
        root,
        "--ids",
        test["id"],
        "--output",
        tmp_path / "out",
    )
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        [row] = csv.DictReader(file)
    assert float(row["prediction"]) == pytest.approx(test["prediction"], abs=1e-4)
    assert '"gammas": [' in (tmp_path / "out" / "settings.json").read_text()


def _mae(config, member, fold):
    """Of one network on the test cases of its fold."""
    from fomo.data import sources
    from fomo.training.evaluate import evaluate

    wanted = tasks.wanted(config)
    listed = [case for case in sources.list_cases(config.data, wanted) if case.id in fold.split()["test"]]
    cases = sources.prepare(listed, config.data, wanted)
    return member.task.score(evaluate(member.config, member.task, member.network, cases))["mae"]


def test_an_automatic_choice_runs_from_end_to_end(tiny_config, tmp_path):
    path = tiny_config("segmentation", eval={"views": "auto"}, train={"epochs": 1}, cv={"final": "refit"})
    done = run_command("cv.py", path)
    assert done.returncode == 0, done.stderr
    chosen = [line for line in done.stdout.splitlines() if " views " in line and "chosen=" in line]
    assert len(chosen) == 2 and all("candidates=5" in line and " p=" in line for line in chosen)
    stored = checkpoint.load(tmp_path / "runs" / "run" / "final" / "best.pt")["views"]
    assert set(stored) == {"axes", "gammas"}


def test_several_networks_share_the_views_of_most():
    flips, none = {"axes": [0], "gammas": []}, dict(views.NONE)
    assert views.merge([flips, none, flips]) == flips
    assert views.merge([flips, none]) == none and views.merge([none, none, flips]) == none
    assert views.merge([None, flips]) is None


def test_both_ways_at_once_are_refused_and_so_is_a_checkpoint_without_views(tiny_config):
    with pytest.raises(UserError, match="eval.mirror_axes: got .0., wanted .. for eval.views=auto"):
        kinds.load(tiny_config("regression", eval={"views": "auto", "mirror_axes": [0]}))
    config = kinds.load(tiny_config("regression", eval={"views": "auto"}))
    with pytest.raises(UserError, match="no views were chosen"):
        views.of_checkpoint(config, torch.nn.Identity(), {}, "old.pt")
