"""Where networks and test-time views disagree: the map against the formula, and what prediction writes and refuses."""

import math
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch
from conftest import one_line_error, run_command, tool
from scipy import special

from fomo import config, tasks
from fomo.inference import Mirrored, WindowOptions
from fomo.prediction import members
from fomo.runtime import files
from fomo.space import volume

CASE = SimpleNamespace(id="a")


def network(seed, outputs):
    """One that a flip changes: its outputs depend on the place."""
    convolution = torch.nn.Conv3d(1, outputs, 3, padding=1)
    with torch.no_grad():
        weights = np.random.default_rng(seed).normal(0, 0.7, convolution.weight.shape)
        convolution.weight.copy_(torch.tensor(weights))
    return convolution


def several(task, networks, patch):
    windows = WindowOptions((patch,) * 3, device=torch.device("cpu"))
    return [SimpleNamespace(task=task, network=one, windows=windows) for one in networks]


def direct(networks, windows, image, sigmoid):
    """The mutual information by the formula, over the views of all networks, each network with the same weight."""
    means, entropies = [], []
    for one in networks:
        of_views = []
        for dims, gamma in getattr(one, "views", [((), None)]):
            inside = getattr(one, "network", one)

            def view(batch, dims=dims, inside=inside):
                return inside(batch.flip(dims)).flip(dims) if dims else inside(batch)

            logits = windows.blend(view, image, (0.0,)).double().numpy()
            if sigmoid:
                p = special.expit(logits)
                each = special.entr(p) + special.entr(1 - p)
            else:
                p = special.softmax(logits, axis=0)
                each = special.entr(p)
            of_views.append((p, each.sum(0)))
        means.append(np.mean([p for p, _ in of_views], axis=0))
        entropies.append(np.mean([entropy for _, entropy in of_views], axis=0))
    mean = np.mean(means, axis=0)
    entropy = (special.entr(mean) + (special.entr(1 - mean) if sigmoid else 0)).sum(0)
    return entropy - np.mean(entropies, axis=0)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("views", ["networks", "one network", "both"])
def test_the_map_is_the_formula_and_the_mask_is_as_without_it(activation, views):
    task = tasks.build(config.Config(task=config.Task(type="segmentation", classes=3, activation=activation)))
    networks = [network(seed, task.out_channels) for seed in range(1 if views == "one network" else 3)]
    if views != "networks":  # the last one has other views than the others
        networks = [Mirrored(one, (0, 2) if place else (1,)) for place, one in enumerate(networks)]
    array = np.random.default_rng(5).normal(size=(12, 10, 9)).astype(np.float32)
    image, _, geometry = volume.preprocess([array], np.diag([1.0, 1.0, 2.0, 1.0]), spacing_mm=None)
    asked = several(task, networks, 6)
    row, plain = members.answer(asked, members.infer(asked, CASE, image, (0.0,)), geometry)
    assert "mutual_information" not in row and "mutual_information" not in plain
    task.ask(["mutual_information"])
    row, volumes = members.answer(asked, members.infer(asked, CASE, image, (0.0,)), geometry)
    expected = direct(networks, asked[0].windows, torch.from_numpy(image), activation == "sigmoid")
    found = volumes["mutual_information"]
    np.testing.assert_allclose(found, volume.to_native(expected.astype(np.float32), geometry), atol=2e-6)
    assert found.shape == array.shape and found.min() >= 0 and found.max() > 0.01
    np.testing.assert_array_equal(volumes["mask"], plain["mask"])
    np.testing.assert_allclose(
        np.stack(list(volumes["probabilities"])), np.stack(list(plain["probabilities"])), atol=1e-6
    )
    assert row["mutual_information"] == pytest.approx(float(found[volumes["mask"] > 0].mean()))


def test_networks_that_are_sure_of_different_classes_reach_the_most_and_equal_ones_nothing():
    task = tasks.build(config.Config(task=config.Task(type="segmentation", classes=2)))
    task.ask(["mutual_information"])
    array = np.random.default_rng(0).uniform(1, 2, (4, 4, 4)).astype(np.float32)
    image, _, geometry = volume.preprocess([array], np.eye(4))

    def sure(of):
        logits = torch.tensor([-40.0, 40.0] if of else [40.0, -40.0])
        return lambda batch: logits[None, :, None, None, None].expand(len(batch), 2, *batch.shape[2:])

    for pair, most in (((0, 1), math.log(2)), ((1, 1), 0.0), ((0, 0), 0.0)):
        asked = several(task, [sure(of) for of in pair], 4)
        row, volumes = members.answer(asked, members.infer(asked, CASE, image, (0.0,)), geometry)
        np.testing.assert_allclose(volumes["mutual_information"], most, atol=1e-6)
        assert math.isnan(row["mutual_information"]) == (not volumes["mask"].any())


def test_a_user_gets_the_map_beside_the_mask(trained, scans, tmp_path):
    which = ["--source", "fomo2", "--root", scans("segmentation"), "--ids", "sub_001_ses_1"]
    run, once = trained("segmentation"), tmp_path / "once"
    tool("predict", run, *which, "--output", once)
    asked = ["--output", once, "--mutual-information"]
    done = run_command("tools/predict.py", run, *which, *asked, cwd=tmp_path)  # it is made for what is there, too
    assert done.returncode == 0, done.stderr
    [row], image = (
        files.read_csv(once / "predictions.csv"),
        nibabel.load(once / "mutual_information" / "sub_001_ses_1.nii.gz"),
    )
    mask = np.asarray(nibabel.load(once / "masks" / "sub_001_ses_1.nii.gz").dataobj) > 0
    values = np.asarray(image.dataobj)
    assert (
        values.dtype == np.float32 and values.shape == mask.shape and 0 <= values.min() <= values.max() <= math.log(2)
    )
    inside = values[mask].mean() if mask.any() else math.nan
    assert float(row["mutual_information"]) == pytest.approx(inside, nan_ok=True)
    one = run / "fold_1" / "best.pt"
    said = run_command("tools/predict.py", one, *which, "--output", tmp_path / "two", "--mutual-information")
    one_line_error(said, "--mutual-information: got one network with one view", "--mirror 0 1 2")
    tool("predict", one, *which, "--output", tmp_path / "two", "--mutual-information", "--mirror", 0)
    assert (tmp_path / "two" / "mutual_information" / "sub_001_ses_1.nii.gz").exists()
    said = run_command("tools/predict.py", trained("regression"), *which, *asked[:1], tmp_path / "no", asked[2])
    one_line_error(said, "--mutual-information: got checkpoints of task.type=regression")
