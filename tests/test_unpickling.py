"""Files of torch.save as our own reader gives them: like torch's, with a placeholder for every other class."""

import argparse
import collections
import io
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch

from fomo.checkpoint import unpickling

DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]


def bits(tensor):
    return tensor.reshape(-1).contiguous().view(torch.uint8) if tensor.numel() and tensor.ndim else tensor


def saved(tmp_path, content, zipped=True, protocol=2):
    path = tmp_path / "file.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    return path


FORMATS = [(zipped, protocol) for zipped in (True, False) for protocol in (2, 3, 4, 5)]


@pytest.mark.parametrize("zipped, protocol", FORMATS)
def test_tensors_of_every_type_and_layout_come_back(tmp_path, zipped, protocol):
    base = torch.randn(10, 10)
    content = {
        "whole": base,
        "part": base[2:5, ::3],
        "turned": base.t(),
        "repeated": torch.ones(3).expand(4, 3),
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 5),
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }
    for dtype in DTYPES:
        try:
            content[str(dtype)] = torch.arange(5).to(dtype)
        except (RuntimeError, NotImplementedError, TypeError):
            continue  # quantised and sub-byte types
    assert {"torch.bfloat16", "torch.float8_e4m3fn", "torch.complex64", "torch.bool"} <= content.keys()
    found = unpickling.read(saved(tmp_path, content, zipped, protocol))
    assert found.keys() == content.keys()
    for name, wanted in content.items():
        got = found[name]
        assert (got.dtype, got.shape, got.stride()) == (wanted.dtype, wanted.shape, wanted.stride()), name
        assert torch.equal(bits(got), bits(wanted)), name
    assert found["part"].untyped_storage().data_ptr() == found["whole"].untyped_storage().data_ptr()


@pytest.mark.parametrize("zipped, protocol", FORMATS)
def test_plain_containers_come_back_and_the_rest_is_a_placeholder(tmp_path, zipped, protocol):
    linear = torch.nn.Linear(2, 2)
    plain = {
        "numbers": [1, -2, 2**40, 2**100, 2.5, True, None],
        "texts": ("a", "ü", b"bytes", ""),
        "sets": [{1, 2}, frozenset({"a"}), set()],
        "ordered": collections.OrderedDict(b=1, a=2),
        "counts": collections.defaultdict(list, a=[1]),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "keys": {1: "a", "b": 2, (1, "c"): 3, None: 4, 0.5: 5},
        "state": linear.state_dict(),  # an OrderedDict with attributes
    }
    plain["again"] = plain["numbers"]
    other = {
        "namespace": argparse.Namespace(a=1),
        "path": pathlib.PurePosixPath("/a/b"),
        "scalar": np.float64(3),
        "array": np.ones(3),
        "device": torch.device("cpu"),
        "network": linear,
        "function": torch.relu,
    }
    found = unpickling.read(saved(tmp_path, {**plain, **other}, zipped, protocol))
    for name, wanted in plain.items():
        if name != "state":
            assert found[name] == wanted, name
    assert type(found["ordered"]) is collections.OrderedDict and found["again"] is found["numbers"]
    assert all(torch.equal(found["state"][name], value) for name, value in linear.state_dict().items())
    assert {name: type(found[name]) for name in other} == dict.fromkeys(other, unpickling.Placeholder)
    assert (found["namespace"].name, found["path"].name) == ("argparse.Namespace", "pathlib.PurePosixPath")


def read_pickle(data, tmp_path):
    """The object in a zip file with this data.pkl and one storage of four float32."""
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", np.arange(4, dtype=np.float32).tobytes())
    return unpickling.read(path)


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\4tQ"


def tensor_of(offset, size, stride, storage=STORAGE):
    """The pickle of a tensor with these numbers."""
    parts = [pickle.dumps(part, 2)[2:-1].replace(b"q\0", b"") for part in (offset, size, stride)]
    return b"\x80\2ctorch._utils\n_rebuild_tensor\n(" + storage + b"".join(parts) + b"tR."


def test_a_tensor_may_use_its_storage_and_no_more(tmp_path):
    def read(*arguments):
        return read_pickle(tensor_of(*arguments), tmp_path).tolist()

    assert read(0, (4,), (1,)) == [0, 1, 2, 3]
    assert read(1, (2, 2), (1, 1)) == [[1, 2], [2, 3]]
    assert read(3, (3,), (0,)) == [3, 3, 3]
    assert read(0, (), ()) == 0 and read(9, (0, 2), (2, 1)) == []
    for bad in ((1, (4,), (1,)), (0, (2, 2), (3, 1)), (4, (), ()), (0, (2**40,), (0,)), (0, (2**62, 2**62), (0, 0))):
        with pytest.raises(unpickling.Unreadable, match="reaches out of its 4 numbers"):
            read(*bad)
    for bad in ((-1, (1,), (1,)), (0, (2,), (-1,)), (0, (2, 2), (1,)), (0, (1.5,), (1,)), (0, (True,), (1,))):
        with pytest.raises(unpickling.Unreadable, match="no proper sizes and strides"):
            read(*bad)
    for kind, words in (
        (b"QInt8Storage", "storage 'QInt8Storage'"),
        (b"DoubleStorage", "has 16 bytes, wanted 32 bytes"),
    ):
        with pytest.raises(unpickling.Unreadable, match=words):
            read(0, (4,), (1,), STORAGE.replace(b"FloatStorage", kind))
    with pytest.raises(unpickling.Unreadable, match="data/1' has nothing, wanted 16 bytes"):
        read(0, (4,), (1,), STORAGE.replace(b"\x000X\3", b"\x001X\3"))


HOSTILE = {
    "a key of tuples of tuples": b"\x80\2}K\1\x85\x85K\1s.",
    "a long integer as key": b"\x80\2}\x8a\x20" + b"\1" * 32 + b"K\1s.",
    "a list as key": b"\x80\2}]K\1s.",
    "an endless list of objects": b"\x80\2]q\0("
    + b"K\1" * 3000
    + b"e"
    + b"c__builtin__\nset\nh\0\x85R0" * 2000
    + b"N.",
    "an extension": b"\x80\2\x82\1.",
    "a buffer": b"\x80\5\x97.",
    "no mark": b"\x80\2K\1t.",
    "an empty stack": b"\x80\2R.",
    "below a mark": b"\x80\2K\1(\x85.",
    "an unknown memo": b"\x80\2h\5.",
    "a call of a number": b"\x80\2K\1)R.",
    "two objects": b"\x80\2K\1K\2.",
    "no end": b"\x80\2K\1",
    "a number that holds items": b"\x80\2K\1K\2a.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_pickles_that_make_no_sense_are_refused_at_once(tmp_path, what):
    with pytest.raises(ValueError) as caught:
        read_pickle(HOSTILE[what], tmp_path)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("opcodes", [b"cos\nsystem\n(Vtrue\ntR", b"(Vtrue\nios\nsystem\n", b"(cos\nsystem\nVtrue\no"])
def test_every_way_to_call_a_function_gives_a_placeholder(tmp_path, opcodes):
    found = read_pickle(opcodes + b".", tmp_path)
    assert isinstance(found, unpickling.Placeholder) and found.name == "os.system"
    found = read_pickle(opcodes + b"}Va\nK\1sb.", tmp_path)  # with a state, which is not looked at
    assert isinstance(found, unpickling.Placeholder) and not hasattr(found, "a")


def test_zip_files_that_torch_does_not_write_are_refused(tmp_path):
    def made(parts, compression=zipfile.ZIP_STORED):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", compression) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
        (tmp_path / "w.pt").write_bytes(out.getvalue())
        return unpickling.read(tmp_path / "w.pt")

    good = {"a/data.pkl": b"\x80\2N."}
    assert made(good) is None
    for parts, compression, words in (
        ({"b.txt": b"x"}, 0, "without data.pkl"),
        ({**good, "b/data.pkl": b"\x80\2N."}, 0, "without data.pkl"),
        ({**good, "a/constants.pkl": b"\x80\2N."}, 0, "TorchScript"),
        ({**good, "a/data/0": b"0" * 1000}, zipfile.ZIP_DEFLATED, "compressed"),
        ({**good, "a/byteorder": b"big"}, 0, "big-endian"),
    ):
        with pytest.raises(unpickling.Unreadable, match=words):
            made(parts, compression)
