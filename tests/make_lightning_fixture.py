"""Writes tests/fomo26_lightning.ckpt: a file as Lightning writes it for the FOMO26 baseline, made of formulas.

  python tests/make_lightning_fixture.py

It is compiled, has every second name, and its hyper_parameters hold objects of omegaconf's classes, of pathlib, numpy
and argparse. Neither omegaconf nor Lightning is needed: the classes here have the names of theirs. All tensors are
parts of one storage, which keeps the file small.
"""

import argparse
import collections
import pathlib
import sys
import types

import numpy as np
import torch

HERE = pathlib.Path(__file__).resolve().parent
PATH = HERE / "fomo26_lightning.ckpt"


def numbers():
    """One storage, of which every tensor is a part; half precision."""
    values = np.arange(6000, dtype=np.int64) * 7919 % 2003
    return torch.from_numpy(values.astype(np.float32) / 1001 - 1).half()


def state_of(network):
    """{name: part of the storage} for each tensor of a network, from a place of its own."""
    storage = numbers()
    return {
        name: storage[17 * i % 500 :][: tensor.numel()].view(tensor.shape)
        for i, (name, tensor) in enumerate(network.state_dict().items())
    }


def omegaconf():
    """Stand-ins for the classes that a pickled DictConfig names, in modules of their names."""
    names = {
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.listconfig": ["ListConfig"],
        "omegaconf.base": ["ContainerMetadata", "Metadata"],
        "omegaconf.nodes": ["AnyNode"],
    }
    made = {}
    for module, classes in names.items():
        sys.modules[module] = types.ModuleType(module)
        for name in classes:
            made[name] = type(name, (), {"__module__": module})
            setattr(sys.modules[module], name, made[name])
    sys.modules["omegaconf"] = types.ModuleType("omegaconf")
    return made


def hyper_parameters():
    kinds = omegaconf()

    def filled(kind, **attributes):
        new = kinds[kind]()
        new.__dict__.update(attributes)
        return new

    node = filled("AnyNode", _metadata=filled("Metadata", ref_type=object, optional=True), _parent=None, _val=1e-4)
    config = filled("DictConfig", _metadata=filled("ContainerMetadata", key_type=str), _content={"lr": node})
    node._parent = config  # objects of omegaconf point back
    return {
        "config": config,
        "patch": filled("ListConfig", _content=[160, 160, 160]),
        "folder": pathlib.PurePosixPath("/models"),
        "rate": np.float64(1e-4),
        "arguments": argparse.Namespace(epochs=3),
        "counts": collections.defaultdict(list, a=[1]),
    }


def main():
    sys.path.insert(0, str(HERE.parent))
    from fomo import checkpoint, nets

    state = checkpoint.with_aliases(state_of(nets.build("resenc_unet_s", 1, 1, width=1, skips=False)))
    content = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.2",
        "state_dict": collections.OrderedDict((f"model._orig_mod.{name}", value) for name, value in state.items()),
        "hparams_name": "kwargs",
        "hyper_parameters": hyper_parameters(),
    }
    torch.save(content, PATH)


if __name__ == "__main__":
    main()
