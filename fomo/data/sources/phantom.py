"""The phantom source: synthetic heads, made on first use in the layout of the task, or as a table."""

import os
from dataclasses import replace

from ...config import UserError, as_user_error
from ..phantoms import heads
from . import table
from .sessions import FOMO1, FOMO2, FOMO3, FOMO4, FOMO5
from .source import VOLUME_LABELS, Source

_COLUMNS = dict(id_column="id", subject_column="PatientID", mask_column="mask", fold_column="fold")  # of its table
_SOURCES = {1: FOMO1, 2: FOMO2, 3: FOMO3, 4: FOMO4, 5: FOMO5}  # that read the data set of a task
# the tasks that have labels of a kind; the first is that of data.phantom_layout=fomo
_TASKS = {"class": (1, 5), "mask": (2, 4), "number": (3,), "nothing": (1, 2, 3, 4, 5)}


def list_phantom(data, wanted, labels, log=None):
    """The cases of a phantom data set. A pretraining gets other heads than those that are tested afterwards."""
    root = data.root or (data.cache and os.path.join(data.cache, "phantom"))
    if root is None:
        raise UserError("data.root: got none, wanted the folder in which the phantom data set is generated")
    layout = data.phantom_layout
    number, edition = ("table", 25) if layout == "table" else _task(layout, wanted)
    name = "heads" if number == "table" else f"task{number}" if edition == 25 else layout
    name += "_pretraining" if wanted.pretraining else ""
    folder = os.path.join(root, f"{name}_{data.phantom_cases}x{data.phantom_size}_v{heads.VERSION}")
    if not os.path.isdir(folder):
        if not labels:  # it is asked about data that are there
            other = "table" if number == "table" else f"fomo{number}"
            wanted = f"a folder with {os.path.basename(folder)}, or other data by their source, as --source {other}"
            raise UserError(f"data.source=phantom: got no synthetic heads in {root}, wanted {wanted}")
        with as_user_error(f"data.root: cannot make {folder}"):
            sizes = data.phantom_cases, data.phantom_size
            heads.make(folder, number, *sizes, seed=int(wanted.pretraining), edition=edition)
    if number == "table":
        return table.list_table(replace(data, csv=os.path.join(folder, "table.csv"), **_COLUMNS), wanted, labels)
    return _SOURCES[number].list(replace(data, root=folder), wanted, labels)


def _task(layout, wanted):
    """(number of the challenge's task, its edition) of a data.phantom_layout that has what is wanted."""
    kind = "nothing" if wanted.pretraining else wanted.kind
    fit = _TASKS.get(kind, ())
    if layout == "fomo" and fit:
        return fit[0], 25
    if layout in (names := [f"fomo26_task{number}" for number in fit]):
        return fit[names.index(layout)], 26
    others = " or ".join([*names, "table"]) if layout != "fomo" else "table"
    raise UserError(f"data.phantom_layout: got {layout}, wanted {others}: no other has a {kind} to learn")


PHANTOM = Source(
    list=list_phantom,
    gives=VOLUME_LABELS,
    needs=((), ""),  # without a root it is made in the cache
    geometry=True,
    keys=("data.phantom_layout", "data.phantom_cases", "data.phantom_size"),  # the columns of its table are its own
    columns=lambda data: data.phantom_layout == "table",
    number=("age", "years"),
)
