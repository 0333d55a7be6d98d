"""The cases of an audit: those of a run or, where these are slices, their scans."""

from typing import NamedTuple

from ..data import cache, facts
from ..tasks import Results


class Unit(NamedTuple):
    """A case, or a scan with its slices, as a task and an audit read it; parts: the Prepared cases that it is."""

    id: str
    subject: str
    target: object
    labels: tuple
    parts: tuple

    def facts(self, channels):
        """What `data.facts` says of it."""
        if self._is_scan:
            return facts.of_scan(self.parts, channels)
        return facts.of_case(self.parts[0], channels)

    @property
    def _is_scan(self):
        return self.parts[0].scan is not None

    def key(self):
        """What its facts depend on."""
        looked = self.parts
        if self._is_scan:
            slices = sorted(looked, key=lambda case: case.id)
            looked = [slices[place] for place in facts.chosen(len(slices))]
        files = [str(volume.path) for case in looked for volume in case.case.files]
        checksums = [text for case in looked for text in getattr(case, "checksums", ())]
        return [facts.VERSION, len(self.parts), cache.voxels(checksums), *files]


def units_of(cases):
    """[Unit] of Prepared cases, sorted by id."""
    found = {}
    for case in cases:
        found.setdefault(case.scan or case.id, []).append(case)
    return [Unit(id, own[0].subject, own[0].target, own[0].labels, tuple(own)) for id, own in sorted(found.items())]


def of_results(results):
    """The Results of the units alone."""
    return Results(sorted(results.scans or results.rows, key=lambda row: row["id"]))


def of_splits(splits, units):
    """[{part: ids of units}] of each fold."""
    unit = {case.id: one.id for one in units for case in one.parts}
    return [{part: list(dict.fromkeys(unit[id] for id in ids)) for part, ids in split.items()} for split in splits]
