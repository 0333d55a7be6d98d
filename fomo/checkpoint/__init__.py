"""Checkpoints: saved atomically, loaded as plain data; and weights of other runs, transferred by declaration.

A file never runs code unless the caller says `trust`, and no tensor is left out in silence: whatever does not fit, and
was not declared, is an error that lists the names.
"""

import os
import pickle
import re
import struct
import zipfile
from dataclasses import dataclass

import torch

from ..config import UserError

_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ImportError,
    AssertionError,
    MemoryError,
    OverflowError,
    struct.error,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
)  # fmt: skip  (what torch.load raises on damaged, foreign and random bytes)
_STATE_KEYS = ("model", "state_dict", "net")  # our own files, Lightning, SuPreM and Models Genesis
_PARTS = {"state_dict": "model.", "net": "backbone."}  # where the network is, in a file that holds more than one
_WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.")  # DDP, torch.compile, LightningModule, SuPreM
_TEACHER = "teacher.backbone."
_TOWERS = ("visual.", "visual_transformer.", "image_encoder.", _TEACHER)  # CLIP, CT-CLIP; DINO: the part wanted
_COUNTER = "num_batches_tracked"  # of a batch norm; files from before torch 0.4.1, as torchvision's, have none
_LISTED = 8


def save(path, content, previous=None):
    """Write the dict `content` to `path`: after a crash at any moment, `path` holds either the old or the new file.

    content: nested dicts, lists and tuples of tensors, text, numbers, bools and None; TypeError for anything else,
    which `load` would refuse. previous: where the file that was at `path` is kept; a crash may then leave only that
    one. Raises UserError when the file cannot be written; the file that was there then survives.
    """
    if not isinstance(content, dict):
        raise TypeError(f"content: got {type(content).__name__}, wanted dict")
    _check_plain(content, "content")
    folder, name = os.path.split(os.path.abspath(path))
    temporary = os.path.join(folder, f".{name}.tmp")  # one name: what a kill leaves behind is overwritten next time
    try:
        with open(temporary, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and os.path.exists(path):
            os.replace(path, previous)
        os.replace(temporary, path)
        if os.name == "posix":  # the new name must be on the disk, too
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's writer
        raise UserError(
            f"cannot write the checkpoint {path}: {_one_line(error)}; check the folder and its free space"
        ) from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def load(path):
    """The dict that `save` wrote to `path`, on the CPU. UserError, with the path, for a damaged or foreign file."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, wanted a checkpoint") from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a readable checkpoint: {_one_line(error)}") from error
    if damaged:
        raise UserError(f"{path}: not a readable checkpoint: the checksum of its part {damaged} is wrong")
    return _read(path, trust=False)


def warn_of_known(subjects, trained_on, path, log):
    """A `warn` line where `subjects`, who are to be tested, have the names of those that the checkpoint `path` knows."""
    known = sorted(set(subjects) & set(trained_on))
    if known:
        said = "subjects have the names of subjects that the checkpoint was trained on, or chosen by: what it says of them is no test"
        log.warn(said, subjects=known[:5], of=len(known), path=path)


def downstream(model):
    """{name: tensor} of a best.pt's `model` that other networks start from: of a DINO run the teacher's backbone, else all."""
    teacher = {name.removeprefix(_TEACHER): tensor for name, tensor in model.items() if name.startswith(_TEACHER)}
    return teacher or model


@dataclass(frozen=True)
class LoadReport:
    """What became of every tensor. loaded, new, adapted: names in the network; ignored: names in the file.

    subjects: those that the file says it was trained on.
    """

    loaded: tuple[str, ...]
    new: tuple[str, ...]
    adapted: tuple[str, ...]
    ignored: tuple[str, ...]
    subjects: tuple[str, ...] = ()

    def counts(self):
        """{"loaded": .., "new": .., "adapted": .., "ignored": ..}: the values of the log's `weights` line."""
        return {name: len(getattr(self, name)) for name in ("loaded", "new", "adapted", "ignored")}


def load_weights(model, path, allow_new=None, stem="repeat", allow_unused=None, trust=False):
    """Copy the weights in the file `path` into `model` and return a LoadReport; on any error the model is untouched.

    The file is one of ours (`model`), Lightning's (`state_dict`), SuPreM's (`net`) or a plain state dict. Prefixes that
    all its tensors share because something was wrapped around the network (`model.`, `module.`, `_orig_mod.`,
    `backbone.`, in any nesting) are taken off. In a Lightning file only `model.` is the network; tensors of other parts
    of the LightningModule (losses, metrics) are ignored, and reported so. The same goes for SuPreM, whose network is
    the part under `backbone.`, and for a model of images and text (CLIP): `visual.`, `visual_transformer.` or
    `image_encoder.`. Of a DINO run it is the teacher's backbone.

    Every tensor of the model must be in the file, with its shape, except
    - allow_new: prefixes (None: model.new_prefixes) whose tensors may be missing or misshapen; such a prefix stays new
      as a whole. One of which only some tensors are missing is an error. By default also model.decoder_prefixes, if the
      file has no tensor below any of them: it is of an encoder alone.
    - the stem (model.stem), if only its number of input channels differs, K in the file and C here:
      "repeat": an image repeated in all channels activates as before: channel c gets the file's channel c mod K times
      K/C (exact if K divides C) or, with fewer channels than the file, the sum of its channels c, c + C, c + 2C ...;
      "mean": every channel gets the mean of the file's channels; "reinit": it stays new.
    - the counters of batch norms, which nothing reads, where the file has none at all.
    Every tensor of the file must be used, except for the prefixes allow_unused (None: model.unused_prefixes).

    Raises UserError for anything else missing, unexpected or misshapen, for numbers that are not finite, for weights
    that are all zero, when nothing would be loaded, and for a file that holds more than tensors and plain data unless
    `trust` (config key weights.trust) admits that reading it may run code.
    """
    if stem not in ("repeat", "mean", "reinit"):
        raise ValueError(f"stem: got {stem!r}, wanted 'repeat', 'mean' or 'reinit'")
    decoder = tuple(getattr(model, "decoder_prefixes", ()) if allow_new is None else ())
    allow_new = tuple(getattr(model, "new_prefixes", ()) if allow_new is None else allow_new)
    allow_unused = tuple(getattr(model, "unused_prefixes", ()) if allow_unused is None else allow_unused)
    own = model.state_dict()
    content = _read(path, trust)
    file, ignored = _find_tensors(content, own, path)
    if decoder and not any(name.startswith(decoder) for name in file):
        allow_new += decoder

    def fits(name):
        return file[name].shape == own[name].shape or name in adapted

    counters = [name for name in own if name.endswith(_COUNTER)]
    new, adapted = set() if any(name in file for name in counters) else set(counters), ()
    stem_name = getattr(model, "stem", None)
    if stem_name in file and _differs_in_channels_only(file[stem_name], own[stem_name]):
        if stem == "reinit":
            new.add(stem_name)
        else:
            adapted = (stem_name,)
    declared = []
    for prefix in allow_new:
        group = [name for name in own if name.startswith(prefix)]
        missing = [name for name in group if name not in file]
        if group and (len(missing) == len(group) or any(name in file and not fits(name) for name in group)):
            new.update(group)
            declared.append(prefix)
    adapted = tuple(name for name in adapted if name not in new)

    unused = [name for name in file if name not in own or name in new]
    permitted = (*declared, *allow_unused, *new)
    problems = {
        "missing": [name for name in own if name not in file and name not in new],
        "unexpected": [name for name in unused if not name.startswith(permitted)],
        "misshapen": [
            f"{name} (file {list(file[name].shape)}, network {list(own[name].shape)})"
            for name in own
            if name in file and name not in new and not fits(name)
        ],
    }
    if not any(name in own for name in file):
        raise UserError(
            f"{path}: none of its {len(file)} tensors is in the network: it has {_listed(list(file), 3)}; "
            f"wanted {_listed(list(own), 3)}"
        )
    if any(problems.values()):
        found = "; ".join(f"{len(names)} {kind}: {_listed(names)}" for kind, names in problems.items() if names)
        raise UserError(f"{path}: weights of another network: {found}. Check model.name, model.width and task.type")
    exact = [name for name in own if name not in new and name not in adapted]
    if not exact:
        raise UserError(f"{path}: nothing would be loaded: all {len(own)} tensors of the network are declared new")

    values = {name: _converted(file[name], own[name].dtype, f"{path}: {name}") for name in (*exact, *adapted)}
    for name in adapted:
        values[name] = _adapt(values[name], own[name].shape[1], stem)
    kernels = [value for value in values.values() if value.ndim >= 2]
    if kernels and not any(value.any() for value in kernels):
        raise UserError(f"{path}: all {len(kernels)} weight tensors are zero: it was saved before it was filled")
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)
    return LoadReport(
        loaded=tuple(exact),
        new=tuple(name for name in own if name in new),
        adapted=adapted,
        ignored=(*ignored, *unused),
        subjects=tuple(content["subjects"]) if isinstance(content.get("subjects"), list) else (),
    )


def _read(path, trust):
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except _UNREADABLE as error:
        foreign = re.search(
            r"GLOBAL (\S+)", str(error)
        )  # torch: "Unsupported global: GLOBAL argparse.Namespace was not .."
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise UserError(
                f"{path}: it holds {foreign[1]}, not only tensors and plain data, and reading that can run code: "
                "if you trust where the file comes from, set weights.trust=true"
            ) from error
        raise UserError(f"{path}: not a readable checkpoint: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, wanted a dict of tensors (a checkpoint or state dict)"
        )
    return content


def _find_tensors(content, own, path):
    """({name: tensor} as the network names them, names that belong to other parts of what the network was in)."""
    key = next((key for key in _STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content[key] if key else content
    wrong = [
        str(name) for name, value in state.items() if not (isinstance(name, str) and isinstance(value, torch.Tensor))
    ]
    if wrong or not state:
        where = f"its '{key}'" if key else f"a file without {', '.join(_STATE_KEYS)}"
        got = f"{len(wrong)} entries that are no tensors: {_listed(wrong)}" if wrong else "nothing in it"
        raise UserError(f"{path}: {where} should be named tensors; got {got}")
    state, foreign = dict(state), []
    while not any(name in own for name in state):
        part = _PARTS.get(key)
        if part and any(name.startswith(part) for name in state):
            foreign += [name for name in state if not name.startswith(part)]
            state = {name: value for name, value in state.items() if name.startswith(part)}
        prefix = next((prefix for prefix in _WRAPPERS if all(name.startswith(prefix) for name in state)), None)
        prefix = prefix or next((tower for tower in _TOWERS if any(name.startswith(tower) for name in state)), None)
        if prefix is None:
            break
        foreign += [name for name in state if not name.startswith(prefix)]
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    return state, foreign


def _differs_in_channels_only(file, own):
    return (
        file.ndim == own.ndim
        and file.shape != own.shape
        and file.shape[1] > 0
        and file.shape[:1] + file.shape[2:] == own.shape[:1] + own.shape[2:]
    )


def _adapt(weight, channels, rule):
    """weight (out, K, ...) -> (out, channels, ...), by the rule of `load_weights`."""
    if rule == "mean":
        return weight.mean(dim=1, keepdim=True).expand(-1, channels, *weight.shape[2:])
    known = weight.shape[1]
    if channels < known:
        return torch.stack([weight[:, c::channels].sum(dim=1) for c in range(channels)], dim=1)
    return weight[:, torch.arange(channels) % known] * (known / channels)


def _converted(value, dtype, where):
    """`value` as `dtype`: only from float to float or within whole numbers and bools, and only finite numbers."""
    dense = value.layout == torch.strided and not (value.is_quantized or value.is_meta or value.is_complex())
    if not dense or value.is_floating_point() != dtype.is_floating_point:
        raise UserError(f"{where}: got {value.dtype} ({value.layout}), wanted dense numbers that fit {dtype}")
    value = value.to(dtype)
    broken = value.numel() - int(torch.isfinite(value).sum())
    if broken:
        raise UserError(
            f"{where}: {broken} of {value.numel()} numbers are not finite: the run that wrote it had diverged"
        )
    return value


def _check_plain(value, where):
    if isinstance(value, dict):
        for name, item in value.items():
            if type(name) not in (str, int):
                raise TypeError(f"{where}: got the key {name!r} ({type(name).__name__}), wanted text or a whole number")
            _check_plain(item, f"{where}[{name!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value) not in (torch.Tensor, torch.nn.Parameter, str, int, float, bool, type(None)):
        raise TypeError(f"{where}: got {type(value).__name__}, wanted tensors, text, numbers, lists and dicts only")


def _listed(names, limit=_LISTED):
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name if name.isprintable() else ascii(name) for name in names[:limit]) + more


def _one_line(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
