"""Heads of the 3D networks: what they read, late fusion, how they take over a linear fit, and how they are averaged."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from fomo import nets, ridge
from fomo.nets import image_head

torch.set_num_threads(1)
NAMES = ["unet_b", "resenc_unet_s"]


def build(name, channels=2, head="multistage", **options):
    torch.manual_seed(0)
    return nets.build(name, channels, 3, mode="classification", width=2, head=head, **options).eval()


def volumes(name, channels=2, samples=2):
    size = 2 * nets.NETWORKS[name].stride
    return torch.randn(samples, channels, size, size, size // 2, generator=torch.Generator().manual_seed(1)) + 0.5


def test_moments_and_means_are_those_of_each_channel():
    x = torch.randn(2, 3, 4, 5, 6) * 3 + 1
    mean, deviation = image_head.moments(x)
    torch.testing.assert_close(mean, x.mean((2, 3, 4)))
    torch.testing.assert_close(deviation.exp(), x.std((2, 3, 4), correction=0), rtol=1e-4, atol=1e-4)
    mean, power = image_head.means(x)
    torch.testing.assert_close(mean, x.mean((2, 3, 4)))
    torch.testing.assert_close(power, x.clamp(min=0).pow(3).mean((2, 3, 4)).pow(1 / 3))
    flat = image_head.moments(torch.full((1, 1, 4, 4, 4), 7.0, requires_grad=True))
    assert torch.isfinite(flat).all(), "a window of background has moments, too"


def test_intensities_are_those_of_the_darkest_and_brightest_parts_of_the_head():
    """A dark ball in one channel, in a head with air and other noise around it, against sorting by hand."""
    rng = np.random.default_rng(0)
    distance = np.linalg.norm(np.indices((24, 20, 16)) - np.array([12, 10, 8]).reshape(3, 1, 1, 1), axis=0)
    cubes = rng.uniform(3, 5, (2, 2, 24, 20, 16)) * (distance < 7)
    cubes[1, 0][distance < 2] = 1.5
    x = torch.from_numpy(cubes).float().repeat_interleave(2, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)
    inside = distance[:, :, :] < 7
    inside = ndimage.binary_erosion(inside, np.ones((3, 3, 3)), border_value=1)
    found = image_head.intensities(x + 10)  # a shift, as z-scores have one
    for sample, channel in np.ndindex(2, 2):
        values = np.sort(cubes[sample, channel][inside]) + 10
        wanted = [values.mean(), np.log(values.std())]
        for share in (0.001, 0.005, 0.02, 0.1):
            size = max(share * len(values), 1)
            whole, part = int(size), size % 1
            for ordered in (values, values[::-1]):
                wanted.append((ordered[:whole].sum() + part * ordered[whole]) / size)
        np.testing.assert_allclose(found[:, sample, channel], wanted, rtol=1e-4)
    empty = torch.full((1, 2, 8, 8, 8), -0.7)
    assert torch.isfinite(image_head.intensities(empty)).all(), "a window of air has intensities, too"


@pytest.mark.parametrize("name", NAMES)
def test_statistics_see_what_the_norms_take_away(name):
    network, x = build(name), volumes(name)
    with torch.no_grad():
        linear, brighter = build(name, head="linear"), 3 * x
        torch.testing.assert_close(linear.features(brighter), linear.features(x), rtol=2e-2, atol=2e-2)
        change = network.statistics(brighter) - network.statistics(x)
    depths, groups = np.array(network.decoder.depths), np.array(network.decoder.groups)
    assert change.shape[1] == len(depths) == len(groups) and sorted(set(groups)) == list(range(max(groups) + 1))
    deep = (depths == 1) & (np.array(network.decoder.kinds) == "deviation before norm")
    log_deviation = torch.cat([change[:, groups == 1], change[:, deep][:, :2]], dim=1)
    torch.testing.assert_close(log_deviation, torch.full_like(log_deviation, np.log(3)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("head", ["linear", "mlp", "multistage"])
def test_late_fusion_sees_the_channels_one_by_one(name, head):
    late, alone, x = build(name, head=head, fusion="late"), build(name, channels=1, head=head), volumes(name)
    state = {key: value for key, value in late.state_dict().items() if key.startswith("encoder.")}
    alone.load_state_dict(state, strict=False)
    assert late.state_dict()[late.stem].shape[1] == 1
    with torch.no_grad():
        found = late(x)
        assert found.shape == (2, 3)
        if head == "multistage":
            deep = [np.array(network.decoder.depths) > 0 for network in (late, alone)]
            each = [alone.statistics(x[:, [channel]])[:, deep[1]] for channel in (0, 1)]
            torch.testing.assert_close(late.statistics(x)[:, deep[0]], torch.cat(each, dim=1), rtol=1e-4, atol=1e-4)
        elif head == "linear":
            each = [alone.features(x[:, [channel]]) for channel in (0, 1)]
            torch.testing.assert_close(late.features(x), torch.cat(each, dim=1), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="wanted .B, 2, X, Y, Z"):
        late(x[:, :1])


@pytest.mark.parametrize("name", NAMES)
def test_an_adopted_fit_answers_as_it_did_and_computing_again_changes_nothing(name):
    network, x = build(name), volumes(name, samples=6)
    with torch.no_grad():
        statistics = network.statistics(x).double().numpy()
    targets = np.random.default_rng(0).normal(size=(6, 3))
    fit = ridge.fit(statistics, targets, network.decoder.groups, network.decoder.depths)
    network.decoder.adopt(fit.scaling, fit.weight, fit.bias)
    torch.testing.assert_close(network(x).double(), torch.from_numpy(fit(statistics)), rtol=1e-3, atol=1e-3)
    gradients = []
    for again in (False, True):
        network.checkpoint_activations(again)
        network.zero_grad()
        network(x).square().sum().backward()
        gradients.append(network.get_parameter(network.stem).grad.clone())
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_heads_are_scaled_alike_before_their_mean_is_taken():
    x, models = volumes("unet_b"), []
    network = build("unet_b")
    with torch.no_grad():
        statistics = network.statistics(x)
        for seed in (0, 1):
            rng = np.random.default_rng(seed)
            scaling = ridge.Scaling(
                statistics.mean(0).numpy() + rng.normal(size=392) * 0.1,
                rng.uniform(1, 3, 392),
                rng.uniform(0.03, 0.07, 392),
            )
            network.decoder.adopt(scaling, rng.normal(size=(3, 392)), rng.normal(size=3))
            models.append({name: value.clone() for name, value in network.state_dict().items()})
        before, after = [], []
        for model, scaled in zip(models, image_head.scaled_alike(models, "decoder.fc")):
            for values, found in ((model, before), (scaled, after)):
                network.load_state_dict(values)
                found.append(network(x))
        torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)
        mean = {name: torch.stack([model[name] for model in models]).mean(0) for name in models[0]}
        network.load_state_dict(mean)
        assert (network(x) - sum(before) / 2).abs().max() > 0.02, "the plain mean would say something else"


def test_what_has_no_such_head_refuses_it():
    for option in ({"head": "mlp"}, {"fusion": "late"}, {"dropout": 0.5}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: got"):
            nets.build("unet_b", 2, 2, width=2, **option)
    with pytest.raises(ValueError, match="head: got 'deep', wanted one of linear, mlp, multistage"):
        build("unet_b", head="deep")
