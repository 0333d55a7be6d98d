"""Scans are prepared for nnU-Net's and OpenMind's checkpoints by the plans that these carry."""

import json

import nibabel
import numpy as np
import pytest
import torch
from conftest import tool
from test_families import as_nnunet, net, state_of

from fomo import checkpoint
from fomo.config import UserError
from fomo.prediction import embeddings, preparation

SCALED = {"normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False]}


def adaptation(spacing=None, **more):
    """What nnssl stores in a checkpoint, as far as it is read."""
    configurations = {"noresample": {"spacing": spacing, "spacing_style": "noresample", **SCALED, **more}}
    plan = {"configurations": configurations, "transpose_forward": [0, 1, 2]}
    return {"nnssl_adaptation_plan": {"pretrain_plan": plan, "pretrain_num_input_channels": 1}, "citations": []}


def trained(turned=(0, 1, 2), **more):
    """What nnU-Net stores in a checkpoint, as far as it is read."""
    full = {"spacing": [3.0, 1.5, 0.5], "patch_size": [16, 64, 64], **SCALED, **more}
    configurations = {"2d": {**full, "spacing": [1.5, 0.5]}, "3d_fullres": full}
    configurations |= {"3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}}
    configurations |= {"3d_lowres": {"inherits_from": "3d_fullres", "spacing": [4, 4, 4]}}
    plans = {"transpose_forward": list(turned), "configurations": configurations}
    return {"init_args": {"plans": plans, "configuration": "3d_cascade_fullres", "fold": 0}}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"network_weights": as_nnunet(state_of(net(classes=1))), **content}, path)
    return str(path)


@pytest.mark.parametrize(
    "content, axes, prepared",
    [
        (adaptation(), (2, 1, 0), dict(spacing_mm=None, crop=True, normalize="zscore")),
        (adaptation([1, 1, 1]), (2, 1, 0), dict(spacing_mm=(1.0, 1.0, 1.0), crop=True, normalize="zscore")),
        (trained(), (2, 1, 0), dict(spacing_mm=(0.5, 1.5, 3.0), crop=True, normalize="zscore")),
        (trained((2, 0, 1)), (0, 2, 1), dict(spacing_mm=(3.0, 0.5, 1.5), crop=True, normalize="zscore")),
        (
            trained(normalization_schemes=["RescaleTo01Normalization"] * 2),
            (2, 1, 0),
            dict(spacing_mm=(0.5, 1.5, 3.0), crop=True, normalize="percentile", percentiles=(0.0, 100.0)),
        ),
    ],
)
def test_the_plan_in_a_file_says_how_scans_were_prepared(tmp_path, content, axes, prepared):
    found = embeddings.origin(write(tmp_path / "file.pth", content))
    assert (found.name, found.prepared, found.preparation.axes) == ("resenc_unet_s", prepared, axes)


def test_the_vector_is_what_the_network_says_of_the_turned_scan(tmp_path):
    values = np.zeros((40, 36, 66), np.float32)
    values[2:34, 1:33, 1:65] = np.random.default_rng(0).random((32, 32, 64)) + 1
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "scan.nii")
    path = write(tmp_path / "file.pth", adaptation())
    tool("embed", path, "--input", tmp_path / "scan.nii", "--output", tmp_path / "x.npy", "--device", "cpu")
    inside = values[2:34, 1:33, 1:65].transpose(2, 1, 0)
    network = net(mode="classification", seed=1).eval()
    checkpoint.load_weights(network, path)
    with torch.no_grad():
        maps = network.encoder(torch.from_numpy((inside - inside.mean()) / inside.std())[None, None])
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), maps[-1].mean((2, 3, 4))[0], rtol=1e-3, atol=1e-4)


def test_plans_beside_a_file_are_read_too(tmp_path):
    plans = trained()["init_args"]["plans"]
    folder = tmp_path / "nnUNetTrainer__nnUNetPlans__3d_lowres"
    path = write(folder / "fold_0" / "checkpoint_final.pth", {})
    assert embeddings.origin(path).prepared == {}
    (folder / "plans.json").write_text(json.dumps(plans))
    assert embeddings.origin(path).prepared["spacing_mm"] == (4.0, 4.0, 4.0)
    folder.rename(tmp_path / "model")
    assert embeddings.origin(tmp_path / "model" / "fold_0" / "checkpoint_final.pth").prepared == {}, "of several"


def test_what_keys_cannot_say_is_asked_for_with_its_reason(tmp_path):
    for content, said in (
        (trained(normalization_schemes=["CTNormalization"]), "intensities are scaled by CTNormalization"),
        (adaptation(use_mask_for_norm=[True]), "voxels that are 0 are not scaled"),
        ({"init_args": {}}, "does not say how its scans were prepared, wanted data.spacing_mm=... data.crop"),
    ):
        path = write(tmp_path / "file.pth", content)
        with pytest.raises(UserError, match=f"{said}.*data.normalize=... behind the other arguments"):
            embeddings.load_embedder(path, torch.device("cpu"))
    given = ["data.normalize=zscore", "data.spacing_mm=none", "data.crop=false"]
    assert embeddings.load_embedder(path, torch.device("cpu"), overrides=given).axes == (0, 1, 2)


def test_a_damaged_plan_is_none():
    for plan in (None, [], {"configurations": 3}, {"configurations": {"a": None}}):
        assert preparation.of_foreign({"nnssl_adaptation_plan": {"pretrain_plan": plan}}, "openmind", "x").data == {}
    for name, value in (("transpose_forward", [0, "a", []]), ("transpose_forward", 3), ("configurations", {"x": {}})):
        content = trained()
        content["init_args"]["plans"][name] = value
        assert preparation.of_foreign(content, "nnunet", "x").data == {}
    loop = {"configurations": {"x": {"inherits_from": "y"}, "y": {"inherits_from": "x"}}}
    for name in ("x", ["x"], None):
        content = {"init_args": {"plans": loop, "configuration": name}}
        assert preparation.of_foreign(content, "nnunet", "x").data == {}
    for spacing in ([1, 1], [1, 1, "1"], [1, 1, -1], [1, 1, True], "abc"):
        assert preparation.of_foreign(adaptation(spacing), "openmind", "x").data == {}
