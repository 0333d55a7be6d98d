import argparse
import os
import pickle
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from fomo import checkpoint, nets
from fomo.config import UserError

torch.set_num_threads(1)
FULL, LIGHT = "unet_b", "unet_b_lw_dec"


def net(name=FULL, channels=1, classes=2, seed=0, **kwargs):
    torch.manual_seed(seed)
    return nets.build(name, channels, classes, **{"width": 2, **kwargs})


def randomized(model, seed=1):
    """Every tensor non-trivial, also the norms that start as ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(tensor.shape, generator=generator) for name, tensor in model.state_dict().items()}


def write(tmp_path, content):
    path = str(tmp_path / "file.ckpt")
    torch.save(content, path)
    return path


def lightning(state, prefix="model."):
    return {
        "state_dict": {prefix + name: tensor for name, tensor in state.items()},
        "epoch": 3,
        "hyper_parameters": {"config": {"patch_size": (96, 96, 96), "version_dir": "/models/v0"}},
        "pytorch-lightning_version": "2.5.0",
    }


# ------------------------------------------------------------------------------------------ save and load


def test_what_is_saved_is_loaded(tmp_path):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 1, 16, 16, 32)).mean().backward()
    optimizer.step()
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": 7,
        "config": {"a": [1, 2.5, None, True]},
    }
    path = str(tmp_path / "last.pt")
    checkpoint.save(path, content)
    back = checkpoint.load(path)
    assert back["step"] == 7 and back["config"] == content["config"]
    assert all(torch.equal(back["model"][name], tensor) for name, tensor in content["model"].items())
    torch.optim.AdamW(model.parameters()).load_state_dict(back["optimizer"])
    assert os.listdir(tmp_path) == ["last.pt"]


def test_only_plain_data_is_saved(tmp_path):
    import numpy as np

    path = str(tmp_path / "last.pt")
    checkpoint.save(path, {"step": 1})
    for bad, where in ((np.float64(1.0), r"content\['a'\]\[1\]"), (torch.float32, "dtype"), ({1, 2}, "set")):
        with pytest.raises(TypeError, match=where):
            checkpoint.save(path, {"a": [0, bad]})
    with pytest.raises(TypeError, match="float"):
        checkpoint.save(path, {"a": {0.5: 1}})
    assert checkpoint.load(path) == {"step": 1}


def test_the_predecessor_survives_a_failing_write(tmp_path, monkeypatch):
    path = str(tmp_path / "last.pt")
    checkpoint.save(path, {"step": 1})
    true_save = torch.save

    def interrupted(content, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"step": 2})
    monkeypatch.setattr(torch, "save", true_save)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save(path, {"step": 2})
    assert os.listdir(tmp_path) == ["last.pt"]
    assert checkpoint.load(path) == {"step": 1}


def test_a_full_disk_and_a_kill_leave_the_predecessor(tmp_path):
    """A subprocess, whose files may not grow beyond 50 kB; then one that is killed while it writes."""
    path = str(tmp_path / "last.pt")
    checkpoint.save(path, {"step": 1})
    script = """
import os, resource, signal, sys, torch
sys.path.insert(0, sys.argv[1])
from fomo import checkpoint, config
if sys.argv[3] == "full":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    try:
        checkpoint.save(sys.argv[2], {"step": 2, "x": torch.zeros(100_000)})
    except config.UserError as error:
        print("refused", error)
else:
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    checkpoint.save(sys.argv[2], {"step": 2, "x": torch.zeros(100_000)})
"""
    results = [
        subprocess.run([sys.executable, "-c", script, ROOT, path, how], capture_output=True, text=True)
        for how in ("full", "kill")
    ]
    assert "refused cannot write the checkpoint" in results[0].stdout
    assert results[1].returncode == -9
    assert checkpoint.load(path) == {"step": 1}
    checkpoint.save(path, {"step": 3})  # what the kill left behind is in nobody's way
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_missing_folder_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        checkpoint.save(str(tmp_path / "nowhere" / "last.pt"), {})


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "short", "flipped", "text", "folder"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = str(tmp_path / "last.pt")
    checkpoint.save(path, {"model": {"a": torch.randn(100, 100)}})
    data = open(path, "rb").read()
    middle = len(data) // 2
    changed = {
        "empty": b"",
        "half": data[:middle],
        "short": data[:-10],
        "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "text": b"key: value\n" * 20,
    }
    os.remove(path)
    if damage == "folder":
        os.mkdir(path)
    elif damage != "missing":
        open(path, "wb").write(changed[damage])
    readers = [checkpoint.load]
    if damage != "flipped":  # foreign files need not have checksums
        readers.append(lambda path: checkpoint.load_weights(net(), path))
    for read in readers:
        with pytest.raises(UserError, match="last.pt") as caught:
            read(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


# ------------------------------------------------------------------------------------------ load_weights

WRAPPED = {
    "ours": lambda state: {"model": state, "step": 5, "config": {}},
    "plain": lambda state: state,
    "lightning": lightning,
    "compiled": lambda state: lightning(state, "model._orig_mod."),
    "ddp": lambda state: {"module." + name: tensor for name, tensor in state.items()},
    "ddp of compiled": lambda state: {"module._orig_mod." + name: tensor for name, tensor in state.items()},
    "compiled ddp in lightning": lambda state: lightning(state, "model._orig_mod.module."),
    "suprem": lambda state: {"net": {"module.backbone." + name: tensor for name, tensor in state.items()}, "epoch": 1},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_every_wrapping_loads_every_tensor(tmp_path, kind):
    model = net()
    state = randomized(model)
    report = checkpoint.load_weights(model, write(tmp_path, WRAPPED[kind](state)))
    assert report.counts() == {"loaded": 82, "new": 0, "adapted": 0, "ignored": 0, "aliases": 0}
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "mode, channels, classes, counts, new",
    [
        ("classification", 4, 2, (39, 2, 1, 26), {"decoder.fc"}),
        ("regression", 2, 1, (39, 2, 1, 26), {"decoder.fc"}),
        (
            "segmentation",
            3,
            2,
            (63, 18, 1, 2),
            {"decoder.out_conv", *(f"decoder.decoder_conv{i}.conv2" for i in range(1, 5))},
        ),
    ],
)
def test_the_pretraining_checkpoint_fills_all_but_the_head(tmp_path, mode, channels, classes, counts, new):
    state = randomized(net(LIGHT, 1, 1))
    assert len(state) == 66
    model = net(FULL, channels, classes, mode=mode)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = checkpoint.load_weights(model, write(tmp_path, lightning(state)))
    assert tuple(report.counts().values()) == (*counts, 0)
    assert len(report.ignored) + len(report.loaded) + len(report.adapted) == len(state)
    assert {name.rsplit(".", 1)[0] for name in report.new if "conv2" not in name} == {
        n for n in new if "conv2" not in n
    }
    assert all(any(name.startswith(prefix) for prefix in new) for name in report.new)
    assert report.adapted == (model.stem,)
    after = model.state_dict()
    assert all(torch.equal(after[name], state[name]) for name in report.loaded)
    assert all(torch.equal(after[name], before[name]) for name in report.new)


def test_weights_of_another_width_say_how_wide_they_are(tmp_path):
    checkpoint.save(tmp_path / "narrow.pt", {"model": net(width=2).state_dict()})
    with pytest.raises(UserError, match="a network 0.5 times as wide as this one: set model.width to so many times"):
        checkpoint.load_weights(net(width=4), tmp_path / "narrow.pt")


def test_deep_supervision_heads_may_be_new_or_unused(tmp_path):
    plain, deep = net(), net(deep_supervision=True)
    report = checkpoint.load_weights(deep, write(tmp_path, randomized(plain)))
    assert {name.split(".")[1][:-1] for name in report.new} == {"ds_out_conv"} and len(report.new) == 8
    report = checkpoint.load_weights(plain, write(tmp_path, randomized(deep)))
    assert len(report.ignored) == 8 and len(report.loaded) == 82


def test_stem_rules_by_hand(tmp_path):
    state = randomized(net(channels=2))
    stem = net().stem
    first, second = state[stem][:, 0], state[stem][:, 1]
    path = write(tmp_path, state)

    def loaded(rule, channels):
        model = net(channels=channels, seed=5)
        report = checkpoint.load_weights(model, path, stem=rule)
        return model.state_dict()[stem], report

    weight, report = loaded("repeat", 4)
    assert report.adapted == (stem,) and report.new == ()
    torch.testing.assert_close(weight, torch.stack([first, second, first, second], 1) / 2)
    weight, _ = loaded("repeat", 1)
    torch.testing.assert_close(weight, (first + second)[:, None])  # as a grey image in both channels
    weight, _ = loaded("mean", 3)
    torch.testing.assert_close(weight, torch.stack([(first + second) / 2] * 3, 1))
    weight, report = loaded("reinit", 3)
    assert torch.equal(weight, net(channels=3, seed=5).state_dict()[stem])
    assert report.new == (stem,) and report.ignored == (stem,) and report.adapted == ()
    weight, report = loaded("reinit", 2)  # the rule is for other channel counts only
    assert torch.equal(weight, state[stem]) and report.new == ()
    with pytest.raises(ValueError, match="'copy'"):
        loaded("copy", 3)


def test_repeat_preserves_the_activation_of_a_repeated_image(tmp_path):
    one, three = net(channels=1, mode="regression"), net(channels=3, mode="regression")
    path = write(tmp_path, randomized(one))
    checkpoint.load_weights(one, path)
    checkpoint.load_weights(three, path)
    image = torch.randn(1, 1, 16, 32, 16)
    torch.testing.assert_close(three(image.expand(-1, 3, -1, -1, -1)), one(image), rtol=1e-4, atol=1e-4)


def test_lightning_tensors_beside_the_network_are_ignored_and_reported(tmp_path):
    content = lightning(randomized(net()))
    content["state_dict"]["loss.weight"] = torch.ones(2)
    report = checkpoint.load_weights(net(), write(tmp_path, content))
    assert report.ignored == ("loss.weight",) and len(report.loaded) == 82
    content = {**randomized(net()), "loss.weight": torch.ones(2)}  # nothing says that this is not the network's
    with pytest.raises(UserError, match="1 unexpected: loss.weight"):
        checkpoint.load_weights(net(), write(tmp_path, content))


def without(state, *prefixes):
    return {name: tensor for name, tensor in state.items() if not name.startswith(prefixes)}


REFUSED = {
    "encoder tensor missing": (
        lambda s: without(s, "encoder.encoder_conv2.conv1.norm.bias"),
        "1 missing: encoder.encoder_conv2",
    ),
    "half a declared prefix": (lambda s: without(s, "decoder.out_conv.bias"), "1 missing: decoder.out_conv.bias"),
    "half a conv2": (
        lambda s: without(s, "decoder.decoder_conv1.conv2.norm"),
        "2 missing: decoder.decoder_conv1.conv2.norm",
    ),
    "unknown tensor": (lambda s: {**s, "encoder.extra": torch.ones(1)}, "1 unexpected: encoder.extra"),
    "other width": (lambda s: randomized(net(width=3)), r"a network 1.5 times as wide as this one: set model.width"),
    "kernel of the stem": (
        lambda s: {**s, net().stem: torch.ones(2, 1, 5, 5, 5)},
        r"misshapen: encoder.in_conv.*\[2, 1, 5, 5, 5\]",
    ),
    "something else": (
        lambda s: {"layer1.0.conv1.weight": torch.ones(3, 3)},
        "none of its 1 tensors is in the network",
    ),
    "the classifier's file": (lambda s: randomized(net(mode="classification")), "missing: decoder.upsample1.weight"),
    "not finite": (
        lambda s: {**s, "decoder.upsample1.bias": torch.full((16,), torch.nan)},
        "decoder.upsample1.bias: 16 of 16",
    ),
    "overflow": (lambda s: {**s, net().stem: torch.full((2, 1, 3, 3, 3), 1e300, dtype=torch.float64)}, "not finite"),
    "whole numbers": (lambda s: {**s, "decoder.upsample1.bias": torch.ones(16, dtype=torch.long)}, "torch.int64"),
    "all zero": (lambda s: {n: torch.zeros_like(t) for n, t in s.items()}, "zero"),
    "no tensors": (lambda s: {"model": {"a": 1}}, "no tensors: a"),
    "an empty dict": (lambda s: {}, "nothing in it"),
    "a list": (lambda s: [torch.ones(3)], "holds a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_everything_else_is_refused_and_the_model_untouched(tmp_path, case):
    change, words = REFUSED[case]
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=words) as caught:
        checkpoint.load_weights(model, write(tmp_path, change(randomized(model))))
    assert "file.ckpt" in str(caught.value) and len(str(caught.value)) < 1500
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_declarations_can_be_given_and_other_heads_are_new_as_a_whole(tmp_path):
    model = net(mode="classification")
    state = randomized(net(mode="classification", classes=5))
    report = checkpoint.load_weights(model, write(tmp_path, state))
    assert report.new == ("decoder.fc.weight", "decoder.fc.bias") == report.ignored
    other = net(mode="classification", head="multistage")
    report = checkpoint.load_weights(other, write(tmp_path, state))
    assert all(name.startswith("decoder.") for name in report.new) and "decoder.mean" in report.new
    with pytest.raises(UserError, match="2 misshapen: decoder.fc.weight"):
        checkpoint.load_weights(model, write(tmp_path, state), allow_new=())
    with pytest.raises(UserError, match="26 unexpected"):
        checkpoint.load_weights(model, write(tmp_path, randomized(net(LIGHT, 1, 1))), allow_unused=())
    with pytest.raises(UserError, match="nothing would be loaded"):
        checkpoint.load_weights(model, write(tmp_path, {model.stem: torch.ones(9)}), allow_new=("",))


def test_a_declared_encoder_takes_its_stem_along(tmp_path):
    state = randomized(net())
    model = net(channels=3)
    report = checkpoint.load_weights(model, write(tmp_path, state), allow_new=("encoder.",))
    assert report.counts() == {"loaded": 81, "new": 0, "adapted": 1, "ignored": 0, "aliases": 0}
    before = model.state_dict()[model.stem].clone()
    state["encoder.in_conv.conv1.conv.bias"] = torch.ones(5)
    report = checkpoint.load_weights(model, write(tmp_path, state), allow_new=("encoder.",))
    assert report.counts() == {"loaded": 42, "new": 40, "adapted": 0, "ignored": 40, "aliases": 0}
    assert torch.equal(model.state_dict()[model.stem], before)


def test_half_precision_files_load(tmp_path):
    model = net()
    state = {name: tensor.bfloat16() for name, tensor in randomized(model).items()}
    checkpoint.load_weights(model, write(tmp_path, state))
    assert all(t.dtype == torch.float32 and torch.equal(t, state[n].float()) for n, t in model.state_dict().items())


class Touch:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_never_runs_code_and_what_is_beside_the_tensors_is_no_matter(tmp_path, zipped):
    model = net()
    state = randomized(model)
    content = lightning(state)
    content["hyper_parameters"]["args"] = argparse.Namespace(lr=1)
    content["x"] = Touch(str(tmp_path / "touched"))
    path = str(tmp_path / "file.ckpt")
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert len(checkpoint.load_weights(model, path).loaded) == 82
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not (tmp_path / "touched").exists()
    torch.save(Touch(str(tmp_path / "touched")), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"holds a pickled object \('io.open'\), wanted a dict of tensors"):
        checkpoint.load_weights(model, path)
    torch.save(model, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="holds a pickled object .*: save its state_dict"):
        checkpoint.load_weights(model, path)
    assert not (tmp_path / "touched").exists()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 1234567\n" % (b"0" * 64)
OTHER_FILES = {
    "is empty: the download or the copy went wrong": b"",
    "is the pointer of Git LFS (132 bytes), not the file: run `git lfs pull`": POINTER,
    "is a web page, no checkpoint": b"\n<!DOCTYPE html>\n<html><body>Log in</body></html>",
    "is no file of torch.save: it begins with b'key: val'": b"key: value\n" * 20,
    "is a pickle that torch.save did not write": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("words", OTHER_FILES)
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, words):
    path = tmp_path / "w.ckpt"
    path.write_bytes(OTHER_FILES[words])
    with pytest.raises(UserError) as caught:
        checkpoint.load_weights(net(), path)
    assert f"w.ckpt: {words}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.9999])
def test_a_cut_file_is_called_cut(tmp_path, zipped, share):
    path = tmp_path / "w.ckpt"
    torch.save(randomized(net()), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match="is cut") as caught:
        checkpoint.load_weights(net(), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        (b"<!DOCTYPE html>", "is a web page"),
        (b"", "is empty"),
        (b"PK\x03\x04" + bytes(100), "is cut or damaged"),
    ],
)
def test_files_that_are_no_checkpoints_are_named_for_what_they_are(tmp_path, content, said):
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    for read in (checkpoint.load, checkpoint.read):
        with pytest.raises(UserError, match=said):
            read(path)
