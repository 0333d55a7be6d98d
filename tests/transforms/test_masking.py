"""fomo.transforms.masking: cubes, in the exact number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo.transforms import masking


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 13)] * 3), st.integers(1, 5), st.floats(0, 1), st.integers(0, 99))
def test_exact_number_of_cubes_in_every_sample(patch, cube, ratio, seed):
    cubes, offsets = masking.draw_cubes(np.random.default_rng(seed), 3, patch, ratio, cube)
    total = int(np.prod([-(-(size + cube - 1) // cube) for size in patch]))
    assert offsets.shape == (3, 3) and 0 <= int(offsets.min()) and int(offsets.max()) < cube
    assert cubes.shape[1:].numel() == total
    assert cubes.flatten(1).sum(1).tolist() == [round(ratio * total)] * 3


def test_masked_voxels_are_whole_cubes_of_the_value_and_the_rest_stays():
    image = torch.rand(2, 3, 12, 8, 16) + 1
    before = image.clone()
    cubes, offsets = masking.draw_cubes(np.random.default_rng(0), 2, (12, 8, 16), 0.6, 4)
    masked, mask = masking.mask_image(image, cubes, offsets, 4)
    assert torch.equal(image, before) and mask.shape == (2, 1, 12, 8, 16) and mask.dtype == torch.bool
    assert torch.equal(masked == 0, mask.expand_as(image)) and torch.equal(
        masked[~mask.expand_as(image)], image[~mask.expand_as(image)]
    )
    assert offsets.any()
    for one, drawn, offset in zip(mask[:, 0], cubes, offsets.tolist()):
        for voxel in np.ndindex(12, 8, 16):
            place = tuple((v + o) // 4 for v, o in zip(voxel, offset))
            assert one[voxel] == drawn[place]


def test_the_grid_begins_at_every_offset():
    _, offsets = masking.draw_cubes(np.random.default_rng(0), 400, (8, 8, 8), 0.6, 4)
    counts = torch.stack([torch.bincount(column, minlength=4) for column in offsets.T])
    assert counts.shape == (3, 4) and int(counts.min()) > 60


def test_samples_differ_and_a_sample_does_not_depend_on_its_batch():
    rngs = [np.random.default_rng([7, slot]) for slot in range(3)]
    together = masking.draw_cubes(rngs, 3, (16, 16, 16), 0.5, 4)
    alone = masking.draw_cubes([np.random.default_rng([7, 2])], 1, (16, 16, 16), 0.5, 4)
    assert all(torch.equal(three[2], one[0]) for three, one in zip(together, alone))
    assert not torch.equal(together[0][0], together[0][1])


def test_slices_and_anisotropic_cubes():
    cubes, offsets = masking.draw_cubes(np.random.default_rng(0), 1, (16, 16, 1), 0.5, (4, 4, 1))
    _, mask = masking.mask_image(torch.ones(1, 1, 16, 16, 1), cubes, offsets, (4, 4, 1))
    assert cubes.shape == (1, 5, 5, 1) and offsets[0, 2] == 0 and 0.3 < float(mask.float().mean()) < 0.7


def test_errors():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="^ratio: "):
        masking.draw_cubes(rng, 1, (8, 8, 8), 1.1, 4)
    with pytest.raises(ValueError, match="^cube: "):
        masking.draw_cubes(rng, 1, (8, 8, 8), 0.5, 0)
    with pytest.raises(ValueError, match="^generator: "):
        masking.draw_cubes([rng], 2, (8, 8, 8), 0.5, 4)
    with pytest.raises(ValueError, match="^cubes, offsets: "):
        masking.mask_image(torch.ones(1, 1, 12, 8, 8), *masking.draw_cubes(rng, 1, (8, 8, 8), 0.5, 4), 4)
