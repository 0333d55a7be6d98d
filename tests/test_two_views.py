"""Masked autoencoder of two views: the published loss, its memory, parts of a batch, a whole run, where it goes."""

import re
import shutil

import numpy as np
import pytest
import torch
from conftest import run_command

from fomo import checkpoint, kinds, losses, nets, tasks
from fomo import config as config_module
from fomo.data import cache, loader, sources
from fomo.nets import image_head
from fomo.nets.two_views import MEAN_MEMORY, MEMORY, OUTPUTS, TwoViews
from fomo.training.step import train_step

CHANNELS = 4  # of the phantoms of tiny_config("mae")


def oracle(first, second):
    """VICReg by loops over samples and numbers, with variances divided by n over both views."""
    vectors, (samples, size) = torch.cat([first, second]), first.shape
    mean = [sum(vectors[n, i] for n in range(2 * samples)) / (2 * samples) for i in range(size)]
    invariance = variance = covariance = 0.0
    for i in range(size):
        for j in range(size):
            products = [(vectors[n, i] - mean[i]) * (vectors[n, j] - mean[j]) for n in range(2 * samples)]
            between = sum(products) / (2 * samples)
            if i == j:
                variance += max(1 - (between + 1e-4) ** 0.5, 0 * between) / size
            else:
                covariance += between**2 / size
        invariance += sum((first[b, i] - second[b, i]) ** 2 for b in range(samples)) / (samples * size)
    return invariance, variance, covariance


def statistics_of(*vectors):
    """(mean, covariance) of vectors (n, K), divided by n."""
    vectors = torch.cat(vectors).detach()
    return vectors.mean(0), torch.cov(vectors.T, correction=0).reshape(vectors.shape[1], -1)


@pytest.mark.parametrize("size", [1, 5])
def test_with_the_batchs_own_statistics_terms_and_gradients_are_the_published_ones(size):
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.3, 2.0, size)  # some deviations are below 1 and some above
    pairs = [(torch.randn(6, size, generator=generator) * scale).requires_grad_() for _ in range(2)]
    found = losses.vicreg(*pairs, *statistics_of(*pairs))
    for own, wanted in zip(found, oracle(*pairs)):
        assert own.shape == (6,) and own.dtype == torch.float32
        torch.testing.assert_close(own.mean(), torch.as_tensor(wanted), rtol=1e-5, atol=1e-6)
        if not torch.as_tensor(wanted).requires_grad:  # one number has no covariance
            continue
        gradients = [torch.autograd.grad(value, pairs, retain_graph=True) for value in (own.mean(), wanted)]
        for pair in zip(*gradients):
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)


def test_the_terms_by_hand():
    first, second = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    covariance = torch.tensor([[0.2499, 0.5], [0.5, 8.0]])
    invariance, variance, covariance = losses.vicreg(first, second, torch.zeros(2), covariance)
    torch.testing.assert_close(invariance, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(variance, torch.tensor([0.25, 0.25]))
    torch.testing.assert_close(covariance, torch.tensor([0.25, 0.25]))


@pytest.mark.parametrize("shapes", [((3, 2), (2, 2), (2,), (2, 2)), ((3, 2), (3, 2), (3,), (2, 2)), ((3,),) * 4])
def test_vectors_and_statistics_that_do_not_fit_are_refused(shapes):
    with pytest.raises(ValueError, match="first, second, mean, covariance: got shapes"):
        losses.vicreg(*(torch.zeros(shape) for shape in shapes))


# ------------------------------------------------------------------------------------------ network


def make_network(name="unet_b_lw_dec", width=2):
    torch.manual_seed(0)
    return TwoViews(nets.build(name, 1, 1, mode="segmentation", width=width), (32, 32, 32), 4)


@pytest.mark.parametrize("name, patch", [("unet_b_lw_dec", (32, 16, 16)), ("resenc_unet_s", (64, 32, 32))])
def test_the_network_restores_and_reads_what_the_head_reads(name, patch):
    network, x = (
        TwoViews(nets.build(name, 1, 1, mode="segmentation", width=2), (64, 32, 32), 2),
        torch.randn(2, 1, *patch),
    )
    restored, statistics, vectors, same, covariance = network(x)
    assert torch.equal(vectors, same)
    network.eval()
    torch.testing.assert_close(restored, network(x))
    whole = nets.build(name.replace("_lw_dec", ""), 1, 1, mode="regression", width=2, head="multistage")
    whole.encoder.load_state_dict(network.network.encoder.state_dict())
    torch.testing.assert_close(statistics, whole.statistics(x)[:, len(image_head.intensities(x)) :])
    assert vectors.shape == (2, OUTPUTS) and covariance.shape == (OUTPUTS, OUTPUTS)
    trained = [name for name, _ in network.named_parameters()]
    assert all(sum(name.startswith(stage) for stage in network.stages) == 1 for name in trained)


def test_what_is_remembered_is_how_scans_of_a_step_differ():
    """A drift between steps, as of weights that are trained, is no difference of scans."""
    network, rng = make_network(), np.random.default_rng(0)
    features, count = network.mean.numel(), len(network.differences)
    x = torch.randn(8, 1, 32, 32, 32)
    assert torch.equal(network(x)[4], torch.eye(OUTPUTS))  # nothing is known
    steps = [torch.tensor(rng.normal(size=(2, 4, features)) + 9 * n, dtype=torch.float32) for n in range(3)]
    for number, step in enumerate(steps, start=1):
        network.remember(step, number)
    torch.testing.assert_close(network.mean, torch.cat(steps).flatten(0, 1).mean(0))  # of all, while they are few
    differences = torch.cat([(step - step.mean((0, 1))).flatten(0, 1) for step in steps]) * (4 / 3) ** 0.5
    z = 4 * torch.tanh(differences / differences.square().mean(0).sqrt() / 4)
    vectors = z @ network.projection.weight.T
    restored, statistics, own, same, covariance = network(x)
    torch.testing.assert_close(covariance, vectors.T @ vectors / 24, rtol=1e-3, atol=1e-4)
    weight = network.projection.weight
    gradients = [torch.autograd.grad(one.square().sum(), weight) for one in (covariance, vectors.T @ vectors / 24)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert torch.autograd.grad(same.sum(), weight, retain_graph=True, allow_unused=True) == (None,)
    wanted = 4 * torch.tanh((statistics - network.mean) / differences.square().mean(0).sqrt() / 4)
    torch.testing.assert_close(own, wanted @ network.projection.weight.T, rtol=1e-3, atol=1e-3)
    assert count == MEMORY // 4
    mean = network.mean.clone()
    network.remember(steps[0], count + 2)  # in the place of the second
    torch.testing.assert_close(network.differences[1], differences[:8])
    torch.testing.assert_close(network.mean, torch.lerp(mean, steps[0].mean((0, 1)), 4 / MEAN_MEMORY))
    assert network.filled == count


def test_one_scan_a_step_is_refused():
    with pytest.raises(ValueError, match="scans: got 1, wanted 2 or more"):
        TwoViews(nets.build("unet_b_lw_dec", 1, 1, mode="segmentation", width=2), (32, 16, 16), 1)


# --------------------------------------------------------------------------------------------- task


@pytest.fixture
def write(tiny_config):
    """Function that writes a config of two views; keyword arguments are sections."""

    def write(**sections):
        task = {"type": "mae", "global_weight": 0.5, **sections.pop("task", {})}
        model = {"name": "unet_b_lw_dec", "width": 2, **sections.pop("model", {})}
        return tiny_config("mae", task=task, model=model, **sections)

    return write


def read(path, slots, fold=1):
    config = kinds.load(path)
    task = tasks.build(config)
    listed = sources.list_cases(config.data, tasks.wanted(config))[:4]
    cases = cache.prepare(listed, config.data, tasks.wanted(config))
    return config, task, [loader.read_batch(config, task, cases, fold, part) for part in slots]


def test_both_views_are_of_the_slot_under_masks_and_augmentations_of_their_own(write):
    _, task, (whole, *parts) = read(write(augment={"preset": "basic"}), [[0, 1, 2], [0], [1, 2]])
    assert whole["image"].shape[0] == whole["mask"].shape[0] == 6 and whole["cubes"].shape[:2] == (3, 2)
    assert not torch.equal(whole["cubes"][:, 0], whole["cubes"][:, 1])
    assert not torch.equal(whole["image"][:3], whole["image"][3:])
    for name in ("image", "mask", "cubes", "offsets"):
        views = [batch[name].unflatten(0, (2, -1)) if name in ("image", "mask") else batch[name] for batch in parts]
        joined = torch.cat(views, 1).flatten(0, 1) if name in ("image", "mask") else torch.cat(views)
        assert torch.equal(whole[name], joined)
    _, plain, (batch,) = read(write(), [[0, 1]])
    assert torch.equal(batch["image"][:2], batch["image"][2:])
    prepared = plain.prepare(batch)
    assert not torch.equal(prepared["image"][:2], prepared["image"][2:])
    assert torch.equal(prepared["original"], batch["image"])


def test_a_step_is_the_same_in_parts(write):
    """Loss, gradients and averages of four scans do not depend on how many go through the network at once."""
    found = []
    for slots in ([[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]]):
        config, task, batches = read(write(), slots)
        torch.manual_seed(1)
        network = task.wrap(nets.build("unet_b_lw_dec", CHANNELS, CHANNELS, mode="segmentation", width=2)).train()
        network.remember(torch.randn(2, 4, network.mean.numel(), generator=torch.Generator().manual_seed(3)), 1)
        step = train_step(
            network,
            task,
            [task.prepare(batch) for batch in batches],
            torch.optim.SGD(network.parameters(), lr=0.0),
            torch.amp.GradScaler("cpu", enabled=False),
            torch.autocast("cpu", enabled=False),
            None,
        )
        task.after_step(network, 2, 10)
        watched = task.watch()
        weight = config.task.global_weight
        wanted = watched["reconstruction"] + weight * (
            watched["invariance"] + watched["variance"] + watched["covariance"] / 25
        )
        assert step.read() == pytest.approx(wanted, rel=1e-5) and watched["covariance"] > 0
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        found.append({**gradients, **dict(network.named_buffers())})
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5, msg=name)
    assert found[0]["projection.weight"].abs().max() > 0


def test_the_global_term_reaches_the_encoder(write):
    config, task, (batch,) = read(write(), [[0, 1]])
    network = task.wrap(nets.build("unet_b_lw_dec", CHANNELS, CHANNELS, mode="segmentation", width=2)).train()
    prepared = task.prepare(batch)
    outputs = network(prepared["image"])
    error = losses.masked_mse(outputs[0], prepared["original"], prepared["scored"]).mean()
    rest = task.loss(outputs, prepared).mean() - error
    gradient = torch.autograd.grad(rest, network.network.encoder.in_conv.conv1.conv.weight)[0]
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    "sections, said",
    [
        ({"train": {"batch_size": 1}}, "train.batch_size: got 1, wanted at least 2 for task.global_weight=0.5"),
        ({"task": {"global_weight": -1}}, "task.global_weight: got -1"),
        (
            {"model": {"name": "suprem_unet3d"}, "eval": {"windows": 1}},
            "task.global_weight: got 0.5, wanted 0 for model.name=suprem_unet3d",
        ),
    ],
)
def test_what_cannot_work_is_refused(write, sections, said):
    with pytest.raises(config_module.UserError, match=said):
        kinds.load(write(**sections))


def test_it_is_unread_elsewhere(tiny_config):
    kinds.load(tiny_config("mae", task={"type": "mae"}, train={"batch_size": 1}, model={"name": "unet_b_lw_dec"}))


# -------------------------------------------------------------------------------------------- runs


def finished(done):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_on_one_rank_and_on_two_and_continued(write, tmp_path):
    path = write()
    one = finished(run_command("train.py", path, f"output={tmp_path}/one", "train.save_every_s=0"))
    two = finished(
        run_command("train.py", path, f"output={tmp_path}/two", "train.workers=1", "train.micro_batch=1", ranks=2)
    )
    pattern = r" train .* loss=(\S+) .* reconstruction=(\S+) invariance=(\S+) variance=(\S+) covariance=(\S+)"
    values = [np.array([[float(v) for v in line] for line in re.findall(pattern, text)]) for text in (one, two)]
    assert values[0].shape == (6, 5)
    np.testing.assert_allclose(*values, rtol=2e-2, atol=1e-3)
    states = [torch.load(tmp_path / name / "run" / "fold_1" / "last.pt", weights_only=True) for name in ("one", "two")]
    for key in ("mean", "differences", "network.encoder.encoder_conv4.conv2.conv.weight"):
        torch.testing.assert_close(states[0]["model"][key], states[1]["model"][key], rtol=1e-2, atol=1e-2)

    # continued from a step before the last it ends the same
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    again = tmp_path / "again" / "run" / "fold_1"
    (again / "last.previous.pt").replace(again / "last.pt")
    (again / "results.csv").unlink()
    continued = finished(run_command("train.py", path, f"output={tmp_path}/again", "train.save_every_s=0"))
    assert re.search(r" resume fold=1 epoch=2 step=5\b", continued)
    state = torch.load(again / "last.pt", weights_only=True)
    assert all(torch.equal(value, states[0]["model"][key]) for key, value in state["model"].items())

    # its encoder starts a regression, and a further pretraining
    best = tmp_path / "one" / "run" / "fold_1" / "best.pt"
    network = nets.build("unet_b", CHANNELS, 1, mode="regression", width=2, head="multistage")
    report = checkpoint.load_weights(network, best)
    assert len(report.loaded) == 40 and report.part == "network." and report.family == "fomo"
    trained = checkpoint.load(best)["model"]
    assert torch.equal(network.encoder.in_conv.conv1.conv.weight, trained["network.encoder.in_conv.conv1.conv.weight"])
    plain = nets.build("unet_b_lw_dec", CHANNELS, CHANNELS, mode="segmentation", width=2)
    assert set(checkpoint.downstream(trained)) == {name for name in plain.state_dict() if "ds_out" not in name}
    further = finished(run_command("train.py", path, f"output={tmp_path}/further", f"weights.path={best}"))
    assert re.search(r" weights fold=1 loaded=\d+ new=0 .* part=network\. ", further)
