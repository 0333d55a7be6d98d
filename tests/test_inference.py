"""Sliding windows reproduce a voxel-wise network exactly, whatever the shape, and count every voxel."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from fomo import inference, nets


@pytest.mark.parametrize("shape", [(40, 33, 50), (20, 40, 16), (9, 10, 11)])
@pytest.mark.parametrize("windows", [1, 3])
def test_a_voxelwise_network_is_reproduced(shape, windows):
    volume = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)

    def network(batch):
        return torch.cat([batch.sum(1, keepdim=True), batch[:, :1] * 2, batch[:, 1:] ** 2], 1)

    blended = inference.sliding_window(network, volume, (16, 32, 16), overlap=0.5, windows=windows)
    assert blended.shape == (3, *shape)
    torch.testing.assert_close(blended, network(torch.from_numpy(volume)[None])[0], atol=1e-5, rtol=1e-5)


def test_the_windows_middle_counts_more_than_its_border():
    """A network that answers its window's index: the blend at a window's centre is nearer to its own answer."""
    calls = []

    def network(batch):
        calls.append(len(calls))
        return torch.full((1, 1, *batch.shape[2:]), float(calls[-1]))

    blended = inference.sliding_window(network, np.zeros((1, 24, 16, 16), np.float32), (16, 16, 16), overlap=0.5)[0]
    assert len(calls) == 2
    assert blended[0, 8, 8] == 0 and blended[23, 8, 8] == 1
    assert blended[9, 8, 8] < 0.5 < blended[14, 8, 8]
    assert torch.all(blended.diff(dim=0) >= 0)


def test_weights_are_never_zero_and_highest_in_the_middle():
    weights = inference.window_weights((96, 16, 17))
    assert weights.shape == (96, 16, 17) and weights.min() == torch.tensor(1e-3)
    # half a voxel off the centre along x and y, on it along z, sigma = an eighth of the patch
    assert float(weights[48, 8, 8]) == pytest.approx(np.exp(-0.5 * (0.5 / 12) ** 2 - 0.5 * (0.5 / 2) ** 2), rel=1e-6)
    assert weights.max() == weights[48, 8, 8] == weights[47, 7, 8]
    assert (inference.window_weights((4, 5, 6), "constant") == 1).all()
    with pytest.raises(ValueError, match="wanted gaussian or constant"):
        inference.window_weights((4, 5, 6), "flat")


def test_the_blend_is_the_weighted_mean_by_hand():
    """Two windows of 4 over 6 voxels along x, answers 1 and 3; voxels 2 and 3 are covered by both."""
    answers = iter([1.0, 3.0])

    def network(batch):
        return torch.full((1, 1, *batch.shape[2:]), next(answers), dtype=torch.bfloat16)

    weights = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1).expand(4, 2, 2)
    blended = inference.sliding_window(network, torch.zeros(1, 6, 2, 2), (4, 2, 2), 0.5, weights=weights)
    expected = [1, 1, (3 * 1 + 1 * 3) / 4, (4 * 1 + 2 * 3) / 6, 3, 3]
    assert blended.dtype == torch.float32 and blended.shape == (1, 6, 2, 2)
    torch.testing.assert_close(blended[0, :, 1, 0], torch.tensor(expected))
    with pytest.raises(ValueError, match="wanted positive ones"):
        inference.sliding_window(network, torch.zeros(1, 6, 2, 2), (4, 2, 2), weights=torch.zeros(4, 2, 2))


def brute_force(network, volume, patch, overlap, weights):
    from fomo.space import patches

    total = torch.zeros(network(volume[None, :, : patch[0], : patch[1], : patch[2]]).shape[1], *volume.shape[1:])
    cover = torch.zeros(volume.shape[1:])
    for x, y, z in patches.window_starts(volume.shape[1:], patch, overlap):
        box = (slice(x, x + patch[0]), slice(y, y + patch[1]), slice(z, z + patch[2]))
        total[(slice(None), *box)] += network(volume[(None, slice(None), *box)])[0] * weights
        cover[box] += weights
    return total / cover


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
def test_a_network_that_sees_neighbours_is_blended_as_by_brute_force(overlap):
    torch.manual_seed(0)
    network = torch.nn.Conv3d(2, 3, 3, padding=1).requires_grad_(False)
    volume, patch = torch.randn(2, 37, 20, 16), (16, 8, 16)
    for weights in (inference.window_weights(patch), torch.rand(patch) + 0.1):
        blended = inference.sliding_window(network, volume, patch, overlap, weights=weights, windows=3)
        torch.testing.assert_close(blended, brute_force(network, volume, patch, overlap, weights), atol=1e-5, rtol=1e-5)


def test_monai_gives_the_same():
    monai = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network, volume = torch.nn.Conv3d(4, 2, 3, padding=1).requires_grad_(False), torch.randn(4, 48, 32, 64)
    for mode in ("gaussian", "constant"):
        theirs = monai.sliding_window_inference(volume[None], (32, 16, 32), 1, network, overlap=0.5, mode=mode)[0]
        ours = inference.sliding_window(network, volume, (32, 16, 32), 0.5, weights=mode)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("windows", [1, 2])
def test_half_precision_in_float32_out(windows):
    volume = torch.randn(1, 24, 16, 16).half()
    blended = inference.sliding_window(lambda batch: batch * 2, volume, (16, 16, 16), windows=windows)
    assert blended.dtype == torch.float32
    torch.testing.assert_close(blended, volume.float() * 2, atol=1e-6, rtol=1e-6)
    seen = []
    network = torch.nn.Conv3d(1, 1, 1)
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    inference.sliding_window(network, volume.numpy(), (16, 16, 16), windows=windows)
    assert set(seen) == {torch.float32}, "windows arrive in the type of the network's parameters"


def test_mirroring_averages_all_flips_back_in_place():
    """An identity comes back; a shift along x and its mirror image are averaged; whole-case outputs are not flipped."""
    volume = torch.randn(1, 1, 6, 5, 4)
    assert torch.equal(inference.Mirrored(torch.nn.Identity(), ())(volume), volume)
    torch.testing.assert_close(inference.Mirrored(torch.nn.Identity(), (0, 1, 2))(volume), volume)
    shifted = inference.Mirrored(lambda batch: batch.roll(1, dims=2), (0,))(volume)
    torch.testing.assert_close(shifted, (volume.roll(1, dims=2) + volume.roll(-1, dims=2)) / 2)
    calls = []

    def first_voxel(batch):
        calls.append(1)
        return batch[:, :, 0, 0, 0]

    corner = inference.Mirrored(first_voxel, (0, 2))(volume)
    assert len(calls) == 4 and corner.shape == (1, 1)
    expected = volume[0, 0, [0, 5, 0, 5], 0, [0, 0, 3, 3]].mean()
    torch.testing.assert_close(corner[0, 0], expected)


def test_outputs_that_do_not_fit_on_the_gpu_are_added_up_on_the_cpu(monkeypatch):
    """1400 bytes are free (1000, and 400 that torch holds unused), of which three quarters may be taken: 262 floats."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 600)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert (
        inference.windows._where_it_fits((2, 131), gpu) == gpu and inference.windows._where_it_fits((263,), gpu) == cpu
    )
    assert inference.windows._where_it_fits((10**12,), cpu) == cpu


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_array_goes_to_the_gpu_at_once_where_it_fits(monkeypatch):
    volume, cpu, other = np.ones((2, 4, 4, 4), np.float16), torch.device("cpu"), torch.device("meta")
    assert inference.windows._near(volume, None) is volume and inference.windows._near(volume, "cpu") is volume
    monkeypatch.setattr(
        inference.windows, "_where_it_fits", lambda shape, device: other if shape == volume.shape else cpu
    )
    near = inference.windows._near(volume, other)
    assert near.device == other and near.dtype == torch.float16 and near.shape == volume.shape
    assert inference.windows._near(volume[:1], other).base is volume, "it does not fit"


def test_peak_memory_stays_within_a_third_more_than_input_and_output(tmp_path):
    """Measured in a process of its own: a volume of four channels, two out, the windows' own memory included."""
    code = f"""
import re, sys
sys.path.insert(0, {str(ROOT)!r})
import torch
from fomo import inference, nets
torch.set_num_threads(1)
def network(batch):
    return batch[:, :2] * 2
inference.sliding_window(network, torch.zeros(4, 40, 40, 40), (32, 32, 32))  # code and small things
volume = torch.ones(4, 192, 192, 192)
def now(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
before = now("VmRSS")
result = inference.sliding_window(network, volume, (64, 64, 64))
peak = now("VmHWM") - before
assert abs(result.min() - 2) < 1e-5 and abs(result.max() - 2) < 1e-5
print(peak / (4 * (volume.numel() + result.numel())), volume.numel() / (volume.numel() + result.numel()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, volume_share = map(float, done.stdout.split())
    assert volume_share + grown <= 1.3


def test_outside_the_volume_lies_the_background():
    seen = []

    def network(batch):
        seen.append(batch.clone())
        return batch.mean(dim=(2, 3, 4))

    windows = inference.WindowOptions((32, 32, 16))
    outputs = windows.each(network, np.ones((2, 16, 40, 16), np.float32), background=(5.0, 6.0))
    assert outputs.shape == (2, 2)
    assert (seen[0][0, 0, :8] == 5).all() and (seen[0][0, 1, 24:] == 6).all() and (seen[0][:, :, 8:24] == 1).all()


def test_a_tensor_is_read_like_an_array():
    volume = torch.randn(1, 20, 20, 20)
    blended = inference.sliding_window(lambda batch: batch, volume, (16, 16, 16))
    torch.testing.assert_close(blended, volume, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32, 16), (70, 40, 5), (1, 1, 1)])
def test_a_volume_of_any_size_goes_through_a_network_that_halves_five_times(size):
    """It is padded with the background to a patch, whose bottleneck has two voxels."""
    torch.manual_seed(0)
    network, patch = nets.build("resenc_unet_s", 1, 2, width=1).eval(), (64, 32, 32)
    volume = torch.randn(1, *size)
    found = inference.sliding_window(network, volume, patch, background=-3.0)
    assert found.shape == (2, *size) and torch.isfinite(found).all()
    if all(length <= most for length, most in zip(size, patch)):
        padded = torch.full((1, 1, *patch), -3.0)
        begin = [-((length - most) // 2) for length, most in zip(size, patch)]
        inside = tuple(slice(first, first + length) for first, length in zip(begin, size))
        padded[(0, 0, *inside)] = volume[0]
        with torch.no_grad():
            torch.testing.assert_close(found, network(padded)[(0, slice(None), *inside)], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "shape, patch, windows, axis",
    [
        ((23, 17, 9), (8, 6, 4), 1, 0),
        ((23, 17, 9), (8, 20, 4), 5, 0),
        ((6, 9, 9), (8, 4, 4), 2, 1),
        ((9, 5, 30), (8, 4, 4), 1, 2),
        ((6, 5, 4), (8, 8, 8), 1, 0),
    ],
)
def test_planes_that_are_blended_as_windows_go_on_are_those_of_the_whole(shape, patch, windows, axis):
    image, weights = torch.randn(2, *shape), torch.randn(3, 2, 1, 1, 1)
    options = inference.WindowOptions(patch, windows=windows, device=torch.device("cpu"))

    def network(x):
        return torch.nn.functional.conv3d(x, weights)

    whole, found, next_plane = options.blend(network, image, (0.0, 1.0)), [], 0
    for place, planes in options.blend_planes(network, image, (0.0, 1.0), axis):
        assert place[1 + axis].start == next_plane and planes.shape[1 + axis] <= patch[axis]
        assert planes.shape == whole[place].shape
        found.append(planes.clone())
        next_plane += planes.shape[1 + axis]
    found = torch.cat(found, 1 + axis)
    if axis == 0:
        assert torch.equal(found, whole)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=1e-6)
