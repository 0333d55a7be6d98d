"""Soups: the mean weights of folds, in the units of the first, uniform and greedy."""

import copy
import re

import pytest
import torch
from conftest import channel_paths, members_of, tool

from fomo import checkpoint, kinds, nets
from fomo import config as config_module
from fomo.config import UserError
from fomo.prediction import single
from fomo.runs import soup
from fomo.runtime.log import Log


def test_a_uniform_soup_is_the_mean_and_predicts_in_the_first_folds_units(trained):
    folds = [checkpoint.load(trained("regression") / f"fold_{number}" / "best.pt") for number in (1, 2)]
    assert folds[0]["task"]["scale"] != folds[1]["task"]["scale"]
    mixed = soup.average(folds)
    name = "encoder.encoder_conv2.conv1.conv.weight"
    torch.testing.assert_close(mixed["model"][name], (folds[0]["model"][name] + folds[1]["model"][name]) / 2)
    first = folds[0]["model"]
    statistics = first["decoder.mean"] + 0.5 * first["decoder.deviation"] * torch.randn(5, len(first["decoder.mean"]))

    def ages(content):
        head, state = ({name: value.double() for name, value in content["model"].items()}), content["task"]
        z = (statistics - head["decoder.mean"]) / head["decoder.deviation"] * head["decoder.share"]
        return (z @ head["decoder.fc.weight"].T + head["decoder.fc.bias"]) * state["scale"] + state["mean"]

    torch.testing.assert_close(ages(mixed), (ages(folds[0]) + ages(folds[1])) / 2, rtol=1e-4, atol=1e-2)
    lines = [lambda p, c=fold["task"]["bias_correction"]: (p - c[1]) / c[0] for fold in (*folds, mixed)]
    assert lines[2](50.0) == pytest.approx((lines[0](50.0) + lines[1](50.0)) / 2)
    assert mixed["soup"] == [1, 2]
    with pytest.raises(UserError, match="best.pt of fold 2 names no subjects"):
        soup.average([folds[0], {name: value for name, value in folds[1].items() if name != "subjects"}])


def config_of(type, patch=(32, 32, 32), **model):
    """The config in the checkpoint of a fold that was fine-tuned."""
    data = {"source": "table", "csv": "t.csv", "channels": ["t1"], "patch": list(patch)}
    values = {"task": {"type": type, "targets": ["y"]}, "data": data, "model": model, "eval": {"windows": 1}}
    return config_module.to_dict(kinds.from_dict({**values, "weights": {"path": "start.pt"}}, "here"))


@pytest.mark.parametrize("name", ["suprem_unet3d", "resnet50", "efficientnet_b0"])
def test_a_soup_finds_the_output_layer_of_each_network(name):
    image = torch.randn(2, 1, 64, 64, 1) if name != "suprem_unet3d" else torch.randn(2, 1, 16, 16, 16)
    config = config_of("regression", image.shape[2:], name=name, width=4)
    network = nets.build(name, 1, 1, mode="regression", width=4).eval()
    folds = [
        {
            "model": copy.deepcopy(network.state_dict()),
            "config": config,
            "fold": i,
            "task": {"mean": m, "scale": s, "bias_correction": None},
            "subjects": ["a"],
        }
        for i, m, s in ((1, 40.0, 10.0), (2, 60.0, 20.0))
    ]  # one network, whose output means other ages in each fold
    mixed = soup.average(folds)
    with torch.no_grad():
        ages = [network(image) * fold["task"]["scale"] + fold["task"]["mean"] for fold in folds]
        network.load_state_dict(mixed["model"])
        torch.testing.assert_close(network(image) * 10.0 + 40.0, (ages[0] + ages[1]) / 2, rtol=1e-4, atol=1e-3)


def test_a_greedy_soup_adds_what_does_not_make_it_worse():
    def fold(number, value):
        content = {"model": {"w": torch.tensor([value])}, "fold": number, "subjects": [f"s{number}", "s9"]}
        return {**content, "task": {"threshold": 0.5}, "config": config_of("classification")}

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
    row = single.predict_to_file(members_of(tmp_path / "soup.pt"), paths, str(tmp_path / "o.txt"), Log(active=False))
    assert 0 <= row["probability"] <= 1
