"""Who draws: one numpy generator for a whole batch, or one per sample."""

import numpy as np


def per_sample(generator, samples):
    """A list of one generator per sample; with one of its own, a sample does not depend on the others of its batch."""
    if isinstance(generator, np.random.Generator):
        return [generator] * samples
    generators = list(generator)
    if len(generators) != samples:
        raise ValueError(f"generator: got {len(generators)}, wanted one, or one for each of {samples} samples")
    return generators
