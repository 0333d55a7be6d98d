"""Weights of a file for a network, by declaration: every tensor fits, or was declared, or is an error."""

from typing import NamedTuple

import torch

from ..config import UserError
from .saving import read

_STATE_KEYS = ("model", "state_dict", "net")  # our own files, Lightning, SuPreM and Models Genesis
_PARTS = {"state_dict": "model.", "net": "backbone."}  # where the network is, in a file that holds more than one
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")  # DDP, torch.compile, LightningModule, SuPreM
_TEACHER = "teacher.backbone."
_TOWERS = ("visual.", "visual_transformer.", "image_encoder.", _TEACHER)  # CLIP, CT-CLIP; DINO: the part wanted
_COUNTER = "num_batches_tracked"  # of a batch norm; files from before torch 0.4.1, as torchvision's, have none


class LoadReport(NamedTuple):
    """What became of every tensor: names in the network, and of those `ignored` in the file."""

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    adapted: tuple[str, ...]
    ignored: tuple[str, ...]
    subjects: tuple[str, ...] = ()  # whom the file says it was trained on

    def counts(self):
        """{"loaded": .., "new": .., "adapted": .., "ignored": ..}, as in the log's `weights` line."""
        return {name: len(getattr(self, name)) for name in ("loaded", "new", "adapted", "ignored")}


def load_weights(model, path, allow_new=None, stem="repeat", allow_unused=None):
    """Copy the weights in the file `path` into `model` and return a LoadReport; on any error the model is untouched.

    The file is one of ours (`model`), Lightning's (`state_dict`), SuPreM's (`net`) or a plain state dict. Prefixes that
    all tensors share, as wrappers of the network leave them (`model.`, `module.`, `_orig_mod.`, `backbone.`, in any
    nesting), are taken off. Of a file that holds more than the network, the other tensors are reported as ignored: the
    network is the part below `model.` in a Lightning file, below `backbone.` in SuPreM's, below `visual.`,
    `visual_transformer.` or `image_encoder.` in a model of images and text (CLIP), or the teacher's backbone of DINO.

    Every tensor of the model must be in the file, with its shape, except
    - allow_new: prefixes (None: model.new_prefixes) whose tensors may be missing or misshapen; such a prefix stays new
      as a whole. If only some of its tensors are missing, that is an error. By default also model.decoder_prefixes, if
      the file has no tensor below any of them: it holds an encoder alone.
    - the stem (model.stem), if only its number of input channels differs, K in the file and C here:
      "repeat": an image repeated in all channels activates as before: channel c gets the file's channel c mod K times
      K/C (exact if K divides C) or, with fewer channels than the file, the sum of its channels c, c + C, c + 2C ...;
      "mean": every channel gets the mean of the file's channels; "reinit": it stays new.
    - the counters of batch norms, which nothing reads, if the file has none at all.
    Every tensor of the file must be used, except for the prefixes allow_unused (None: model.unused_prefixes).

    UserError for anything else missing, unexpected or misshapen, for numbers that are not finite, for weights that are
    all zero, when nothing would be loaded, and for a file that holds more than tensors and plain data unless `trust`
    (config key weights.trust) admits that reading it may run code.
    """
    if stem not in ("repeat", "mean", "reinit"):
        raise ValueError(f"stem: got {stem!r}, wanted 'repeat', 'mean' or 'reinit'")
    own, content = model.state_dict(), read(path)
    file, foreign = _find_tensors(content, own, path)
    allow_new = _may_be_new(model, file) if allow_new is None else allow_new
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
    subjects = content["subjects"] if isinstance(content.get("subjects"), list) else ()
    return LoadReport(loaded, tuple(new), adapted, (*foreign, *unused), tuple(subjects))


def _find_tensors(content, own, path):
    """({name: tensor} as the network names them, names of the tensors that belong to other parts of the file)."""
    key = next((key for key in _STATE_KEYS if isinstance(content.get(key), dict)), None)
    state, foreign = content[key] if key else content, []
    _check_tensors(state, key, path)
    while own.keys().isdisjoint(state):
        prefix = _outermost(state, _PARTS.get(key))
        if prefix is None:
            names = f"it has {_listed(list(state), 3)}; wanted {_listed(list(own), 3)}"
            raise UserError(f"{path}: none of its {len(state)} tensors is in the network: {names}")
        foreign += [name for name in state if not name.startswith(prefix)]
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state, foreign


def _check_tensors(state, key, path):
    wrong = [str(n) for n, value in state.items() if not (isinstance(n, str) and isinstance(value, torch.Tensor))]
    if wrong or not state:
        where = f"its '{key}'" if key else f"a file without {', '.join(_STATE_KEYS)}"
        got = f"{len(wrong)} entries that are no tensors: {_listed(wrong)}" if wrong else "nothing in it"
        raise UserError(f"{path}: {where} should be named tensors; got {got}")


def _outermost(names, part):
    """The prefix to take off next: the `part` that is the network, a wrapper of all names, or a tower; or None."""
    if part and any(name.startswith(part) for name in names):
        return part
    wrapper = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in names)), None)
    return wrapper or next((tower for tower in _TOWERS if any(name.startswith(tower) for name in names)), None)


def _may_be_new(model, file):
    """The prefixes that the model declares: new_prefixes and, if the file holds an encoder alone, decoder_prefixes."""
    decoder = tuple(getattr(model, "decoder_prefixes", ()))
    encoder_alone = not any(name.startswith(decoder) for name in file)
    return (*getattr(model, "new_prefixes", ()), *(decoder if encoder_alone else ()))


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
    shapes = {name: f"{name} (file {list(file[name].shape)}, network {list(own[name].shape)})" for name in misshapen}
    problems = {
        "missing": [name for name in own if name not in file and name not in new],
        "unexpected": [name for name in unused if not name.startswith(permitted)],
        "misshapen": [shapes[name] for name in misshapen if name not in new],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names)
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


def _listed(names, limit=8):
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:limit]) + more


def downstream(model):
    """{name: tensor} of a best.pt's `model` that other networks start from: all, or the teacher of a DINO run."""
    teacher = {name.removeprefix(_TEACHER): tensor for name, tensor in model.items() if name.startswith(_TEACHER)}
    return teacher or model


def warn_of_known(subjects, trained_on, path, log):
    """Write a `warn` line if `subjects`, who are to be tested, have names that the checkpoint `path` was trained on."""
    if known := sorted(set(subjects) & set(trained_on)):
        said = "subjects have the names of subjects that the checkpoint was trained on, or chosen by"
        log.warn(f"{said}: what it says of them is no test", subjects=known[:5], of=len(known), path=path)
