"""Where a file of weights is from, by its content, and which of its tensors are the network's, by the network's names.

Families: `fomo` (this project), `fomo25` and `fomo26` (the baselines of the challenge; the second one's network is the
residual-encoder U-Net), `nnunet` and `openmind` (nnU-Net and nnssl: that U-Net with other names), `suprem`, `dino` (a
teacher and a student), `numbered` (a torchvision network whose layers a Sequential has numbered, as RadImageNet's and
VLM3D's), `lightning` and `plain` for the rest.
"""

import collections
import re
from typing import NamedTuple

import torch

from ..config import UserError

_STATE_KEYS = ("model", "state_dict", "net", "network_weights")  # ours, Lightning, SuPreM, nnU-Net and OpenMind
_TEACHER = "teacher"
# names of the residual-encoder U-Net that stand for others, in files of the FOMO26 baseline and of nnU-Net; in the
# baseline's decoder a dropout stands between convolution and norm
_ALIASES = ((r"\.all_modules\.0\.", ".conv."), (r"\.all_modules\.[12]\.", ".norm_op."))
_NNUNET = (
    (r"(^|\.)decoder\.encoder\.", r"\1encoder."),
    (r"\.convs\.0\.", ".conv1."),
    (r"\.norm\.", ".norm_op."),
    (r"(^|\.)decoder\.transpconvs\.", r"\1decoder.upsample_layers."),
    (r"(^|\.)decoder\.stages\.", r"\1decoder.decoder_convs."),
)
_SEGMENTS = re.compile(r"(^|\.)decoder\.seg_layers\.(\d+)\.")
# names of torchvision's layers by their number, for the network whose first convolution is the key
_NUMBERED = {
    "conv1.weight": {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"},
    "features.0.0.weight": {"0": "features"},
}
_NUMBER = re.compile(r"(?:^|(?<=\.))(\d+)\.")


class Weights(NamedTuple):
    """The tensors of a file that are the network's, and what became of the others."""

    tensors: dict  # {the network's name: tensor}
    foreign: tuple[str, ...]  # names in the file of the tensors of other parts
    aliases: tuple[str, ...]  # names in the file of tensors that stand there under another name as well
    family: str
    part: str  # the prefix that the file has before all of the network's names


def find(content, own, part, path):
    """The Weights in the content of the file `path` for a network whose names are `own`.

    part: the prefix that is wanted, if the network is under several; None: the only one, or else the teacher's.
    UserError if there are no tensors, none of the network's, or several networks; and if two names that stand for one
    tensor have two.
    """
    key = next((key for key in _STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content[key] if key else content
    _check_tensors(state, key, path)
    renamed, numbered = _names(state, own)
    prefix, rivals = _prefix(renamed.values(), own, part, path)
    family = "dino" if rivals and _TEACHER in prefix + "".join(rivals) else _family(content, key, state)
    tensors, aliases, foreign, first = {}, [], [], {}
    for name, value in state.items():
        if not renamed[name].startswith(prefix):
            foreign.append(name)
            continue
        own_name = renamed[name].removeprefix(prefix)
        if own_name in tensors:
            if not _same(value, tensors[own_name]):
                raise UserError(f"{path}: {listed([first[own_name], name])} should be one tensor, and they differ")
            aliases.append(name)
        else:
            tensors[own_name], first[own_name] = value, name
    return Weights(tensors, tuple(foreign), tuple(aliases), "numbered" if numbered else family, prefix)


def with_aliases(state):
    """{name: tensor} with the second names that the FOMO26 baseline has for its residual-encoder U-Net."""
    again = {}
    for name, value in state.items():
        norm = ".all_modules.2." if "decoder_convs." in name else ".all_modules.1."
        alias = re.sub(r"\.norm_op\.(?=\w+$)", norm, re.sub(r"\.conv\.(?=\w+$)", ".all_modules.0.", name))
        again |= {name: value, alias: value}
    return again if any(name.endswith(".norm_op.weight") for name in state) else dict(state)


def listed(names, limit=8):
    """The first names, for an error."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:limit]) + more


def _check_tensors(state, key, path):
    wrong = [str(n) for n, value in state.items() if not (isinstance(n, str) and isinstance(value, torch.Tensor))]
    if wrong or not state:
        where = f"its '{key}'" if key else f"a file without {', '.join(_STATE_KEYS)}"
        got = f"{len(wrong)} entries that are no tensors: {listed(wrong)}" if wrong else "nothing in it"
        raise UserError(f"{path}: {where} should be named tensors; got {got}")


def _family(content, key, state):
    if key == "network_weights":
        return "openmind" if "nnssl_adaptation_plan" in content else "nnunet"
    if key == "net":
        return "suprem"
    if key == "model" and "config" in content:
        return "fomo"
    if any(".all_modules." in name for name in state):
        return "fomo26"
    if any(name.endswith("encoder.in_conv.conv1.conv.weight") for name in state):
        return "fomo25"
    return "lightning" if key else "plain"


def _names(state, own):
    """({name in the file: the network's name behind a prefix}, whether layers were numbered)."""
    rules = (*_ALIASES, *(_NNUNET if any("stem.convs.0." in name for name in state) else ()))
    last = max((int(found[2]) for found in map(_SEGMENTS.search, state) if found), default=0)
    renamed = {}
    for name in state:
        new = _SEGMENTS.sub(lambda found: found[1] + _output(int(found[2]), last), name)
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        renamed[name] = new
    layers = next((layers for stem, layers in _NUMBERED.items() if stem in own), {})
    by_number = {name: _NUMBER.sub(lambda found: layers.get(found[1], found[1]) + ".", name, count=1) for name in state}
    most = [max(_prefixes(names.values(), own).values(), default=0) for names in (renamed, by_number)]
    return (by_number, True) if most[1] > most[0] else (renamed, False)


def _output(number, last):
    """nnU-Net's output layers, coarsest first; it has none at the bottleneck."""
    return "decoder.out_conv." if number == last else f"decoder.ds_out_convs.{number + 1}."


def _prefixes(names, own):
    """Counter of the prefixes behind which names of the network stand, by how many."""
    counter = collections.Counter()
    for name in names:
        starts = [0, *(found.end() for found in re.finditer(r"\.", name))]
        counter.update(name[:start] for start in starts if name[start:] in own)
    return counter


def _prefix(names, own, part, path):
    """(the prefix before the network's names, the other ones that would do)."""
    names = list(names)
    counter = _prefixes(names, own)
    if not counter:
        found = f"it has {listed(names, 3)}; wanted {listed(list(own), 3)}"
        raise UserError(f"{path}: none of its {len(names)} tensors is in the network: {found}")
    most = max(counter.values())
    fit = [prefix for prefix, count in counter.items() if 2 * count > most]
    wanted = fit if part is None else [prefix for prefix in fit if prefix.startswith(part)]
    if len(wanted) > 1:
        wanted = [prefix for prefix in wanted if _TEACHER in prefix] or wanted
    if len(wanted) != 1:
        choice = (
            "none, as nothing stands before the network's names" if fit == [""] else f"one of {listed(sorted(fit))}"
        )
        raise UserError(f"{path}: weights.part: got {part or 'none'}, wanted {choice}")
    return wanted[0], [prefix for prefix in fit if prefix != wanted[0]]


def _same(one, other):
    """Whether two tensors are equal; those that share their memory need not be read."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    shared = one.data_ptr() == other.data_ptr() and one.stride() == other.stride()
    return shared or torch.equal(one, other)
