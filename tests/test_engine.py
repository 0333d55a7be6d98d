"""The step and its surroundings: accumulation, precision, mixed samples, errors that stop."""

import functools
import math
import os
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from fomo import checkpoint, kinds, losses, nets, tasks
from fomo import config as config_module
from fomo.config import UserError
from fomo.tasks.results import Answer
from fomo.training import evaluate, optimization
from fomo.training import step as steps


class Task:
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
    return kinds.load(tiny_config(**sections))


CPU = torch.device("cpu")


def test_accumulation_equals_one_large_batch(tiny_config):
    config = load(tiny_config)
    batch = make_batch(6)
    parts = [{name: value[i : i + 2] for name, value in batch.items()} for i in (0, 2, 4)]
    results = []
    for micro_batches in ([batch], parts):
        network = make_network()
        optimizer = optimization.build_optimizer(config, network, CPU)
        autocast, scaler = optimization.precision("off", CPU)
        loss = steps.train_step(network, Task(), micro_batches, optimizer, scaler, autocast, None)
        results.append((loss.read(), torch.cat([p.grad.flatten() for p in network.parameters()])))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    torch.testing.assert_close(
        results[0][1], results[1][1], rtol=1e-3, atol=1e-4
    )  # biases before a norm have noise only


def test_gradients_are_clipped_to_the_norm(tiny_config):
    network, config = make_network(), load(tiny_config)
    optimizer = optimization.build_optimizer(config, network, CPU)
    autocast, scaler = optimization.precision("off", CPU)
    steps.train_step(network, Task(), [make_batch(2)], optimizer, scaler, autocast, 1e-3)
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters()))
    assert norm == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_that_is_not_finite_names_its_cases(tiny_config):
    network, config = make_network(), load(tiny_config)
    optimizer = optimization.build_optimizer(config, network, CPU)
    autocast, scaler = optimization.precision("off", CPU)
    batch = make_batch(4)
    batch["image"][2, 0, 5, 5, 5] = float("inf")
    step = steps.train_step(network, Task(), [batch], optimizer, scaler, autocast, None)
    with pytest.raises(steps.NonFiniteLoss) as caught:
        step.read()
    assert "cases case2:" in str(caught.value) and "case1" not in str(caught.value)


def test_a_run_ends_at_the_first_loss_that_is_not_finite_with_the_last_good_weights_on_disk(tiny_config):
    path = tiny_config("regression", train={"epochs": 3, "steps_per_epoch": 2, "save_every_s": 0})
    script = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import torch
from fomo import cli
from fomo.runs import crossval
from fomo.tasks.regression import Regression
own, calls = Regression.loss, []
def broken(self, outputs, batch):
    calls.append(1)
    return own(self, outputs, batch) * (float("nan") if len(calls) == 3 else 1.0)
Regression.loss = broken
cli.run(lambda arguments: crossval.run(cli.parse_config("", arguments)[0], one_split=True))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(path), "train.log_every=100"], capture_output=True, text=True
    )
    assert done.returncode == 1 and "loss=nan" in done.stderr and "step=3" not in done.stdout
    last = checkpoint.load(path.parent / "runs" / "run" / "fold_1" / "last.pt")
    assert last["step"] == 2 and all(value.isfinite().all() for value in last["model"].values())


def test_bf16_computes_the_loss_in_float32(tiny_config):
    autocast, scaler = optimization.precision("bf16", CPU)
    seen = []

    class Watching(Task):
        def loss(self, outputs, batch):
            seen.append(outputs.dtype)
            result = super().loss(outputs, batch)
            assert result.dtype == torch.float32
            return result

    network = make_network()
    optimizer = optimization.build_optimizer(load(tiny_config), network, CPU)
    steps.train_step(network, Watching(), [make_batch(2)], optimizer, scaler, autocast, None)
    assert seen == [torch.bfloat16]
    with pytest.raises(config_module.UserError):
        optimization.precision("fp16", CPU)


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="Linux says what its CPU has")
def test_auto_is_bf16_on_a_cpu_that_has_it_and_convolves_right(monkeypatch):
    with open("/proc/cpuinfo") as file:
        flag = next((line.split()[2] for line in file if line.startswith("flags")), None)
    for instructions, right, meant in (({flag}, True, "bf16"), ({flag}, False, "off"), ({"abacus"}, True, "off")):
        monkeypatch.setattr(optimization, "_BF16_INSTRUCTIONS", instructions)
        monkeypatch.setattr(optimization, "_convolves_alike", lambda dtype, right=right: right)
        optimization._cpu_multiplies_bf16.cache_clear()
        assert optimization.amp_of("auto", CPU) == (meant if flag else "off")
        assert optimization.amp_of("off", CPU) == "off"
    monkeypatch.undo()
    optimization._cpu_multiplies_bf16.cache_clear()
    assert optimization._convolves_alike(torch.bfloat16)
    true = torch.nn.functional.conv3d

    def wrong(x, w, padding):
        return true(x, w, padding=padding) * (1.1 if x.dtype == torch.bfloat16 else 1)

    monkeypatch.setattr(torch.nn.functional, "conv3d", wrong)
    assert not optimization._convolves_alike(torch.bfloat16)


def test_batches_that_do_not_divide_over_the_ranks_are_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(steps.dist, "world_size", lambda: 3)
    with pytest.raises(config_module.UserError, match="a multiple of the 3 ranks"):
        steps.make_plan(load(tiny_config))


def test_batches_that_left_the_loader_unaugmented_are_augmented_on_the_device(tiny_config, monkeypatch):
    """As on a GPU: the worker draws, the training process applies; the result is the loader's own."""
    from fomo.data import loader

    config = load(tiny_config, augment={"preset": "strong"}, data={"patch": [32, 16, 16]})
    task = tasks.build(config)
    generator = torch.Generator().manual_seed(0)
    facts = {"target": 1.0, "id": "a", "outside": (0.0,) * 4}
    samples = [{"image": torch.randn(4, 32, 16, 16, generator=generator), **facts, "slot": s} for s in (3, 4)]
    whole = loader.Collate(config, task, 1)(samples)
    monkeypatch.setattr(loader, "augments_on_gpu", lambda config: True)
    left = loader.Collate(config, task, 1)(samples)
    assert torch.equal(left["image"], torch.stack([sample["image"] for sample in samples]))
    moved = steps.to_device(left, CPU, task.augmentation())
    assert torch.equal(moved["image"], whole["image"]) and not torch.equal(moved["image"], left["image"])
    assert "plans" not in moved


def test_the_loss_of_mixed_samples_is_that_of_both_targets_by_their_shares():
    class Squared:
        def loss(self, outputs, batch):
            return (outputs - batch["target"]) ** 2

    batch = {"target": torch.tensor([1.0, 2.0, 3.0])}
    outputs = torch.tensor([0.0, 0.0, 1.0])
    assert steps.loss_of(Squared(), outputs, batch).tolist() == [1, 4, 4]
    mixed = {**batch, "partner_target": torch.tensor([3.0, 2.0, 9.0]), "own_share": torch.tensor([0.25, 0.5, 1.0])}
    assert steps.loss_of(Squared(), outputs, mixed).tolist() == [0.25 * 1 + 0.75 * 9, 4, 4]


def test_cases_are_read_ahead_in_their_order_and_one_that_cannot_be_read_ends_it():
    class One:
        class_voxels = (1, 1)

        def __init__(self, number):
            self.id, self.number = f"c{number}", number

        def image(self):
            read.append(self.number)
            if self.number == 3:
                raise UserError("damaged")
            return np.full((1, 2, 2, 2), self.number)

        def mask(self):
            return np.full((2, 2, 2), self.number)

    read, seen = [], []
    with pytest.raises(UserError, match="damaged"):
        for case in evaluate._read_ahead([One(number) for number in range(5)], CPU):
            seen.append(case.id)
            number = int(case.id[1:])
            assert (case.image() == number).all() and (case.mask() == number).all()
            assert case.image() is case.image(), "read once"
    assert seen == ["c0", "c1", "c2"] and read[:4] == [0, 1, 2, 3]
    assert sum(1 for _ in evaluate._read_ahead([], CPU)) == 0


@pytest.mark.parametrize("behind", [False, True])
def test_an_answer_is_finished_while_the_network_is_at_the_next_case(behind):
    """As on a GPU; without it, and of a task that leaves nothing to be done, the answers are the same."""
    begun, network = [threading.Event() for _ in range(4)], []

    class Deferring:
        def predict(self, _, case, windows, fold):
            network.append(case.number)
            begun[case.number].set()
            return functools.partial(self.rest, case) if case.number != 1 else Answer({"id": case.id})

        def rest(self, case):
            if behind and case.number in (0, 2):
                assert begun[case.number + 1].wait(10), "the network is at the next case meanwhile"
            assert behind or network[-1] == case.number
            return Answer({"id": case.id})

    cases = [SimpleNamespace(id=str(n), number=n, image=lambda: np.zeros(1), class_voxels=()) for n in range(4)]
    found = evaluate._one_by_one(Deferring(), None, cases, SimpleNamespace(device=CPU), None, behind)
    assert [answer.row["id"] for answer in found] == ["0", "1", "2", "3"]
