"""Addressed randomness: every draw has its own generator, seeded by what it is for and not by what came before.

The address is (seed, stream, numbers...): for a training sample its fold and global slot. The same draw results on any
rank, in any worker and after a resume, because nothing is carried from draw to draw.
"""

import zlib

import numpy as np

STREAMS = {  # a number is never given to another stream
    "initialise": 2,
    "order": 3,
    "crop": 4,
    "augment": 5,
    "task": 6,
    "case": 7,
    "dropout": 8,
    "mix": 9,
}


def generator(seed, stream, *address):
    """numpy Generator of one address; `stream` is a name in STREAMS, address whole numbers >= 0."""
    return np.random.default_rng(np.random.SeedSequence([seed, STREAMS[stream], *address]))


def of_case(seed, id):
    """numpy Generator of what is drawn for a case in evaluation: of its id alone, the same in all epochs and on all ranks."""
    return generator(seed, "case", zlib.crc32(id.encode()))


def integer(seed, stream, *address):
    """A 63-bit seed of one address, for torch.manual_seed."""
    return int(generator(seed, stream, *address).integers(2**63))
