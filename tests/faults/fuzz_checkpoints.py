"""Checkpoints for fuzz.py: files of torch.save in both formats, their pickles damaged or written by an attacker."""

import argparse
import functools
import io
import os
import pathlib
import pickle
import struct
import sys
import zipfile

import numpy as np
import torch
from fuzz_damage import CANARY, TOUCH, damage, pick

from fomo import checkpoint, nets

_TOKENS = (
    b"\x81",
    b"R",
    b"b",
    b"c",
    b"\x93",
    b"i",
    b"o",
    b"Q",
    b"(",
    b"t",
    b"u",
    b"s",
    b"e",
    b".",
    b"h\0",
    b"2",
    b"\0\0\0",
)
_MODULES = (
    b"os\nsystem",
    b"posix\nsystem",
    b"builtins\nexec",
    b"builtins\neval",
    b"antigravity\nx",
    b"this\nx",
    b"subprocess\ncall",
)
_CALLABLES = (
    b"torch._utils\n_rebuild_tensor_v2",
    b"torch\nSize",
    b"collections\nOrderedDict",
    b"builtins\nset",
    b"_codecs\nencode",
)


class _Call:
    """Its pickle calls a function when it is loaded."""

    def __init__(self, function, *arguments):
        self.pair = (function, arguments)

    def __reduce__(self):
        return self.pair


@functools.lru_cache(maxsize=1)
def _network():
    torch.manual_seed(0)
    return nets.build("unet_b", 1, 2, mode="classification", width=1)


@functools.lru_cache(maxsize=1)
def _files():
    state = {f"model.{name}": value for name, value in _network().state_dict().items()}
    extra = {
        "hyper_parameters": {"args": argparse.Namespace(lr=1), "path": pathlib.PurePosixPath("/a"), "x": np.float64(3)},
        "plain": [{"a": (1, 2.5, None, True, "b", b"c")}, {3, 4}, frozenset({"x"}), torch.Size([2]), 2**80],
        "half": torch.ones(3, 4).half().t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
    }
    found = []
    for content in ({"state_dict": state, **extra}, {name.removeprefix("model."): v for name, v in state.items()}):
        for protocol in (2, 4):
            for zipped in (True, False):
                file = io.BytesIO()
                torch.save(content, file, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
                found.append(file.getvalue())
    return found


def _exchange(data, change):
    """A zip file with its data.pkl changed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            part = old.read(info)
            new.writestr(info.filename, change(part) if info.filename.endswith("data.pkl") else part)
    return out.getvalue()


def _malicious(rng):
    """A pickle that would run code, hang or fill the memory."""
    calls = [_Call(os.system, TOUCH), _Call(eval, f"open({CANARY!r}, 'w')"), _Call(exec, f"open({CANARY!r}, 'w')")]
    name, known = pick(rng, _MODULES), pick(rng, _CALLABLES)
    nested = b"(lp0\n" + b"".join(b"0(g%dg%dtp%d\n" % (i, i, i + 1) for i in range(60))
    long_list = b"]q\0(" + b"K\1" * 3000 + b"e"
    return pick(
        rng,
        [
            *(pickle.dumps(call, protocol) for call in calls for protocol in (0, 2, 4)),
            b"c" + name + b"\n(V" + TOUCH.encode() + b"\ntR.",
            b"(V" + TOUCH.encode() + b"\ni" + name + b"\n.",
            b"(c" + name + b"\nV" + TOUCH.encode() + b"\no.",
            b"c" + known + b"\n(K\1K\2tR.",
            b"\x80\2" + b"]" * 100_000 + b"a" * 99_999 + b".",  # a list in a list in a list ...
            b"\x80\2" + b"]" + b"\x85" * 100_000 + b".",
            nested + b"}g60\nI1\ns.",  # a key whose hash takes for ever
            b"\x80\2" + long_list + (b"c" + known + b"\nh\0\x85R0") * 20_000 + b".",
            b"\x80\2}q\0h\0h\0s.",
            b"\x80\2]q\0h\0a.",
            b"\x80\4\x8e" + struct.pack("<Q", 2**62) + b".",
            b"\x80\2r" + struct.pack("<I", 2**32 - 1) + b".",
            b"\x80\2]r" + struct.pack("<I", 2**32 - 1) + b".",
            b"\x80\2\x8b" + struct.pack("<I", 2**31 - 1) + b"\1.",
            b"\x80\2\x8b" + struct.pack("<I", 200_000) + b"\1" * 200_000 + b"q\0" + b"}h\0K\1s0" * 20_000 + b".",
            b"I" + b"9" * 60_000 + b"\n.",
            b"\x82\1.",
        ],
    )


def _claims(rng, data):
    """A tensor that claims other sizes, strides or numbers than it has."""
    where = [i for i in range(len(data)) if data[i : i + 1] == b"K"]
    at = pick(rng, where) if where else 0
    wanted = int(pick(rng, [0, 1, 2, 2**31 - 1, 2**40, 2**62, 2**63, 2**64, -1, -(2**40)]))
    raw = wanted.to_bytes(10, "little", signed=True)
    return data[:at] + b"\x8a\x0a" + raw + data[at + 2 :]


def make_checkpoint(folder, rng):
    path = folder / "weights.pt"
    if rng is None:
        path.write_bytes(_files()[0])
        return path
    data, kind = pick(rng, _files()), rng.integers(10)
    change = {0: lambda old: _malicious(rng), 1: lambda old: _claims(rng, old), 2: lambda old: _claims(rng, old)}
    change = change.get(int(kind), lambda old: damage(rng, old, _TOKENS))
    if kind == 9:
        data = damage(rng, data)
    elif data.startswith(b"PK"):
        data = _exchange(data, change)
    elif kind == 0:
        data = _malicious(rng)
    else:
        begin = data.index(b"\x80", 40)  # behind the magic number and the version
        end = int(rng.integers(begin, begin + 6000))
        data = data[:begin] + change(data[begin:end]) + data[end:]
    path.write_bytes(data)
    return path


def check_checkpoint(folder, path):
    before = set(sys.modules)
    try:
        report = checkpoint.load_weights(_network(), str(path))
        assert report.loaded
    finally:
        loaded = {name for name in set(sys.modules) - before if not name.startswith("encodings.")}
        assert not loaded, f"imported {loaded}"
        assert not os.path.lexists(CANARY), "code of the input has run"


check_checkpoint.refuses = ()
