"""Checkpoint files: written at once, and read as plain data."""

import os
import struct
import zipfile

import torch

from ..config import UserError, one_line
from ..runtime import files
from . import unpickling

# what `zipfile`, `pickletools` and torch raise on damaged, foreign and random bytes
_BUILT_IN = (OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, ImportError)
_OTHERS = (AssertionError, MemoryError, OverflowError, struct.error, zipfile.BadZipFile)
_UNREADABLE = (*_BUILT_IN, *_OTHERS)


def save(path, content, previous=None):
    """Write the dict `content` to `path`: after a crash at any moment, `path` holds either the old or the new file.

    content: nested dicts, lists and tuples of tensors, text, numbers, bools and None; TypeError for anything else,
        which `load` would refuse.
    previous: where the file that was at `path` is kept; a crash may then leave only that one.

    UserError when the file cannot be written; the old file then survives.
    """
    if not isinstance(content, dict):
        raise TypeError(f"content: got {type(content).__name__}, wanted dict")
    _check_plain(content, "content")
    try:
        with files.replacing(os.path.abspath(path), large=True, previous=previous) as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # a full disk is a RuntimeError of torch's writer
        why = one_line(error)[:200]
        raise UserError(f"cannot write the checkpoint {path}: {why}; check the folder and its free space") from error


def load(path):
    """The dict that `save` wrote to `path`, on the CPU. Raises UserError for a damaged or foreign file."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file, wanted a checkpoint") from error
    except _UNREADABLE as error:
        read(path)  # which says what other files are
        raise UserError(f"{path}: not a readable checkpoint: {one_line(error)[:200]}") from error
    if damaged:
        raise UserError(f"{path}: not a readable checkpoint: the checksum of its part {damaged} is wrong")
    return read(path)


def read(path):
    """The dict in any file of torch.save, on the CPU, with `unpickling.Placeholder`s for what is no plain data."""
    try:
        content = unpickling.read(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, wanted a checkpoint, as the best.pt of a fold") from None
    except unpickling.Unreadable as error:
        raise UserError(f"{path}: {one_line(error)[:300]}") from error
    except _UNREADABLE as error:
        raise UserError(f"{path}: not a readable checkpoint: {one_line(error)[:200]}") from error
    if isinstance(content, unpickling.Placeholder):
        got = f"a pickled object ({ascii(content.name[:100])})"
        raise UserError(f"{path}: holds {got}, wanted a dict of tensors: save its state_dict() instead")
    if not isinstance(content, dict):
        got = type(content).__name__
        raise UserError(f"{path}: holds a {got}, wanted a dict of tensors (a checkpoint or state dict)")
    return content


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
