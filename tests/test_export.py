"""What comes out of a run: its final model, and weights for plain PyTorch."""

import json
import os
import pathlib

import numpy as np
import pytest
import torch
from conftest import tool

from fomo import checkpoint, kinds, nets, tasks
from fomo.config import UserError
from fomo.prediction import members
from fomo.run_folder import RunFolder
from fomo.runs.final import make_final
from fomo.runtime.log import Log


def test_final_is_what_the_config_asks_for(trained, tmp_path):
    for task, kind, files in (
        ("classification", "soup", {"soup.pt"}),
        ("segmentation", "ensemble", {"fold_1.pt", "fold_2.pt"}),
        ("regression", "refit", {"best.pt"}),
    ):
        final = trained(task) / "final"
        assert json.loads((final / "final.json").read_text()) == {"kind": kind, "finished": True}
        assert {pathlib.Path(path).name for path in members.find_checkpoints(str(final))} == files
    assert set(os.listdir(trained("regression") / "final")) == {"best.pt", "final.json", "history.csv"}
    refit = checkpoint.load(trained("regression") / "final" / "best.pt")
    folds = [checkpoint.load(trained("regression") / f"fold_{n}" / "best.pt") for n in (1, 2)]
    assert refit["fold"] == 0 and refit["epoch"] == round(np.median([fold["epoch"] for fold in folds]))
    merged = tasks.regression.Regression.merge([fold["task"] for fold in folds])
    assert refit["task"]["bias_correction"] == merged["bias_correction"]
    assert refit["subjects"] == sorted({subject for fold in folds for subject in fold["subjects"]})
    assert refit["task"]["mean"] not in [fold["task"]["mean"] for fold in folds], "of all cases"
    config = kinds.load(trained("classification") / "config.yaml", ["cv.final=refit"])
    with pytest.raises(UserError, match="holds the soup: delete that folder"):
        make_final(config, RunFolder(trained("classification")), [{}], {}, Log(active=False))
    half = tmp_path / "final"
    half.mkdir()
    (half / "final.json").write_text('{"kind": "refit", "finished": false}')
    with pytest.raises(UserError, match="not finished"):
        members.find_checkpoints(str(half))


def test_exported_weights_load_into_plain_pytorch_and_back(trained, tmp_path):
    best = trained("segmentation") / "fold_1" / "best.pt"
    for prefix in ("", "model."):
        path = tmp_path / f"{prefix}w.pt"
        tool("export", best, "--output", path, "--prefix", prefix)
        state = torch.load(path, weights_only=True)
        network = nets.build("unet_b", 3, 2, width=2)
        network.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
        assert all(name.startswith(prefix + ("encoder." if i < 40 else "decoder.")) for i, name in enumerate(state))
        report = checkpoint.load_weights(nets.build("unet_b", 3, 2, width=2), path)
        assert len(report.loaded) == len(state) == 82
    for there in (path, best):
        before = there.read_bytes()
        with pytest.raises(UserError, match="exists: delete it, or choose another name"):
            tool("export", best, "--output", there)
        assert there.read_bytes() == before
    with pytest.raises(UserError, match="holds 2 checkpoints"):
        tool("export", trained("segmentation"), "--output", tmp_path / "x.pt")
