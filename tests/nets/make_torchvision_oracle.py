"""Prints the numbers in torchvision_oracle.json: what torchvision's networks give for weights and images of a formula.

Run with torchvision installed: python tests/nets/make_torchvision_oracle.py > tests/nets/torchvision_oracle.json
(the stored numbers: torch 2.13.0, torchvision 0.28.0, float64 on the CPU). The tests need the file only.
"""

import hashlib
import json
import zlib

import numpy as np
import torch

GAIN = {"resnet50": 1.0, "resnet101": 0.9, "efficientnet_b0": 1.5}  # of the norms: features differ between images
CLASSES = 5


def numbers(name, shape):
    """Uniform numbers in [-1, 1), the same for a name everywhere."""
    return torch.from_numpy(np.random.default_rng(zlib.crc32(name.encode())).random(shape) * 2 - 1).float()


def image():
    return numbers("image", (2, 3, 64, 64))


def fill(network, gain):
    """Every tensor of the state dict by its name: kernels keep the variance, and a norm is not its identity."""
    state = network.state_dict()
    for name, tensor in state.items():
        if tensor.ndim > 1:
            tensor.copy_(numbers(name, tensor.shape) * (3 / tensor[0].numel()) ** 0.5)
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.copy_(1 + numbers(name, tensor.shape) / 2)
        elif f"{name.removesuffix('weight')}running_var" in state and name.endswith("weight"):
            tensor.copy_(gain * (1 + numbers(name, tensor.shape) / 2))
        else:
            tensor.copy_(numbers(name, tensor.shape) / 10)
    return network


def names_and_shapes(network):
    """(number of tensors, hash of their names and shapes in order)."""
    lines = [f"{name} {list(tensor.shape)}" for name, tensor in network.state_dict().items()]
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make():
    from torchvision import models

    oracle = {}
    for name, gain in GAIN.items():
        tensors, digest = names_and_shapes(getattr(models, name)())
        network = fill(getattr(models, name)(num_classes=CLASSES), gain).eval().double()
        head = network.fc if hasattr(network, "fc") else network.classifier
        seen = []
        head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            logits = network(image().double())
        oracle[name] = {
            "tensors": tensors,
            "sha256": digest,
            "parameters": sum(p.numel() for p in getattr(models, name)().parameters()),
            "logits": logits.tolist(),
            "features": seen[0][:, ::97].tolist(),
        }
    return oracle


if __name__ == "__main__":
    print(json.dumps(make(), indent=1))
