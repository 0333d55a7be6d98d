"""Weights of a file for a network, by declaration: every tensor fits, or was declared, or is an error."""

from typing import NamedTuple

import torch

from ..config import UserError
from . import families
from .families import listed
from .saving import read

_COARSE = "decoder.ds_out_conv"
_INNER = ("teacher.backbone.", "network.")  # of a DINO run, of a masked autoencoder of two views
_COUNTER = "num_batches_tracked"  # of a batch norm; files from before torch 0.4.1, as torchvision's, have none


class LoadReport(NamedTuple):
    """What became of every tensor: names in the network, and of those `ignored` in the file."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    adapted: tuple[str, ...]
    ignored: tuple[str, ...]
    aliases: tuple[str, ...]  # names in the file that say a tensor again
    family: str  # where the file is from, see `families`
    part: str  # the prefix that the file has before the network's names
    subjects: tuple[str, ...] = ()  # whom the file says it was trained on
    doubts: tuple[str, ...] = ()  # messages about how the network should be built for these weights

    def counts(self):
        """{"loaded": .., "new": .., "adapted": .., "ignored": .., "aliases": ..}, as in the log's `weights` line.

        All but `new` add up to the number of tensors in the file.
        """
        return {name: len(getattr(self, name)) for name in ("loaded", "new", "adapted", "ignored", "aliases")}

    def said(self):
        """All that the `weights` line says of the file."""
        return {**self.counts(), "family": self.family, "part": self.part or "none"}


def load_weights(model, path, allow_new=None, stem="repeat", allow_unused=None, part=None):
    """Copy the weights in the file `path` into `model` and return a LoadReport; on any error the model is untouched.

    The file is one of ours (`model`), Lightning's (`state_dict`), SuPreM's (`net`), nnU-Net's or OpenMind's
    (`network_weights`) or a plain state dict, see `families`. The prefix before the network's names, as wrappers of the
    network leave it, is taken off; tensors without it belong to other parts, and are reported as ignored.
    part: where several prefixes would do, how the wanted one begins (config key weights.part; None: the teacher's).

    Every tensor of the model must be in the file, with its shape, except
    - allow_new: prefixes (None: model.new_prefixes) whose tensors may be missing or misshapen; such a prefix stays new
      as a whole. If only some of its tensors are missing, that is an error. By default also model.decoder_prefixes, if
      the file has no tensor below any of them (it holds an encoder alone) or one that does not fit, besides the head's
      (its decoder is another one, as without skip connections).
    - the stem (model.stem), if only its number of input channels differs, K in the file and C here:
      "repeat": an image repeated in all channels activates as before: channel c gets the file's channel c mod K times
      K/C (exact if K divides C) or, with fewer channels than the file, the sum of its channels c, c + C, c + 2C ...;
      "mean": every channel gets the mean of the file's channels; "reinit": it stays new.
    - the counters of batch norms, which nothing reads, if the file has none at all.
    Every tensor of the file must be used, except for the prefixes allow_unused (None: model.unused_prefixes).

    UserError for anything else missing, unexpected or misshapen, for numbers that are not finite, for weights that are
    all zero, and when nothing would be loaded. Reading a file never runs code of it, see `unpickling`.
    """
    if stem not in ("repeat", "mean", "reinit"):
        raise ValueError(f"stem: got {stem!r}, wanted 'repeat', 'mean' or 'reinit'")
    own, content = model.state_dict(), read(path)
    found = families.find(content, own, part, path)
    file = found.tensors
    allow_new = _may_be_new(model, own, file) if allow_new is None else allow_new
    allow_unused = getattr(model, "unused_prefixes", ()) if allow_unused is None else allow_unused
    adapted, drawn = _other_channels(getattr(model, "stem", None), file, own), _counters(file, own)
    if stem == "reinit":
        adapted, drawn = (), adapted + drawn
    misshapen = [name for name in own if name in file and file[name].shape != own[name].shape and name not in adapted]
    declared = tuple(_stay_new(allow_new, file, own, misshapen))
    new = [name for name in own if name.startswith(declared) or name in drawn]
    unused = [name for name in file if name not in own or name in new]
    _check(file, own, new, misshapen, unused, (*declared, *allow_unused, *new), path)
    loaded, adapted = _fill(own, file, new, adapted, stem, path)
    listed_subjects = content["subjects"] if isinstance(content.get("subjects"), list) else ()
    subjects = tuple(name for name in listed_subjects if isinstance(name, str))
    fates = loaded, tuple(new), adapted, (*found.foreign, *unused), found.aliases
    return LoadReport(*fates, found.family, found.part, subjects, tuple(_doubts(model, found)))


def channels_of(path, model, part=None):
    """How many input channels the weights of a file have for networks like `model`; None where they have no stem."""
    found = families.find(read(path), model.state_dict(), part, path)
    stem = found.tensors.get(model.stem)
    return None if stem is None else stem.shape[1]


def _doubts(model, found):
    """The FOMO26 baseline pretrains with average pooling, and its classifiers pool by the maximum."""
    classifies = any(name.startswith("decoder.fc.") for name in found.tensors)
    if found.family == "fomo26" and classifies and getattr(model, "skip_pooling", "maximum") != "maximum":
        yield "a classifier of the FOMO26 baseline pools what it skips by the maximum: set model.skip_pooling=maximum"


def _may_be_new(model, own, file):
    """The prefixes that the model declares: new_prefixes and, if the file has no such decoder, decoder_prefixes."""
    decoder, new = (tuple(getattr(model, name, ())) for name in ("decoder_prefixes", "new_prefixes"))
    below = [name for name in file if name.startswith(decoder)]
    other = any(file[name].shape != own[name].shape for name in below if name in own and not name.startswith(new))
    return (*new, *(decoder if not below or other else ()))


def _other_channels(stem, file, own):
    """(stem,) if its tensor in the file differs in the number of input channels only, else ()."""
    if stem not in file:
        return ()
    theirs, ours = file[stem].shape, own[stem].shape
    same = len(theirs) == len(ours) and theirs[:1] + theirs[2:] == ours[:1] + ours[2:]
    return (stem,) if same and theirs != ours and theirs[1] > 0 else ()


def _stay_new(allow_new, file, own, misshapen):
    """The prefixes of `allow_new` that have tensors in the network, and in the file none, or one that does not fit."""
    for prefix in allow_new:
        below = [name for name in own if name.startswith(prefix)]
        if below and (not any(name in file for name in below) or any(name in misshapen for name in below)):
            yield prefix


def _counters(file, own):
    """The counters of the network's batch norms, if the file has none of them, else ()."""
    counters = tuple(name for name in own if name.endswith(_COUNTER))
    return () if any(name in file for name in counters) else counters


def _check(file, own, new, misshapen, unused, permitted, path):
    """UserError, with all names, if a tensor is missing, unexpected or misshapen; permitted: prefixes of the unused."""
    wrong = [name for name in misshapen if name not in new]  # the head has the outputs of its task
    problems = {
        "missing": [name for name in own if name not in file and name not in new],
        "unexpected": [name for name in unused if not name.startswith(permitted)],
        "misshapen": [f"{name} (file {list(file[name].shape)}, network {list(own[name].shape)})" for name in wrong],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in problems.items() if names)
        ratios = {len(file[name]) / len(own[name]) for name in wrong if file[name].ndim == 1}
        same_names = not problems["missing"] and not problems["unexpected"]
        if len(ratios) == 1 and same_names and 3 * len(wrong) > len(own):
            ratio, wanted = ratios.pop(), "set model.width to so many times what it is now"
            error = UserError(f"{path}: weights of a network {ratio:.3g} times as wide as this one: {wanted}")
            error.width_ratio = ratio  # for who knows the network's width
            raise error
        raise UserError(f"{path}: weights of another network: {found}. Check model.name, model.width and task.type")


def _fill(own, file, new, adapted, stem, path):
    """Copy the file's tensors into `own` once all of them are good; returns the names (loaded, adapted)."""
    adapted = tuple(name for name in adapted if name not in new)
    exact = tuple(name for name in own if name not in new and name not in adapted)
    if not exact:
        raise UserError(f"{path}: nothing would be loaded: all {len(own)} tensors of the network are declared new")
    values = {name: _converted(file[name], own[name].dtype, f"{path}: {name}") for name in (*exact, *adapted)}
    values.update({name: _adapt(values[name], own[name].shape[1], stem) for name in adapted})
    kernels = [value for value in values.values() if value.ndim >= 2]
    if kernels and not any(value.any() for value in kernels):
        raise UserError(f"{path}: all {len(kernels)} weight tensors are zero: it was saved before it was filled")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return exact, adapted


def _converted(value, dtype, where):
    """`value` as `dtype`: only from float to float or within whole numbers and bools, and only finite numbers."""
    dense = value.layout == torch.strided and not (value.is_quantized or value.is_meta or value.is_complex())
    if not dense or value.is_floating_point() != dtype.is_floating_point:
        raise UserError(f"{where}: got {value.dtype} ({value.layout}), wanted dense numbers that fit {dtype}")
    value = value.to(dtype)
    if broken := value.numel() - int(torch.isfinite(value).sum()):
        why = "the run that wrote it had diverged"
        raise UserError(f"{where}: {broken} of {value.numel()} numbers are not finite: {why}")
    return value


def _adapt(weight, channels, rule):
    """weight (out, K, ...) -> (out, channels, ...), by the rule of `load_weights`."""
    if rule == "mean":
        return weight.mean(dim=1, keepdim=True).expand(-1, channels, *weight.shape[2:])
    known = weight.shape[1]
    if channels < known:
        return torch.stack([weight[:, c::channels].sum(dim=1) for c in range(channels)], dim=1)
    return weight[:, torch.arange(channels) % known] * (known / channels)


def downstream(model):
    """{name: tensor} of a best.pt's `model` for other networks: all, or the network that a pretraining has wrapped.

    The coarse outputs of deep supervision are left out: only a training has them.
    """
    model = {name: tensor for name, tensor in model.items() if not name.startswith(_COARSE)}
    for prefix in _INNER:
        if inner := {name.removeprefix(prefix): model[name] for name in model if name.startswith(prefix)}:
            return inner
    return model


def warn_of_known(subjects, trained_on, path, log):
    """Write a `warn` line if `subjects`, who are to be tested, have names that the checkpoint `path` was trained on."""
    if known := sorted(set(subjects) & set(trained_on)):
        said = "subjects have the names of subjects that the checkpoint was trained on, or chosen by"
        log.warn(f"{said}: what it says of them is no test", subjects=known[:5], of=len(known), path=path)
