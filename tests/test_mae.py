"""Masked autoencoder: what the network sees and is scored on, the same masks everywhere, and weights that go on."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from fomo import checkpoint, kinds, tasks
from fomo import config as config_module
from fomo.data import cache, loader, sources
from fomo.inference import WindowOptions
from fomo.prediction import members
from fomo.run_folder import FoldFolder
from fomo.runs import crossval
from fomo.runtime import files
from fomo.tasks import Results

MRI = {"source": "volumes", "channels": ["mri"], "pattern": "*"}


def build(tiny_config, /, **task):
    return tasks.build(kinds.load(tiny_config("mae", task={"type": "mae", **task}, model={"name": "unet_b_lw_dec"})))


def generators(count):
    return [np.random.default_rng(seed) for seed in range(count)]


@pytest.mark.parametrize("kind", ["all", "masked"])
def test_the_network_sees_the_rest_and_is_scored_on_all_or_on_what_was_hidden(tiny_config, kind):
    task = build(tiny_config, mae_loss=kind, mask_value=-7.0)
    image, inside = torch.rand(2, 4, 32, 16, 16), torch.ones(2, 32, 16, 16, dtype=torch.uint8)
    inside[1, :8] = 0  # the second patch sticks out of its volume
    batch = task.prepare({"image": image, "mask": inside, **task.draw(generators(2), {"image": image})})
    hidden = batch["image"] == -7
    assert 0.4 < hidden.float().mean() < 0.8 and torch.equal(batch["image"][~hidden], image[~hidden])
    counts = (inside[:, None] > 0) & (hidden if kind == "masked" else torch.ones_like(hidden))
    wanted = [(one[mask] - 0.5).square().mean() for one, mask in zip(image, counts)]
    torch.testing.assert_close(task.loss(torch.full_like(image, 0.5), batch), torch.stack(wanted))


def test_what_is_restored_may_be_clamped_and_what_is_seen_is_not(tiny_config):
    task = build(tiny_config, mae_clamp=[-0.5, 0.25])
    image, inside = torch.rand(2, 4, 32, 16, 16) * 4 - 2, torch.ones(2, 32, 16, 16, dtype=torch.uint8)
    batch = task.prepare({"image": image, "mask": inside, **task.draw(generators(2), {"image": image})})
    seen = batch["image"] != 0
    assert seen.any() and torch.equal(batch["image"][seen], image[seen])
    wanted = (image.clamp(-0.5, 0.25) - 3).square().flatten(1).mean(1)
    torch.testing.assert_close(task.loss(torch.full_like(image, 3.0), batch), wanted)
    case = fake_case()
    row = task.predict(torch.zeros_like, case, WHOLE).row
    assert row["loss"] == pytest.approx(np.square(case.image().astype(float).clip(-0.5, 0.25)).mean(), rel=1e-5)


def test_a_mask_is_the_slots_own_whatever_the_micro_batch(tiny_config, tmp_path):
    config = kinds.load(tiny_config("mae", task={"type": "mae"}, model={"name": "unet_b_lw_dec"}))
    task = tasks.build(config)
    listed = sources.list_cases(config.data, tasks.wanted(config))[:4]
    cases = cache.prepare(listed, config.data, tasks.wanted(config))
    whole = loader.read_batch(config, task, cases, 1, [0, 1, 2, 3])
    parts = [loader.read_batch(config, task, cases, 1, slots) for slots in ([0], [1, 2], [3])]
    assert torch.equal(whole["cubes"], torch.cat([part["cubes"] for part in parts]))
    assert not torch.equal(whole["cubes"][0], whole["cubes"][1]) and "target" not in whole
    assert not torch.equal(whole["offsets"][0], whole["offsets"][1])
    for mask in whole["mask"]:
        assert 0 < int(mask.sum()) <= mask.numel() and set(mask.unique().tolist()) <= {0, 1}


def fake_case(shape=(1, 20, 32, 17), id="a"):
    image = np.random.default_rng(3).normal(size=shape).astype(np.float16)
    background = (0.0,) * shape[0]
    return SimpleNamespace(id=id, subject="s", image=lambda: image, shape=shape[1:], background=background)


WINDOWS = WindowOptions((16, 16, 16), overlap=0.0, windows=2, device=torch.device("cpu"))
WHOLE = WindowOptions((32, 32, 32), device=torch.device("cpu"))  # a patch that sticks out of fake_case()


def test_validation_masks_belong_to_the_case_and_the_planes_are_stored(tiny_config, tmp_path):
    task = build(tiny_config, mae_loss="masked")
    seen = []

    def network(windows):
        seen.append(windows.clone())
        return torch.zeros_like(windows)

    case = fake_case()
    answer = task.predict(network, case, WINDOWS, FoldFolder(tmp_path, 1))
    row = answer.row
    first = torch.cat(seen)
    seen.clear()
    assert task.predict(network, case, WINDOWS) == answer and torch.equal(torch.cat(seen), first)
    assert task.predict(network, fake_case(id="b"), WINDOWS).row["loss"] != row["loss"]
    planes = np.load(tmp_path / "reconstructions" / "a.npz")
    assert sorted(planes) == sorted(f"{n}_{axis}" for n in ("original", "masked", "reconstructed") for axis in range(3))
    seen = [case.image()[0, x : x + 16, y : y + 16, z : z + 16] for x, y, z in np.ndindex(5, 17, 2)]
    patch = next(one for one in seen if np.array_equal(planes["original_0"], one[8]))
    for axis in range(3):
        np.testing.assert_array_equal(planes[f"original_{axis}"], patch.take(8, axis))
        assert not planes[f"reconstructed_{axis}"].any()
        hidden = planes[f"masked_{axis}"] != planes[f"original_{axis}"]
        assert 0.3 < hidden.mean() < 0.9 and not planes[f"masked_{axis}"][hidden].any()
    row = task.predict(network, case, WHOLE).row
    everything = build(tiny_config).predict(network, case, WHOLE).row["loss"]
    assert everything == pytest.approx(np.square(case.image().astype(float)).mean(), rel=1e-5)
    assert row["loss"] != pytest.approx(everything, rel=1e-4)
    assert task.score(Results([{"loss": 1.0}, {"loss": 2.0}])) == {"reconstruction_mse": 1.5}


def test_only_the_first_cases_are_pictured(tiny_config, tmp_path):
    task = build(tiny_config)
    for number in range(8):
        task.predict(lambda windows: windows, fake_case(id=str(number)), WINDOWS, FoldFolder(tmp_path, 1))
    assert len(os.listdir(tmp_path / "reconstructions")) == 6


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A run folder: two epochs on the scans of phantoms, one channel each."""
    from fomo.data.phantoms import heads

    place = tmp_path_factory.mktemp("mae")
    heads.make(place / "heads", 3, 6, 24)
    content = {
        "name": "mae",
        "output": str(place / "runs"),
        "task": {"type": "mae"},
        "data": {
            **MRI,
            "root": str(place / "heads" / "preprocessed"),
            "cache": str(place / "cache"),
            "patch": [32] * 3,
            "spacing_mm": [8.0] * 3,
            "prepare_workers": 0,
        },
        "model": {"name": "unet_b_lw_dec", "width": 2},
        "optim": {"lr": 3e-3},
        "train": {"epochs": 2, "batch_size": 5, "workers": 0, "patience": None, "log_every": 1},
        "augment": {"preset": "none"},
        "eval": {"bootstrap": 20},
    }
    crossval.run(kinds.from_dict(content, "the test"), one_split=True)
    return place / "runs" / "mae"


def test_pretraining_leaves_scores_pictures_and_a_report(pretrained):
    history = files.read_csv(pretrained / "fold_1" / "history.csv")
    assert float(history[1]["val_reconstruction_mse"]) < float(history[0]["val_reconstruction_mse"])
    rows = files.read_csv(pretrained / "predictions.csv")
    scores = {row["metric"]: float(row["value"]) for row in files.read_csv(pretrained / "fold_1" / "results.csv")}
    assert len(rows) == 2  # one of six subjects is held back, with its two scans
    assert scores["reconstruction_mse"] == pytest.approx(np.mean([float(row["loss"]) for row in rows]))
    assert len(os.listdir(pretrained / "fold_1" / "reconstructions")) == 2
    assert "samples_per_s=" in (pretrained / "log.txt").read_text()
    assert (pretrained / "report.html").exists()


# of the file's 66 tensors: encoder 40, transposed convolutions 8, one convolution per level 16, output 2
COUNTS = {
    "classification": "loaded=40 new=5 adapted=0 ignored=26",
    "regression": "loaded=40 new=5 adapted=0 ignored=26",
    "segmentation": "loaded=63 new=18 adapted=1 ignored=2",
}


@pytest.mark.parametrize("task", sorted(COUNTS))
def test_the_checkpoint_starts_unet_b_in_every_task(pretrained, tiny_config, task):
    path = pretrained / "fold_1" / "best.pt"
    train, cv = {"epochs": 1, "steps_per_epoch": 1}, {"folds_to_run": [1]}
    config = kinds.load(tiny_config(task, weights={"path": str(path)}, train=train, cv=cv, optim={"lr": 1e-9}))
    crossval.run(config)
    folder = os.path.join(config.output, config.name)
    with open(os.path.join(folder, "log.txt")) as file:
        assert f"weights fold=1 {COUNTS[task]} aliases=0 family=fomo part=none path={path}" in file.read()
    start, trained = checkpoint.load(path)["model"], checkpoint.load(os.path.join(folder, "fold_1", "best.pt"))["model"]
    assert torch.allclose(
        trained["encoder.encoder_conv4.conv2.conv.weight"], start["encoder.encoder_conv4.conv2.conv.weight"], atol=1e-7
    )
    if task == "segmentation":
        assert torch.allclose(
            trained["decoder.decoder_conv4.conv1.conv.weight"],
            start["decoder.decoder_conv4.conv1.conv.weight"],
            atol=1e-7,
        )


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A run folder of the residual-encoder U-Net, pretrained as configs/mae_resenc.yaml says, on small patches."""
    from fomo.data.phantoms import heads

    place = tmp_path_factory.mktemp("mae_resenc")
    heads.make(place / "heads", 3, 4, 24)
    said = ["data.patch=[64,32,32]", "model.name=resenc_unet_s", "model.width=1", "data.prepare_workers=0"]
    said += ["train.epochs=1", "train.steps_per_epoch=2", "train.batch_size=2", "train.micro_batch=1"]
    said += ["train.workers=0", "cv.val_fraction=0.3", "augment.preset=none", "eval.bootstrap=20", f"output={place}"]
    said += [f"data.root={place}/heads/preprocessed", f"data.cache={place}/cache"]
    crossval.run(kinds.load(ROOT / "configs" / "mae_resenc.yaml", said), one_split=True)
    return place / "mae_resenc" / "fold_1" / "best.pt"


SECTIONS = {
    "classification": {"train": {"epochs": 1, "steps_per_epoch": 1, "checkpoint_activations": True}},
    "regression": {"data": {"channels": ["t1"]}, "train": {"epochs": 1, "steps_per_epoch": 1}},
    "segmentation": {
        "model": {"deep_supervision": True},
        "finetune": {"strategy": "decoder_first", "unfreeze_epoch": 2},
        "train": {"epochs": 2, "steps_per_epoch": 1},
    },
}


@pytest.mark.parametrize("task", sorted(SECTIONS))
def test_the_residual_encoder_starts_every_task(residual, tiny_config, task):
    """All of its encoder is loaded; a decoder without skip connections is not."""
    sections = {"weights": {"path": str(residual)}, "cv": {"folds_to_run": [1]}, **SECTIONS[task]}
    sections["data"] = {**sections.get("data", {}), "patch": [64, 32, 32]}
    sections["model"] = {**sections.get("model", {}), "name": "resenc_unet_s", "width": 1}
    config = kinds.load(tiny_config(task, **sections))
    crossval.run(config)
    with open(os.path.join(config.output, config.name, "log.txt")) as file:
        log = file.read()
    adapted, new = int(task == "segmentation"), 42 if task == "segmentation" else 5
    counts = f"loaded={112 - adapted} new={new} adapted={adapted} ignored=32 aliases=0 family=fomo part=none"
    assert f"weights fold=1 {counts} path=" in log


def test_a_pretrained_network_predicts_nothing(pretrained):
    with pytest.raises(config_module.UserError, match="task.type=mae predicts nothing"):
        members.load_members([str(pretrained / "fold_1" / "best.pt")], torch.device("cpu"))


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"task": {"type": "mae", "loss": "dice_ce"}}, "task.loss: got dice_ce, wanted one of auto for task.type=mae"),
        ({"task": {"type": "mae", "class_weights": "inverse_frequency"}}, "task.class_weights"),
        ({"task": {"type": "mae", "mask_ratio": 0}}, "task.mask_ratio"),
        ({"task": {"type": "mae", "mask_cube": 17}}, "task.mask_cube: got 17, wanted at most half"),
        ({"model": {"name": "resnet50"}, "data": {"patch": [64, 64, 1]}}, "task.type: got mae, wanted dino for slices"),
        ({"task": {"type": "mae", "mae_clamp": [4, -2]}}, "task.mae_clamp: got .4,-2., wanted the lower one first"),
        ({"model": {"deep_supervision": True}}, "model.deep_supervision"),
        ({"model": {"skips": False}}, "model.skips: got false, wanted true for model.name=unet_b"),
        (
            {"task": {"type": "mae", "targets": ["age"]}, "data": {"phantom_layout": "table"}},
            "task.targets: got .age., wanted none: no labels",
        ),
    ],
)
def test_impossible_settings_are_refused(tiny_config, sections, message):
    with pytest.raises(config_module.UserError, match=message):
        kinds.load(tiny_config("mae", **sections))
