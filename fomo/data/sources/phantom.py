"""The phantom source: synthetic heads, made on first use in the layout of the task, or as a table."""

import os
from dataclasses import replace

from ...config import UserError
from ..phantoms import heads
from . import sessions, table
from .source import VOLUME_LABELS, Source

_COLUMNS = dict(id_column="id", subject_column="PatientID", mask_column="mask", fold_column="fold")  # of its table
_LAYOUTS = {  # which data set has labels of a kind, and its layout
    "class": (1, sessions.fomo1),
    "mask": (2, sessions.fomo2),
    "number": (3, sessions.fomo3),
    "nothing": (1, sessions.fomo1),
}


def list_phantom(data, wanted, labels, log=None):
    """The cases of a phantom data set with labels of the kind that is wanted.

    A pretraining gets heads of its own, which are not those that are tested afterwards.
    """
    root = data.root or (data.cache and os.path.join(data.cache, "phantom"))
    if root is None:
        raise UserError("data.root: got none, wanted the folder in which the phantom data set is generated")
    tabular = _is_table(data)
    if not tabular and wanted.kind not in _LAYOUTS:
        raise UserError(f"data.phantom_layout: got {data.phantom_layout}, wanted table: no other has {wanted.kind}")
    number, layout = (1, sessions.fomo1) if wanted.pretraining else _LAYOUTS.get(wanted.kind, (None, None))
    name, kind = ("heads", "table") if tabular else (f"task{number}", number)
    name += "_pretraining" if wanted.pretraining else ""
    folder = os.path.join(root, f"{name}_{data.phantom_cases}x{data.phantom_size}_v{heads.VERSION}")
    if not os.path.isdir(folder):
        try:
            heads.make(folder, kind, data.phantom_cases, data.phantom_size, seed=int(wanted.pretraining))
        except OSError as error:
            raise UserError(f"data.root: cannot make {folder}: {error}") from error
    if tabular:
        return table.list_table(replace(data, csv=os.path.join(folder, "table.csv"), **_COLUMNS), wanted, labels)
    return layout(replace(data, root=folder), wanted, labels)


def _is_table(data):
    return data.phantom_layout == "table"


PHANTOM = Source(
    list=list_phantom,
    gives=VOLUME_LABELS,
    needs=((), ""),  # without a root it is made in the cache
    geometry=True,
    keys=("data.phantom_layout", "data.phantom_cases", "data.phantom_size", *table.KEYS),
    columns=_is_table,
)
