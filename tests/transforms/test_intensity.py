"""fomo.transforms.intensity and its matrices: each transform does what its name and its units say."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from fomo.transforms import axes, build
from fomo.transforms.intensity import histogram, linear
from fomo.transforms.registry import TRANSFORMS

SHAPE = (24, 20, 28)


def image_of(shape=SHAPE, channels=1, seed=0):
    noise = np.random.default_rng(seed).standard_normal((channels, *shape))
    smooth = np.stack([scipy.ndimage.gaussian_filter(one, 1.5) for one in noise])
    return torch.from_numpy(smooth * 40 + 100).float()[None]


def run(name, image, seed=0, **keys):
    augment = build("none", tuple(image.shape[2:]), {name: {"p": 1.0, **keys}})
    return augment({"image": image}, np.random.default_rng(seed))["image"]


def always(value):
    return (value, value)


def test_noise_has_the_stated_deviation():
    image = image_of((48, 48, 48))
    change = run("noise", image, sigma=always(0.25)) - image
    assert float(change.std()) == pytest.approx(0.25 * float(image.std()), rel=0.01)
    assert float(change.mean()) == pytest.approx(0, abs=0.005 * float(image.std()))


def test_multiplicative_noise_is_a_share_of_the_intensity_above_the_minimum():
    image = image_of((48, 48, 48))
    above = image - image.min()
    ratio = ((run("multiplicative_noise", image, sigma=always(0.1)) - image) / above)[above > 1]
    assert float(ratio.std()) == pytest.approx(0.1, rel=0.01)


def test_rician_noise_has_the_moments_of_the_distribution():
    # No signal: Rayleigh, mean sigma·sqrt(pi/2). Signal much larger than sigma: Gaussian of deviation sigma.
    image = torch.zeros(1, 1, 48, 48, 48)
    image[..., 24:] = 10.0
    sigma = 0.2 * float(image.std(unbiased=False))
    noisy = run("rician_noise", image, sigma=always(0.2))
    assert float(noisy[..., :24].mean()) == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert float(noisy[..., 24:].std()) == pytest.approx(sigma, rel=0.02)
    assert float(noisy.min()) >= 0


def test_noise_of_channels_and_samples_differs():
    image = image_of().repeat(2, 2, 1, 1, 1)
    augment = build("none", SHAPE, {"noise": {"p": 1.0}})
    change = augment({"image": image}, np.random.default_rng(0))["image"] - image
    flat = change.reshape(4, -1)
    assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.05


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.5])
def test_blur_is_scipys_away_from_the_border(sigma):
    image = image_of()
    expected = scipy.ndimage.gaussian_filter(image[0, 0].double().numpy(), sigma, truncate=6)
    inner = (slice(9, -9),) * 3 if sigma > 2 else (slice(6, -6),) * 3
    blurred = run("blur", image, sigma=always(sigma), channel_p=1.0)[0, 0].numpy()
    assert np.abs(blurred - expected)[inner].max() < 1e-3 * float(image.std()) * 5


def test_blur_treats_channels_by_their_own_probability_and_sigma():
    image = image_of(channels=1).repeat(1, 8, 1, 1, 1)
    blurred = run("blur", image, sigma=(0.5, 2.0), channel_p=0.5)[0]
    changed = [not torch.equal(one, image[0, 0]) for one in blurred]
    assert 0 < sum(changed) < 8
    spreads = {round(float(one.std()), 4) for one, hit in zip(blurred, changed) if hit}
    assert len(spreads) == sum(changed)


def test_gamma_keeps_range_order_and_optionally_moments():
    image = image_of()
    plain = run("gamma", image, gamma=always(2.0), invert_p=0.0, retain=False)
    unit = (image - image.min()) / (image.max() - image.min())
    assert torch.allclose(plain, unit**2 * (image.max() - image.min()) + image.min(), atol=1e-3)
    inverted = run("gamma", image, gamma=always(2.0), invert_p=1.0, retain=False)
    assert torch.allclose(inverted, (1 - (1 - unit) ** 2) * (image.max() - image.min()) + image.min(), atol=1e-3)
    retained = run("gamma", image, gamma=always(2.0), retain=True)
    assert float(retained.mean()) == pytest.approx(float(image.mean()), rel=1e-4)
    assert float(retained.std()) == pytest.approx(float(image.std()), rel=1e-3)
    assert torch.equal(retained.flatten().argsort()[::997], image.flatten().argsort()[::997])


def test_gamma_is_as_often_below_1_as_above():
    keys = dict(gamma=(0.5, 2.0), invert_p=0.0, retain=True)
    rng = np.random.default_rng(0)
    drawn = [TRANSFORMS["gamma"].draw(rng, keys, None, lambda p: False)["gamma"] for _ in range(2000)]
    assert np.mean(np.array(drawn) < 1) == pytest.approx(0.5, abs=0.03)
    assert 0.5 <= min(drawn) < 0.51 and 1.98 < max(drawn) <= 2.0


def test_contrast_and_brightness_units():
    image = image_of()
    stretched = run("contrast", image, factor=always(1.5))
    assert float(stretched.mean()) == pytest.approx(float(image.mean()), rel=1e-5)
    assert float(stretched.std()) == pytest.approx(1.5 * float(image.std()), rel=1e-5)
    shifted = run("brightness", image, shift=always(-0.5))
    assert torch.allclose(shifted, image - 0.5 * image.std(), atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_histogram_shift_is_increasing_and_keeps_the_range(seed):
    image = image_of()
    shifted = run("histogram", image, seed, shift=always(0.49))
    order = image.flatten().argsort()
    assert (shifted.flatten()[order].diff() > -1e-3).all()
    assert float(shifted.min()) == pytest.approx(float(image.min()), abs=1e-3)
    assert float(shifted.max()) == pytest.approx(float(image.max()), abs=1e-2)
    assert (shifted - image).abs().max() > 1


def test_histogram_map_by_hand():
    channel = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    histogram.histogram_(channel, np.array([0, 0.5, 1]), np.array([0, 0.8, 1]))
    assert channel.tolist() == pytest.approx([0, 0.4, 0.8, 0.9, 1.0], abs=1e-6)


@pytest.mark.parametrize("strength", [0.1, 0.5])
def test_bias_field_is_smooth_positive_and_as_strong_as_stated(strength):
    image = torch.ones(1, 1, *SHAPE)
    image[0, 0, 0, 0, 0] = 0  # the field multiplies what is above the minimum
    field = run("bias_field", image, strength=always(strength))[0, 0]
    field = field[1:, 1:, 1:]
    gain = max(float(field.max()), 1 / float(field.min()))
    assert 1 + 0.4 * strength < gain <= 1 + strength + 1e-4
    assert all(float(field.log().diff(dim=axis).abs().max()) < strength * 0.3 for axis in range(3))


@pytest.mark.parametrize("copies", [2, 3, 5])
def test_ghosts_are_shifted_copies(copies):
    image = torch.zeros(1, 1, 30, 1, 1)
    image[0, 0, 4] = 1
    ghosts = run("ghosting", image, copies=always(copies), strength=always(0.3))[0, 0, :, 0, 0]
    expected = torch.zeros(30)
    expected[[(4 + 30 * copy // copies) % 30 for copy in range(copies)]] = 0.3 / copies
    expected[4] += 0.7
    assert torch.allclose(ghosts, expected, atol=1e-6)


def test_ghosts_lie_along_one_axis_that_varies():
    image = torch.zeros(1, 1, 12, 12, 12)
    image[0, 0, 3, 3, 3] = 1
    seen = set()
    for seed in range(20):
        ghosts = run("ghosting", image, seed, copies=always(3))[0, 0]
        varying = [axis for axis in range(3) if len(torch.nonzero(ghosts > 1e-6)[:, axis].unique()) > 1]
        assert len(varying) == 1
        seen.update(varying)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("size", [32, 33])
def test_gibbs_cuts_frequencies_above_the_fraction_and_rings(size):
    # Half of the highest frequency: a wave below it stays as it is, one above it vanishes, an edge overshoots by 9%.
    position = np.arange(size)
    matrix = linear.gibbs(size, 0, cutoff=0.5)
    low, high = (np.cos(2 * np.pi * cycles * position / size) for cycles in (size // 8, size // 3))
    assert np.abs(matrix @ low - low).max() < 1e-9 and np.abs(matrix @ high).max() < 1e-9
    edge = (position >= size // 2).astype(float)
    assert 0.05 < (matrix @ edge).max() - 1 < 0.15
    image = torch.from_numpy(edge).float().view(1, 1, size, 1, 1)
    assert torch.allclose(
        run("gibbs", image, cutoff=always(0.5)).flatten(), torch.from_numpy(matrix @ edge).float(), atol=1e-5
    )


def test_gibbs_is_the_fft_low_pass_of_a_volume():
    image = image_of((16, 16, 15))
    spectrum = np.fft.fftn(image[0, 0].numpy())
    for axis, size in enumerate((16, 16, 15)):
        keep = np.abs(np.fft.fftfreq(size)) <= 0.6 / 2
        spectrum *= keep.reshape([-1 if a == axis else 1 for a in range(3)])
    assert np.abs(run("gibbs", image, cutoff=always(0.6))[0, 0].numpy() - np.fft.ifftn(spectrum).real).max() < 1e-2


def test_low_resolution_by_hand():
    # Four voxels become two averages; on the way back the values lie on the line between them.
    matrix = linear.low_resolution(4, 0, zoom=[0.5])
    down = np.array([[3, 3, 1, 0], [0, 1, 3, 3]]) / 7  # triangle of width 2 about each pair, cut at the border
    up = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    assert matrix == pytest.approx(up @ down)
    assert np.array_equal(linear.low_resolution(7, 0, zoom=[1.0]), np.eye(7))


def test_low_resolution_of_one_axis_leaves_the_others_alone():
    image = torch.randn(1, 1, 16, 16, 16)
    blurred = run("low_resolution", image, zoom=always(0.5), single_axis_p=1.0)
    rough = [float((blurred.diff(dim=axis).std() / image.diff(dim=axis).std())) for axis in (2, 3, 4)]
    assert sorted(rough)[0] < 0.5 * sorted(rough)[1]


@pytest.mark.parametrize(
    "matrix",
    [
        linear.blur(9, 0, 1.3),
        linear.low_resolution(9, 0, [0.4]),
        linear.gibbs(9, 0, 0.5),
        linear.ghosting(9, 0, 0, 4, 0.3),
    ],
)
def test_matrices_of_images_keep_constants(matrix):
    assert matrix.sum(1) == pytest.approx(np.ones(9), abs=1e-9)


def test_identity_parameters_change_nothing():
    neutral = {
        "blur": dict(sigma=always(0.0), channel_p=1.0),
        "low_resolution": dict(zoom=always(1.0)),
        "gibbs": dict(cutoff=always(1.0)),
        "ghosting": dict(strength=always(0.0)),
        "noise": dict(sigma=always(0.0)),
        "multiplicative_noise": dict(sigma=always(0.0)),
        "contrast": dict(factor=always(1.0)),
        "brightness": dict(shift=always(0.0)),
        "bias_field": dict(strength=always(0.0)),
        "gamma": dict(gamma=always(1.0)),
        "histogram": dict(shift=always(0.0)),
    }
    image = image_of()
    for name, keys in neutral.items():
        assert torch.allclose(run(name, image, **keys), image, rtol=1e-5, atol=1e-4), name


def test_channel_dropout_zeroes_some_channels_but_never_all():
    image = image_of(channels=3)
    for seed in range(20):
        result = run("channel_dropout", image, seed, channel_p=1.0)[0]
        assert [bool(one.any()) for one in result].count(True) == 1
    alone = image_of(channels=1)
    assert torch.equal(run("channel_dropout", alone, channel_p=1.0), alone)


def test_a_dropped_channel_holds_what_the_kept_ones_have_outside():
    image, outside = image_of(channels=3), (-0.25, -0.5, -1.0)
    augment = build("none", SHAPE, {"channel_dropout": {"p": 1.0, "channel_p": 0.5}})
    counts = set()
    for seed in range(20):
        result = augment({"image": image, "outside": [outside]}, np.random.default_rng(seed))["image"][0]
        kept = [c for c in range(3) if torch.equal(result[c], image[0, c])]
        counts.add(len(kept))
        value = np.float32(np.mean([outside[c] for c in kept]))
        assert all(bool((result[c] == float(value)).all()) for c in range(3) if c not in kept)
    assert counts == {1, 2, 3}


def test_a_missing_channel_stays_as_it_is_and_the_last_one_of_the_others_is_never_dropped():
    image = image_of(channels=3)
    image[:, 1] = -0.75
    everything = {name: {"p": 1.0} for name in TRANSFORMS if name != "resample"}
    everything["channel_dropout"]["channel_p"] = 1.0
    for border in ("min", "zero", "edge"):
        augment = build("none", SHAPE, {**everything, "resample": {"border": border, "image": "cubic"}})
        for seed in range(5):
            batch = {"image": image, "outside": [(-0.5, None, -1.0)]}
            result = augment(batch, np.random.default_rng(seed))["image"][0]
            kept = [c for c in (0, 2) if result[c].min() < result[c].max()]
            assert len(kept) == 1 and bool((result[1] == result[2 - kept[0]].flatten()[0]).all())
            assert float(result[1, 0, 0, 0]) == (-0.5, None, -1.0)[kept[0]]
    augment = build("none", SHAPE, {"rotate": {"p": 1.0, "axis_p": 1.0}, "resample": {"border": "zero"}})
    batch = {"image": image, "outside": [(-0.5, None, -1.0)]}
    result = augment(batch, np.random.default_rng(0))["image"][0]
    assert bool((result[1] == -0.75).all()) and not torch.equal(result[0], image[0, 0])


def test_apply_matrices_is_einsum_and_takes_none_for_the_identity():
    volume = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    x, y, z = (torch.randn(n + 1, n, dtype=torch.float64) for n in (3, 4, 5))
    assert torch.allclose(axes.apply_matrices(volume, (x, y, z)), torch.einsum("cijk,li,mj,nk->clmn", volume, x, y, z))
    assert torch.allclose(axes.apply_matrices(volume, (None, y, None)), torch.einsum("cijk,mj->cimk", volume, y))


def test_spline_reproduces_straight_lines_and_sums_to_one():
    positions, matrix = axes.spline_basis(17, 7)
    assert matrix.sum(1) == pytest.approx(np.ones(17)) and matrix @ positions == pytest.approx(np.arange(17.0))


def test_contrast_and_brightness_of_slices_are_those_of_volumes():
    """Slices take a shorter way; a volume of two equal slices takes the usual one."""
    image = image_of((24, 20, 1), channels=2)
    keys = {"contrast": {"p": 1.0}, "brightness": {"p": 1.0}}
    short = build("none", (24, 20, 1), keys)({"image": image}, np.random.default_rng(0))["image"]
    double = image.repeat(1, 1, 1, 1, 2)
    usual = build("none", (24, 20, 2), keys)({"image": double}, np.random.default_rng(0))["image"]
    torch.testing.assert_close(short, usual[..., :1], rtol=0, atol=1e-3)
    assert (short - image).abs().max() > 1


@pytest.mark.parametrize("name", ["contrast", "brightness"])
def test_a_shared_draw_treats_channels_alike(name):
    image = image_of((24, 20, 1)).repeat(1, 3, 1, 1, 1)
    alike = run(name, image, shared=True)
    assert torch.equal(alike[:, 0], alike[:, 1]) and torch.equal(alike[:, 0], alike[:, 2])
    assert not torch.equal(run(name, image)[:, 0], run(name, image)[:, 1])


@pytest.mark.parametrize("name, keys", [
    ("blur", {"sigma": always(0.9)}), ("low_resolution", {"zoom": always(0.5), "single_axis_p": 0.0}),
    ("gibbs", {"cutoff": always(0.5)}),
])  # fmt: skip
def test_a_slice_is_filtered_in_its_plane_as_in_a_volume_of_equal_slices(name, keys):
    """Along an axis of one voxel every filter is the identity, as it is along one on which nothing changes."""
    image = image_of((24, 20, 1))
    changed = run(name, image, channel_p=1.0, **keys)
    volume = run(name, image.repeat(1, 1, 1, 1, 6), channel_p=1.0, **keys)
    torch.testing.assert_close(volume[..., 2:3], changed, rtol=0, atol=2e-2)
    assert (changed - image).abs().max() > 0.5
