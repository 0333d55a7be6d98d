"""The phantom source: synthetic heads, made on first use in the layout of the task, or as a table."""

import os
from dataclasses import replace

from ...config import UserError, as_user_error
from ..phantoms import heads
from . import table
from .sessions import FOMO1, FOMO2, FOMO3
from .source import VOLUME_LABELS, Source

_COLUMNS = dict(id_column="id", subject_column="PatientID", mask_column="mask", fold_column="fold")  # of its table
# which data set has labels of a kind, and its layout
_LAYOUTS = {"class": (1, FOMO1), "mask": (2, FOMO2), "number": (3, FOMO3), "nothing": (1, FOMO1)}


def list_phantom(data, wanted, labels, log=None):
    """The cases of a phantom data set. A pretraining gets other heads than those that are tested afterwards."""
    root = data.root or (data.cache and os.path.join(data.cache, "phantom"))
    if root is None:
        raise UserError("data.root: got none, wanted the folder in which the phantom data set is generated")
    kind = "nothing" if wanted.pretraining else wanted.kind
    number, layout = ("table", None) if data.phantom_layout == "table" else _LAYOUTS.get(kind, (None, None))
    if number is None:
        raise UserError(f"data.phantom_layout: got {data.phantom_layout}, wanted table: no other has {kind}")
    name = ("heads" if layout is None else f"task{number}") + ("_pretraining" if wanted.pretraining else "")
    folder = os.path.join(root, f"{name}_{data.phantom_cases}x{data.phantom_size}_v{heads.VERSION}")
    if not os.path.isdir(folder):
        with as_user_error(f"data.root: cannot make {folder}"):
            heads.make(folder, number, data.phantom_cases, data.phantom_size, seed=int(wanted.pretraining))
    if layout is None:
        return table.list_table(replace(data, csv=os.path.join(folder, "table.csv"), **_COLUMNS), wanted, labels)
    return layout.list(replace(data, root=folder), wanted, labels)


PHANTOM = Source(
    list=list_phantom,
    gives=VOLUME_LABELS,
    needs=((), ""),  # without a root it is made in the cache
    geometry=True,
    keys=("data.phantom_layout", "data.phantom_cases", "data.phantom_size"),  # the columns of its table are its own
    columns=lambda data: data.phantom_layout == "table",
    number=("age", "years"),
)
