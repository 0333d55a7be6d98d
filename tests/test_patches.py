"""Boxes: where they lie and what is read."""

import numpy as np
import pytest
import torch

from fomo.space import patches


def test_windows_touch_both_borders_and_cover_everything():
    starts = patches.window_starts((50, 16, 20), (16, 16, 32), 0.5)
    assert starts[:, 0].min() == 0 and starts[:, 0].max() == 34
    assert set(starts[:, 1]) == {0} and set(starts[:, 2]) == {-6}
    xs = np.unique(starts[:, 0])
    assert np.diff(xs).max() <= 8
    covered = np.zeros(50, bool)
    for x in xs:
        covered[x : x + 16] = True
    assert covered.all()


def test_reading_pads_with_the_background_of_each_channel():
    volume = np.arange(2 * 3 * 3 * 3, dtype=np.float32).reshape(2, 3, 3, 3)
    patch = patches.read(volume, (-1, 0, 1), (5, 3, 4), (-7.0, -8.0))
    assert patch.shape == (2, 5, 3, 4)
    assert np.array_equal(patch[:, 1:4, :, :2], volume[:, :, :, 1:])
    assert (patch[0, 0] == -7).all() and (patch[1, 4] == -8).all() and (patch[1, :, :, 2:] == -8).all()
    inside = patches.read(volume, (0, 1, 0), (2, 2, 2), 0)
    inside[:] = -1
    assert volume.min() == 0, "a patch is a copy"


@pytest.mark.parametrize("start", [(-1, 0, 1), (0, 1, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_tensors_are_read_like_arrays_and_converted(dtype, start):
    volume = np.random.default_rng(0).uniform(0, 200, (2, 6, 5, 4)).astype(dtype)
    expected = patches.read(volume, start, (4, 3, 3), (1.1, 7.0))
    found = patches.read(torch.from_numpy(volume), start, (4, 3, 3), (1.1, 7.0))
    assert found.numpy().dtype == dtype and np.array_equal(found, expected)
    found = patches.read(torch.from_numpy(volume), start, (4, 3, 3), (1.1, 7.0), torch.float32)
    assert found.dtype == torch.float32 and found.is_contiguous() and np.array_equal(found, expected.astype(np.float32))
    found.zero_()
    assert volume.max() > 0, "a patch is a copy"


def test_only_the_box_is_read(tmp_path):
    class Watched(np.ndarray):
        asked = None

        def __getitem__(self, index):
            Watched.asked = index
            return super().__getitem__(index)

    volume = np.zeros((1, 40, 40, 40), np.float32).view(Watched)
    patches.read(volume, (3, 5, 30), (16, 16, 16), 0.0)
    assert Watched.asked == (Ellipsis, slice(3, 19), slice(5, 21), slice(30, 40))


@pytest.mark.parametrize("seed", range(20))
def test_the_chosen_voxel_lies_well_inside_and_not_always_in_the_middle(seed):
    generator = np.random.default_rng(seed)
    places = []
    for _ in range(200):
        start = patches.draw_start((64, 64, 20), (32, 32, 32), generator, "random", voxel=(40, 63, 3))
        places.append((40 - start[0], 63 - start[1]))
        assert start[2] == -6  # centred: the axis is shorter than the patch
        assert 0 <= start[0] <= 32 and 0 <= start[1] <= 32
    offsets = np.array(places)
    assert offsets[:, 0].min() >= 8 and offsets[:, 0].max() <= 23, "a quarter of the patch away from its sides"
    assert np.unique(offsets[:, 0]).size > 10
    assert (offsets[:, 1] == 31).all(), "at the border the patch stays inside the volume"


def test_random_patches_reach_all_places_and_centred_ones_do_not_move():
    generator = np.random.default_rng(0)
    starts = {patches.draw_start((35, 32, 32), (32, 32, 32), generator)[0] for _ in range(100)}
    assert starts == {0, 1, 2, 3}
    assert patches.draw_start((36, 30, 33), (32, 32, 32), generator, "center") == (2, -1, 0)


@pytest.mark.parametrize("start", [(0, 0, 0), (-2, 1, 3), (-3, -1, 6), (4, 4, 4)])
def test_what_lies_in_the_volume_is_what_is_read_from_it(start):
    wanted = (
        patches.read(np.ones((6, 5, 7), np.uint8), start, (4, 4, 4), 0) if max(start) < 9 and min(start) > -9 else 0
    )
    assert np.array_equal(patches.inside((6, 5, 7), start, (4, 4, 4)), np.broadcast_to(wanted, (4, 4, 4)))
