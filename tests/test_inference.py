"""Sliding windows reproduce a voxel-wise network exactly, whatever the shape, and count every voxel."""

import numpy as np
import pytest
import torch

from fomo import inference


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


def test_weights_are_never_zero():
    weights = inference.window_weights((96, 16, 16))
    assert weights.shape == (96, 16, 16) and weights.max() == 1 and weights.min() >= 1e-3


def test_outside_the_volume_lies_the_background():
    seen = []

    def network(batch):
        seen.append(batch.clone())
        return batch.mean(dim=(2, 3, 4))

    outputs = inference.window_outputs(network, np.ones((2, 16, 40, 16), np.float32), (32, 32, 16), background=(5.0, 6.0))
    assert outputs.shape == (2, 2)
    assert (seen[0][0, 0, :8] == 5).all() and (seen[0][0, 1, 24:] == 6).all() and (seen[0][:, :, 8:24] == 1).all()


def test_a_tensor_is_read_like_an_array():
    volume = torch.randn(1, 20, 20, 20)
    blended = inference.sliding_window(lambda batch: batch, volume, (16, 16, 16))
    torch.testing.assert_close(blended, volume, atol=1e-5, rtol=1e-5)
