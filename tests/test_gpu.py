"""What only a GPU can show: it gives what the CPU gives, and nothing in a step waits for it. Skipped without one."""

import contextlib
import dataclasses
import gc

import numpy as np
import pytest
import torch

from fomo import inference, kinds, losses, nets
from fomo.data import loader
from fomo.nets import conv, multihead, norm
from fomo.training import optimization
from fomo.training.graphs import Graphed
from fomo.training.step import to_device, train_step
from fomo.transforms import build
from fomo.transforms.registry import TRANSFORMS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = torch.device("cuda", 0)
PATCH = (64, 64, 64)


class Task:
    def loss(self, outputs, batch):
        if torch.is_tensor(outputs):
            return losses.dice_focal(outputs, batch["mask"])
        maps, numbers, _ = outputs  # of a `MultiHead`
        return losses.deep_supervision(losses.dice_focal, maps, batch["mask"]) + numbers.float().square().mean(1)


def make_batch(samples=2, channels=3):
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(samples, channels, *PATCH, generator=draw)
    return {"image": image, "mask": (image[:, 0] > 1).to(torch.uint8), "id": [f"case{i}" for i in range(samples)]}


def make_step(config, amp="bf16", name="unet_b", width=8, recompute=False, cuda_graph=False, beside=False, **options):
    """(function of a batch on the CPU: one training step on the GPU, its network)."""
    torch.manual_seed(0)
    network = nets.build(name, 3, 2, width=width, **options)
    network = (multihead.MultiHead(network, 3, 1, "multistage") if beside else network).train()
    if recompute:
        network.checkpoint_activations(True)
    layout = optimization.lay_out(network, GPU)
    optimizer, augment = optimization.build_optimizer(config, network, GPU), loader.augmentation(config)
    autocast, scaler = optimization.precision(amp, GPU)
    train = dataclasses.replace(config.train, cuda_graph=cuda_graph, checkpoint_activations=recompute)

    def step(batch):
        batch = to_device(batch, GPU, augment, layout)
        return train_step(step.forward, Task(), [batch], optimizer, scaler, autocast, 1.0)

    step.forward = optimization.wrap(network, train, loader.Plan(2, 0, 1, 2), GPU)
    return step, network


@contextlib.contextmanager
def nothing_waits():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def config(tiny_config):
    return kinds.load(tiny_config("segmentation", data={"patch": list(PATCH)}, augment={"preset": "strong"}))


@pytest.mark.parametrize("amp, graph", [("bf16", False), ("bf16", True), ("fp16", False), ("off", False)])
def test_a_step_with_its_augmentation_waits_for_nothing(config, amp, graph):
    step, network = make_step(config, amp, cuda_graph=graph)
    average = optimization.Average(network, 0.9)
    augment = loader.augmentation(config)

    def batch(index):
        plans = augment.draw([np.random.default_rng([index, slot]) for slot in range(2)], 2, 3)
        given = make_batch()
        return {**given, "image": given["image"].pin_memory(), "mask": given["mask"].pin_memory(), "plans": plans}

    batches = [batch(index) for index in range(12)]
    for one in batches[:6]:  # memory is reserved, kernels are loaded
        step(dict(one))
        average.update(network)
    with nothing_waits():
        for one in batches:
            taken = step(dict(one))
            average.update(network)
    assert np.isfinite(taken.read())


def test_the_kernels_of_the_norm_run_here():
    assert norm.problem(GPU) is None


def test_graphs_give_the_losses_of_single_kernels(config):
    def run(graph, **options):
        step, network = make_step(config, cuda_graph=graph, **options)
        found = []
        for _ in range(8):
            torch.manual_seed(len(found))  # as training does, for dropout
            found.append(step(make_batch()).read())
        assert getattr(step.forward, "problem", None) is None and isinstance(step.forward, Graphed) == graph
        return found, [buffer.clone() for buffer in network.buffers()]

    nested = {"deep_supervision": True, "beside": True}
    for options in ({}, {"channel_dropout": 0.3}, {"name": "suprem_unet3d"}, nested):
        (own, own_buffers), (plain, buffers) = run(True, **options), run(False, **options)
        assert own == pytest.approx(plain, abs=1e-3) and own[-1] < own[0]
        assert all(
            torch.equal(a, b) or (a - b).abs().max() < 0.01 * b.abs().max() for a, b in zip(own_buffers, buffers)
        )


def test_a_network_that_waits_is_trained_without_graphs(config):
    step, network = make_step(config, cuda_graph=True)
    plain = network.forward
    network.forward = lambda x: plain(x * float(x.abs().max() > 0))
    losses = [step(make_batch()).read() for _ in range(3)]
    assert step.forward.problem and np.isfinite(losses).all()
    torch.rand(3, device=GPU)  # random numbers are as before


def test_pooling_is_torchs():
    x = torch.randn(2, 8, 8, 6, 4, device=GPU).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    own = conv.AvgPool3d()(x)
    assert own.is_contiguous(memory_format=torch.channels_last_3d)
    (gradient,) = torch.autograd.grad(own.square().sum(), x)
    true = torch.nn.functional.avg_pool3d(x, 2)
    torch.testing.assert_close(own, true)
    torch.testing.assert_close(gradient, torch.autograd.grad(true.square().sum(), x)[0])


def test_losses_are_those_of_the_cpu_and_of_recomputed_activations(config):
    def run(step):
        return [step(make_batch()).read() for _ in range(8)]

    torch.manual_seed(0)
    network = nets.build("unet_b", 3, 2, width=8)
    optimizer = optimization.build_optimizer(config, network, torch.device("cpu"))
    autocast, scaler = optimization.precision("off", torch.device("cpu"))
    on_cpu = run(lambda batch: train_step(network, Task(), [batch], optimizer, scaler, autocast, 1.0))
    assert run(make_step(config, "off")[0]) == pytest.approx(on_cpu, abs=2e-3)
    plain = run(make_step(config)[0])
    assert plain == pytest.approx(on_cpu, abs=2e-2)
    assert run(make_step(config, recompute=True)[0]) == pytest.approx(plain, abs=2e-3)


def test_recomputed_activations_take_less_memory(config):
    peaks = []
    for recompute in (False, True):
        step, network = make_step(config, recompute=recompute, width=16)
        step(make_batch())
        gc.collect()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(make_batch())
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del step, network
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name != "resample" and "noise" not in name])
def test_each_transform_gives_what_it_gives_on_the_cpu(name):
    augment, batch = build("none", PATCH, {name: {"p": 1.0}}), make_batch()
    plans = augment.draw([np.random.default_rng(slot) for slot in range(2)], 2, 3)
    on_cpu = augment.apply(batch, plans)
    on_gpu = augment.apply(
        {key: value.to(GPU) if torch.is_tensor(value) else value for key, value in batch.items()}, plans
    )
    assert (on_gpu["image"].cpu() - on_cpu["image"]).abs().max() < 5e-3
    assert (on_gpu["mask"].cpu() != on_cpu["mask"]).float().mean() < 1e-4  # voxels halfway between two


@pytest.mark.parametrize("name", ["noise", "multiplicative_noise", "rician_noise"])
def test_noise_has_the_same_size_as_on_the_cpu(name):
    augment, batch = build("none", PATCH, {name: {"p": 1.0}}), make_batch()
    plans = augment.draw([np.random.default_rng(slot) for slot in range(2)], 2, 3)
    change = [
        (augment.apply({"image": image}, plans)["image"] - image).std()
        for image in (batch["image"], batch["image"].to(GPU))
    ]
    assert float(change[1]) == pytest.approx(float(change[0]), rel=0.02) and float(change[0]) > 0


@pytest.mark.parametrize("accumulate", [None, "cpu"])
def test_windows_give_what_they_give_on_the_cpu(accumulate):
    torch.manual_seed(0)
    network, volume = nets.build("unet_b", 3, 2, width=4).eval(), make_batch(1)["image"][0].numpy()
    optimization.precision("off", GPU)  # without the 10 bits of TF32
    on_cpu = inference.sliding_window(network, volume, (32, 32, 32), windows=4)
    on_gpu = inference.sliding_window(
        network.to(GPU), volume, (32, 32, 32), windows=4, device=GPU, accumulate=accumulate
    )
    assert on_gpu.device.type == (accumulate or "cuda")
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=1e-3, rtol=1e-3)
