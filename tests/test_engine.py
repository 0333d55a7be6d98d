"""The step and its surroundings: accumulation, freezing, layer-wise learning rates, selection, errors that stop."""

import copy
import math
import pathlib
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from fomo import checkpoint, engine, losses, nets
from fomo import config as config_module


class Task:
    select, higher_is_better = "auroc", True

    def loss(self, outputs, batch):
        return losses.cross_entropy(outputs, batch["target"])


def make_batch(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 1, 32, 16, 16, generator=generator)
    return {"image": image, "target": torch.arange(count) % 2, "id": [f"case{i}" for i in range(count)]}


def make_network(seed=0, **arguments):
    torch.manual_seed(seed)
    return nets.build("unet_b", 1, 2, mode="classification", width=2, **arguments)


def load(tiny_config, **sections):
    return config_module.load(tiny_config(**sections))


CPU = torch.device("cpu")


def test_accumulation_equals_one_large_batch(tiny_config):
    config = load(tiny_config)
    batch = make_batch(6)
    parts = [{name: value[i : i + 2] for name, value in batch.items()} for i in (0, 2, 4)]
    results = []
    for micro_batches in ([batch], parts):
        network = make_network()
        optimizer = engine.build_optimizer(config, network, CPU)
        autocast, scaler = engine.precision("off", CPU)
        loss = engine.train_step(network, Task(), micro_batches, optimizer, scaler, autocast, None)
        results.append((loss.read(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-4)  # biases before a norm have noise only


def test_gradients_are_clipped_to_the_norm(tiny_config):
    network, config = make_network(), load(tiny_config)
    optimizer = engine.build_optimizer(config, network, CPU)
    autocast, scaler = engine.precision("off", CPU)
    engine.train_step(network, Task(), [make_batch(2)], optimizer, scaler, autocast, 1e-3)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_names_its_cases(tiny_config):
    network, config = make_network(), load(tiny_config)
    optimizer = engine.build_optimizer(config, network, CPU)
    autocast, scaler = engine.precision("off", CPU)
    batch = make_batch(4)
    batch["image"][2, 0, 5, 5, 5] = float("inf")
    step = engine.train_step(network, Task(), [batch], optimizer, scaler, autocast, None)
    with pytest.raises(engine.NonFiniteLoss) as caught:
        step.read()
    assert "cases case2:" in str(caught.value) and "case1" not in str(caught.value)


def test_a_run_ends_at_the_first_loss_that_is_not_finite_with_the_last_good_weights_on_disk(tiny_config):
    path = tiny_config("regression", train={"epochs": 3, "steps_per_epoch": 2})
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import torch
from fomo import cli, crossval, engine
from fomo.tasks.regression import Regression
own, calls = Regression.loss, []
def broken(self, outputs, batch):
    calls.append(1)
    return own(self, outputs, batch) * (float("nan") if len(calls) == 3 else 1.0)
Regression.loss = broken
cli.run(lambda arguments: crossval.run(cli.parse_config("", arguments)[0], one_split=True))
"""
    done = subprocess.run([sys.executable, "-c", script, str(path), "train.log_every=100"], capture_output=True, text=True)
    assert done.returncode == 1 and "loss=nan" in done.stderr and "step=3" not in done.stdout
    last = checkpoint.load(path.parent / "runs" / "run" / "fold_1" / "last.pt")
    assert last["step"] == 2 and all(value.isfinite().all() for value in last["model"].values())


def test_bf16_computes_the_loss_in_float32(tiny_config):
    autocast, scaler = engine.precision("bf16", CPU)
    seen = []

    class Watching(Task):
        def loss(self, outputs, batch):
            seen.append(outputs.dtype)
            result = super().loss(outputs, batch)
            assert result.dtype == torch.float32
            return result

    network = make_network()
    optimizer = engine.build_optimizer(load(tiny_config), network, CPU)
    engine.train_step(network, Watching(), [make_batch(2)], optimizer, scaler, autocast, None)
    assert seen == [torch.bfloat16]
    with pytest.raises(config_module.UserError):
        engine.precision("fp16", CPU)


def test_layer_decay_slows_earlier_stages_and_norms_and_biases_do_not_decay(tiny_config):
    config = load(tiny_config, finetune={"layer_decay": 0.5}, optim={"weight_decay": 0.1})
    network = make_network()
    optimizer = engine.build_optimizer(config, network, CPU)
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(group_of) == len(list(network.parameters()))
    scale = {name: group_of[id(p)]["lr_scale"] for name, p in network.named_parameters()}
    decay = {name: group_of[id(p)]["weight_decay"] for name, p in network.named_parameters()}
    assert scale["decoder.fc.weight"] == 1 and scale["encoder.encoder_conv4.conv1.conv.weight"] == 0.5
    assert scale["encoder.in_conv.conv1.conv.weight"] == 0.5**5
    assert decay["encoder.in_conv.conv1.conv.weight"] == 0.1
    assert decay["encoder.in_conv.conv1.conv.bias"] == decay["encoder.in_conv.conv1.norm.weight"] == 0


@pytest.mark.parametrize("strategy", ["full", "gradual", "head_only"])
def test_what_each_strategy_freezes(tiny_config, tmp_path, strategy):
    config = load(
        tiny_config,
        finetune={"strategy": strategy, "unfreeze_epoch": 3},
        train={"epochs": 4},
        weights={"path": str(tmp_path / "w.pt")},
    )
    network = make_network()
    for epoch in range(4):
        engine.freeze(network, engine.frozen_prefixes(config, network, epoch))
        encoder = {p.requires_grad for p in network.encoder.parameters()}
        head = {p.requires_grad for p in network.decoder.fc.parameters()}
        assert head == {True}
        assert encoder == {strategy == "full" or (strategy == "gradual" and epoch >= 2)}


LONG = {"train": {"epochs": 9}, "optim": {"weight_decay": 0.1}}


def make_slices(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 2, 64, 64, 1, generator=generator)
    return {"image": image, "target": (torch.arange(count) % 3 == 0).long(), "id": [f"case{i}" for i in range(count)]}


def slices_network(name):
    """Its features are not zero, as those of an untrained one are, nearly."""
    torch.manual_seed(0)
    network = nets.build(name, 2, 2, mode="classification", width=4, dropout=0.2, attention="cbam")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0", "unet_b"])
def test_stage_by_stage_from_the_head_down(tiny_config, name):
    finetune = {"strategy": "stagewise", "unfreeze_epoch": 3, "unfreeze_every": 2}
    config = load(tiny_config, finetune=finetune, **LONG)
    network = slices_network(name) if name != "unet_b" else make_network()
    for epoch, trained in ((1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (100, len(network.stages))):
        frozen = engine.frozen_prefixes(config, network, epoch - 1)
        assert frozen == tuple(prefix for stage in network.stages[: len(network.stages) - trained] for prefix in stage)


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_b0"])
@pytest.mark.parametrize("strategy", ["gradual", "stagewise", "head_only"])
def test_frozen_is_frozen_to_the_bit_and_what_is_not_moves(tiny_config, tmp_path, name, strategy):
    """Parameters and running statistics, over epochs with evaluations between them."""
    finetune = {"strategy": strategy, "unfreeze_epoch": 2, "unfreeze_every": 1}
    config = load(tiny_config, finetune=finetune, weights={"path": str(tmp_path / "w.pt")}, **LONG)
    network = slices_network(name)
    optimizer = engine.build_optimizer(config, network, CPU)
    autocast, scaler = engine.precision("off", CPU)
    for epoch in range(4):
        frozen = engine.frozen_prefixes(config, network, epoch)
        engine.set_train_mode(network, frozen)
        engine.freeze(network, frozen)
        before = copy.deepcopy(network.state_dict())
        for step in range(2):
            engine.train_step(network, Task(), [make_slices(4, 10 * epoch + step)], optimizer, scaler, autocast, 1.0)
        moved = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
        assert not [n for n in moved if frozen and n.startswith(frozen)]
        assert any(n.startswith(network.head_prefixes) for n in moved)
        assert not [n for n in before if n not in moved and not n.startswith((*frozen, *network.head_prefixes))]
        network.eval()
    assert bool(frozen) == (strategy != "gradual")


def test_what_is_frozen_drops_nothing():
    network = slices_network("efficientnet_b0")
    engine.set_train_mode(network, network.encoder_prefixes)
    image = make_slices(4)["image"]
    with torch.no_grad():
        assert torch.equal(network.features(image), network.features(image))
        assert not torch.equal(network(image), network(image))  # the head's own dropout
        engine.set_train_mode(network, ())
        assert not torch.equal(network.features(image), network.features(image))


def test_frozen_running_statistics_stay_and_others_move():
    network = torch.nn.ModuleDict(
        {"encoder": torch.nn.Sequential(torch.nn.BatchNorm1d(3)), "head": torch.nn.BatchNorm1d(3)}
    )
    engine.set_train_mode(network, ("encoder.",))
    for part in network.values():
        part(torch.randn(8, 3) + 5)
    assert torch.equal(network["encoder"][0].running_mean, torch.zeros(3))
    assert (network["head"].running_mean > 0.1).all()


def test_the_best_epoch_needs_a_defined_metric_and_ties_go_to_the_lower_loss():
    def row(auroc, val_loss):
        return {"val_auroc": auroc, "val_loss": val_loss}

    nan = float("nan")
    assert not engine.is_best(Task, row(nan, 0.1), [])
    assert engine.is_best(Task, row(0.5, 9.0), [row(nan, 0.1)])
    assert not engine.is_best(Task, row(0.8, 0.5), [row(0.8, 0.5)])
    assert engine.is_best(Task, row(0.8, 0.4), [row(0.8, 0.5), row(0.7, 0.1)])
    assert not engine.is_best(Task, row(0.7, 0.0), [row(0.8, 0.5)])


def test_the_best_epochs_are_kept_in_their_order(tmp_path):
    history, scores = [], [0.5, 0.7, 0.6, 0.65, 0.2, float("nan"), 0.7]
    for epoch, auroc in enumerate(scores, start=1):
        row = {"val_auroc": auroc, "val_loss": 1.0}
        place = engine.place_of(Task, row, history)
        history.append(row)
        if place <= 3:
            pathlib.Path(engine.make_place(str(tmp_path), place, 3)).write_text(f"{epoch}")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"best.pt": "2", "best_2.pt": "7", "best_3.pt": "4"}


def test_batches_that_do_not_divide_over_the_ranks_are_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(engine.dist, "world_size", lambda: 3)
    with pytest.raises(config_module.UserError, match="a multiple of the 3 ranks"):
        engine.make_plan(load(tiny_config))


def test_batches_that_left_the_loader_unaugmented_are_augmented_on_the_device(tiny_config, monkeypatch):
    """As on a GPU: the worker draws, the training process applies; the result is the loader's own."""
    from fomo.data import loader

    config = load(tiny_config, augment={"preset": "strong"}, data={"patch": [32, 16, 16]})
    generator = torch.Generator().manual_seed(0)
    samples = [{"image": torch.randn(4, 32, 16, 16, generator=generator), "target": 1.0, "id": "a", "slot": s} for s in (3, 4)]
    whole = loader.Collate(config, 1)(samples)
    monkeypatch.setattr(loader, "augments_on_gpu", lambda config: True)
    left = loader.Collate(config, 1)(samples)
    assert torch.equal(left["image"], torch.stack([sample["image"] for sample in samples]))
    moved = engine.to_device(left, CPU, loader.augmentation(config))
    assert torch.equal(moved["image"], whole["image"]) and not torch.equal(moved["image"], left["image"])
    assert "plans" not in moved


def test_the_loss_of_mixed_samples_is_that_of_both_targets_by_their_shares():
    class Squared:
        def loss(self, outputs, batch):
            return (outputs - batch["target"]) ** 2

    batch = {"target": torch.tensor([1.0, 2.0, 3.0])}
    outputs = torch.tensor([0.0, 0.0, 1.0])
    assert engine.loss_of(Squared(), outputs, batch).tolist() == [1, 4, 4]
    mixed = {**batch, "partner_target": torch.tensor([3.0, 2.0, 9.0]), "own_share": torch.tensor([0.25, 0.5, 1.0])}
    assert engine.loss_of(Squared(), outputs, mixed).tolist() == [0.25 * 1 + 0.75 * 9, 4, 4]
