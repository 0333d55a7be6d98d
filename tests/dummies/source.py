"""A source of one file: a folder of CASE/CHANNEL.nii.gz with a file `number` in each case."""

import pathlib

from fomo.data.cases import Case, Volume
from fomo.data.sources.source import Source


def list_toys(data, wanted, labels, log=None):
    cases = []
    for folder in sorted(pathlib.Path(data.root).iterdir()):
        images = tuple(Volume(str(folder / f"{channel}.nii.gz")) for channel in data.channels)
        target = float((folder / "number").read_text()) if labels and wanted.kind == "number" else None
        cases.append(Case(folder.name, folder.name.partition("_")[0], images, None, target, None))
    return cases


TOYS = Source(
    list=list_toys,
    gives=("number", "nothing"),
    needs=(("data.root",), "the folder of the toys"),
    geometry=True,
    keys=(),
)


def register(monkeypatch):
    from fomo.data import sources

    monkeypatch.setitem(sources.SOURCES, "toys", TOYS)
