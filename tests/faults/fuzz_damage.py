"""How the fuzzer damages bytes, and where code shows that an input has run it."""

import pathlib

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CANARY = "../canary"  # where it is touched, code of the input has run
TOUCH = f"touch {CANARY}"


def pick(rng, items):
    return items[int(rng.integers(len(items)))]


def damage(rng, data, tokens=(b"\0", b"\xff", b"-", b"9")):
    """`data` (bytes) with a few bytes flipped, cut out, repeated, replaced by tokens, or cut short."""
    data = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        at, length = int(rng.integers(len(data) + 1)), int(rng.geometric(0.2))
        kind = rng.integers(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length] * int(rng.integers(1, 20))
        elif kind == 3:
            data[at:at] = pick(rng, tokens)
        elif kind == 4:
            data[at : at + length] = rng.integers(256, size=length, dtype=np.uint8).tobytes()
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)
