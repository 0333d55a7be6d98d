"""Which network a foreign file of weights is of, by the names and shapes of its encoder's tensors."""

from typing import NamedTuple

import torch

from .. import nets
from ..config import UserError
from . import families
from .saving import read

_WIDTH = 2  # of the networks whose names are compared


class Recognised(NamedTuple):
    """What a file holds; `classifies`: whether it has the output layer of a classifier, too."""

    name: str  # of the network, see nets.NETWORKS
    width: int
    family: str
    classifies: bool


def recognise(path, part=None):
    """The Recognised of the file `path`, of those 3D networks that have an output per case.

    part: as in `load_weights`. UserError for a file that cannot be read, or of no known network.
    """
    content = read(path)
    candidates = {name: one for name, one in nets.NETWORKS.items() if one.sees == "volume" and one.head is not None}
    for name, network in candidates.items():
        small = _on_meta(name, _WIDTH)
        try:
            found = families.find(content, small.state_dict(), part, path)
        except UserError:  # none of the file's names is in this network
            continue
        stem = found.tensors.get(small.stem)
        if stem is None:
            continue
        width = _WIDTH * len(stem) // len(small.get_parameter(small.stem))
        if not network.width_problem(name, width) and _same_encoder(_on_meta(name, width), found.tensors):
            return Recognised(name, width, found.family, f"{network.head}.weight" in found.tensors)
    first = families.listed([str(name) for name in content], 3)
    wanted = f"one of {', '.join(candidates)}, with all tensors of its encoder"
    raise UserError(f"{path}: got weights of an unknown network (it holds {first}), wanted {wanted}")


def _on_meta(name, width):
    with torch.device("meta"):
        return nets.build(name, 1, 1, mode="classification", width=width)


def _same_encoder(network, tensors):
    """Whether the encoder's names are those of the file, and the shapes too, but for the stem's input channels."""
    own = {name: tensor.shape for name, tensor in network.state_dict().items()}
    counter = "num_batches_tracked"  # which old files lack
    ours, theirs = (
        {name for name in names if name.startswith(network.encoder_prefixes) and not name.endswith(counter)}
        for names in (own, tensors)
    )
    kept = {network.stem: slice(2, None)}
    shapes = ((own[name], tensors[name].shape, kept.get(name, slice(None))) for name in ours & theirs)
    return ours == theirs and all(one[part] == other[part] for one, other, part in shapes)
