"""Vectors of scans: from every kind of checkpoint, for every shape, equal to what the network itself says."""

import dataclasses
import json
import os
import socket

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, one_line_error, run_command, tool, write_table

from fomo import checkpoint, kinds, nets
from fomo.config import UserError
from fomo.prediction import embeddings
from fomo.runs import crossval

LIGHTNING = str(ROOT / "tests" / "fomo26_lightning.ckpt")
CPU = torch.device("cpu")


def scan(folder, name="scan.nii.gz", shape=(32, 32, 16), seed=0, affine=None):
    values = np.random.default_rng(seed).random(shape, np.float32) + 1
    path = str(folder / name)
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine), path)
    return path


def embed(path, source, **options):
    embedder = embeddings.load_embedder(str(path), CPU, **options)
    return embedder.embed(embedder.case(source))


@pytest.fixture
def pretrained(tiny_config, tmp_path):
    """A function that pretrains for a step and returns best.pt."""

    def run(**model):
        sections = {"train": {"epochs": 1, "steps_per_epoch": 1}, "data": {"channels": ["flair", "adc"]}}
        sections["model"] = {"name": "unet_b_lw_dec", "width": 2, **model}
        crossval.run(kinds.load(tiny_config("mae", **sections)), one_split=True)
        return tmp_path / "runs" / "run" / "fold_1" / "best.pt"

    return run


@pytest.mark.parametrize("features, numbers", [("bottleneck", 10), ("multistage", 2 + 4 + 8 + 10 + 10)])
def test_any_shape_gives_as_many_finite_numbers(tmp_path, features, numbers):
    for place, shape in enumerate([(32, 32, 16), (70, 33, 40), (8, 8, 8), (64, 64, 64)]):
        vector = embed(LIGHTNING, scan(tmp_path, f"{place}.nii", shape), features=features)
        assert vector.shape == (numbers,) and vector.dtype == np.float32 and np.isfinite(vector).all()


def test_the_published_files_vector_is_what_the_network_says_of_the_z_scored_volume(tmp_path):
    flipped = np.diag([-1.0, 1, 2, 1])  # stored from right to left; 2 mm, which stay as they are
    path = scan(tmp_path, shape=(64, 32, 32), affine=flipped)
    values = np.asarray(nibabel.load(path).dataobj, np.float32)[::-1]
    network = nets.build("resenc_unet_s", 1, 1, mode="classification", width=1).eval()
    checkpoint.load_weights(network, LIGHTNING)
    scaled = torch.from_numpy((values - values.mean()) / values.std())[None, None]
    with torch.no_grad():
        maps = network.encoder(scaled)
    np.testing.assert_allclose(embed(LIGHTNING, path), maps[-1].mean((2, 3, 4))[0], rtol=1e-3, atol=1e-4)
    powers = [x.clamp(min=0).pow(3).mean((2, 3, 4)).pow(1 / 3)[0].numpy() for x in maps[1:]]
    wanted = np.concatenate([(x - x.mean()) / np.sqrt(x.var() + 1e-5) for x in powers])
    np.testing.assert_allclose(embed(LIGHTNING, path, features="multistage"), wanted, rtol=1e-2, atol=2e-3)


def test_the_sizes_of_the_challenges_network():
    with torch.device("meta"):
        network = nets.build("resenc_unet_b", 1, 1, mode="classification")
        maps = network.maps(torch.zeros(1, 1, 64, 32, 32))
        assert embeddings.FEATURES["bottleneck"](maps).shape == (1, 320)
        assert embeddings.FEATURES["multistage"](maps).shape == (1, 1088)


def test_our_own_checkpoints_prepare_scans_as_they_were_pretrained(pretrained, tmp_path):
    best, path = pretrained(), scan(tmp_path, shape=(200, 180, 190))
    embedder = embeddings.load_embedder(str(best), CPU)
    assert embedder.data.spacing_mm == (8.0, 8.0, 8.0) and embedder.data.crop
    own = checkpoint.load(best)["model"]
    stem = embedder.network.encoder.in_conv.conv1.conv.weight
    assert torch.allclose(stem[:, 0], own["encoder.in_conv.conv1.conv.weight"].sum(1)), "the scan in each channel"
    vector = embedder.embed(embedder.case(path))
    assert vector.shape == (32,)
    otherwise = embed(best, path, overrides=["data.spacing_mm=[16,16,16]"])
    assert not np.allclose(vector, otherwise)
    with pytest.raises(UserError, match="got optim.lr, wanted one of data.spacing_mm"):
        embed(best, path, overrides=["optim.lr=1"])


@pytest.mark.parametrize("task", ["classification", "segmentation", "regression"])
def test_fine_tuned_networks_embed_too(trained, tmp_path, task):
    path = scan(tmp_path, shape=(200, 180, 190))
    for features, numbers in (("bottleneck", 32), ("multistage", 4 + 8 + 16 + 32)):
        assert embed(trained(task) / "fold_1" / "best.pt", path, features=features).shape == (numbers,)


def test_a_teacher_of_dino_is_found(tmp_path):
    network = nets.build("suprem_unet3d", 1, 1, mode="classification", width=4)
    state = network.state_dict()
    both = {f"{who}.backbone.{name}": value for who in ("student", "teacher") for name, value in state.items()}
    both["student.backbone.down_tr64.ops.0.conv1.weight"] = torch.ones_like(state["down_tr64.ops.0.conv1.weight"])
    torch.save({"state_dict": both}, tmp_path / "dino.pt")
    found = checkpoint.recognise(tmp_path / "dino.pt")
    assert (found.name, found.width, found.family) == ("suprem_unet3d", 4, "dino")
    path, prepared = scan(tmp_path, shape=(16, 16, 16)), ["data.spacing_mm=none", "data.crop=false"]
    with pytest.raises(UserError, match="how its scans were prepared, wanted data.normalize=..."):
        embed(tmp_path / "dino.pt", path, overrides=prepared)
    vector = embed(tmp_path / "dino.pt", path, overrides=[*prepared, "data.normalize=zscore"])
    values = np.asarray(nibabel.load(path).dataobj, np.float32)
    with torch.no_grad():
        wanted = network.features(torch.from_numpy((values - values.mean()) / values.std())[None, None])
    np.testing.assert_allclose(vector, wanted[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["unet_b", "resenc_unet_s", "resenc_unet_b", "suprem_unet3d"])
def test_foreign_networks_are_recognised_whatever_their_width_and_channels(tmp_path, name):
    for channels, width in ((1, 2), (3, 6)):
        network = nets.build(name, channels, 2, width=width)
        torch.save(network.state_dict(), tmp_path / "w.pt")
        assert checkpoint.recognise(tmp_path / "w.pt")[:2] == (name, width)
    network = nets.build("resnet50", 1, 1, mode="classification", width=4)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match="unknown network .*wanted one of unet_b"):
        checkpoint.recognise(tmp_path / "w.pt")


def test_a_wrong_scan_is_one_line(tmp_path):
    broken = np.ones((16, 16, 16), np.float32)
    broken[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(broken, np.eye(4)), tmp_path / "nan.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8, 5), np.float32), np.eye(4)), tmp_path / "four.nii")
    nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.float32), np.eye(4)), tmp_path / "flat.nii")
    for name, said in (("nan.nii", "finite"), ("four.nii", "8x8x8x5"), ("flat.nii", "constant"), ("no.nii", "No such")):
        with pytest.raises(UserError, match=said) as error:
            embed(LIGHTNING, str(tmp_path / name))
        assert "\n" not in str(error.value) and name in str(error.value)
    output = tmp_path / "x.npy"
    done = run_command("tools/embed.py", LIGHTNING, "--input", tmp_path / "nan.nii", "--output", output)
    one_line_error(done, "nan.nii")
    assert not output.exists()


def test_a_container_needs_no_socket_and_writes_its_output_only(tmp_path, monkeypatch):
    path, out = scan(tmp_path), tmp_path / "out"

    def refused(*_, **__):
        raise AssertionError("a socket")

    monkeypatch.setattr(socket, "socket", refused)
    monkeypatch.chdir(tmp_path)
    before = set(os.listdir(tmp_path))
    tool("embed", LIGHTNING, "--input", path, "--output", out / "x.npy", "--device", "cpu")
    assert set(os.listdir(tmp_path)) - before == {"out"} and os.listdir(out) == ["x.npy"]
    assert np.load(out / "x.npy").shape == (10,)


def test_windows_are_averaged_on_request(tmp_path):
    path = scan(tmp_path, shape=(96, 64, 32))
    whole, windows = embed(LIGHTNING, path), embed(LIGHTNING, path, window=[64, 64, 32])
    assert whole.shape == windows.shape and not np.allclose(whole, windows)
    with pytest.raises(UserError, match="--window: got 30 32 64, wanted multiples of 32"):
        embed(LIGHTNING, path, window=[30, 32, 64])


def test_a_table_becomes_a_folder_which_is_continued_and_never_mixed(tmp_path, capsys):
    rows = [{"ptid": f"p{i}", "nifti_path": scan(tmp_path, f"{i}.nii", seed=i), "sex": "F"} for i in range(3)]
    rows.append({"ptid": "gone", "nifti_path": "gone.nii", "sex": "M"})
    table, folder = write_table(tmp_path / "table.csv", rows), tmp_path / "embeddings"
    with pytest.raises(UserError, match="scan gone: .*the others are in"):
        tool("embed", LIGHTNING, "--cases", table, "--output", folder)
    assert sorted(path.name for path in folder.glob("*.npy")) == ["p0.npy", "p1.npy", "p2.npy"]
    assert json.loads((folder / "embeddings.json").read_text())["features"] == "bottleneck"
    scan(tmp_path, "gone.nii", seed=9)
    first = (folder / "p0.npy").stat().st_mtime_ns
    tool("embed", LIGHTNING, "--cases", table, "--output", folder)
    assert "kept=3" in capsys.readouterr().out and (folder / "gone.npy").exists()
    assert (folder / "p0.npy").stat().st_mtime_ns == first
    with pytest.raises(UserError, match="got features=multistage, and its vectors were made with bottleneck"):
        tool("embed", LIGHTNING, "--cases", table, "--output", folder, "--features", "multistage")
    scan(tmp_path, "0.nii", shape=(16, 16, 40), seed=5)
    with pytest.raises(UserError, match="the scans of p0 have changed"):
        tool("embed", LIGHTNING, "--cases", table, "--output", folder)
    tool("embed", LIGHTNING, "--cases", table, "--output", folder, "--overwrite")
    assert np.allclose(np.load(folder / "p0.npy"), embed(LIGHTNING, str(tmp_path / "0.nii")))


def test_a_wrong_column_of_a_table_is_one_line(tmp_path, capsys):
    rows = [{"id": f"p{i}", "image": scan(tmp_path, f"{i}.nii", seed=i), "sex": "F"} for i in range(3)]
    arguments = "embed", LIGHTNING, "--cases", write_table(tmp_path / "table.csv", rows), "--output", tmp_path / "out"
    with pytest.raises(UserError, match="column 'sex': got 3 paths of which none exists, as .*F, wanted .*--column"):
        tool(*arguments, "--column", "sex")
    assert "scan failed" not in capsys.readouterr().out and not (tmp_path / "out").exists()


def test_a_tree_of_scans_is_embedded_too(tmp_path):
    (tmp_path / "data" / "sub-1").mkdir(parents=True)
    scan(tmp_path / "data" / "sub-1")
    tool("embed", LIGHTNING, "--source", "volumes", "--root", tmp_path / "data", "--output", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.npy")] == ["sub-1_scan.npy"]


def test_what_differs_between_two_embedders_is_recorded(tmp_path):
    one = embeddings.load_embedder(LIGHTNING, CPU)
    other = dataclasses.replace(one, data=dataclasses.replace(one.data, normalize="percentile"))
    assert one.about() != other.about()
