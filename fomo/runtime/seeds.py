"""Addressed randomness: every draw has its own generator, whose seed says what the draw is for.

An address is (seed, stream, numbers ...); the numbers of a training sample are its fold and its global slot. No draw
depends on an earlier one, so that all ranks, all workers and a resumed run draw the same.
"""

import zlib

import numpy as np

# a number is never given to another stream
STREAMS = {
    "initialise": 2,
    "order": 3,
    "crop": 4,
    "augment": 5,
    "task": 6,
    "case": 7,
    "dropout": 8,
    "mix": 9,
    "stress": 10,
    "audit": 11,
    "head": 12,
}


def generator(seed, stream, *address):
    """The numpy Generator of an address; stream: a name in STREAMS; address: whole numbers >= 0."""
    return np.random.default_rng(np.random.SeedSequence([seed, STREAMS[stream], *address]))


def of_case(seed, id):
    """The numpy Generator for the evaluation of a case; all epochs and ranks draw the same, by its id alone."""
    return generator(seed, "case", zlib.crc32(id.encode()))


def of_change(seed, id, change):
    """The numpy Generator for a change of a case's images by this name; all its grades draw the same."""
    return generator(seed, "stress", zlib.crc32(id.encode()), zlib.crc32(change.encode()))


def integer(seed, stream, *address):
    """The 63-bit seed of an address, for torch.manual_seed."""
    return int(generator(seed, stream, *address).integers(2**63))
