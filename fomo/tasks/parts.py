"""The parts of a multitask config: what each learns, from which columns, and how much it counts."""

import re
from types import SimpleNamespace
from typing import NamedTuple

from ..config import Task as Section
from ..config import UserError, listed, section_of
from ..data.cases import Wanted

TYPES = ("segmentation", "classification", "multilabel", "regression")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")  # it begins columns and metrics, which an underscore ends
# keys of the section `task` that all parts may have; the others are those of their kind
_SHARED = (
    *("type", "targets", "loss", "focal_gamma", "focal_alpha", "gamma_neg", "gamma_pos", "clip"),
    *("tversky_alpha", "tversky_beta"),
)


class Part(NamedTuple):
    """A part: its section `task`, its weight in the loss, and the places of its targets among all columns."""

    name: str
    section: Section
    weight: float
    places: tuple[int, ...]
    kind: type  # of its task

    @property
    def dense(self):
        """Whether it learns a mask."""
        return self.kind.mode == "segmentation"

    def case(self, case):
        """A case as the part's task knows it: with the targets of its columns alone."""
        return _Case(case, self)

    def recorded(self, cases):
        """{id: facts} of splits.json, likewise."""
        return {id: {**facts, **self._of(facts.get("target"), facts.get("labels"))} for id, facts in cases.items()}

    def _of(self, target, labels):
        if self.dense or target is None:
            return {"target": target, "labels": ()}
        chosen = tuple(target[place] for place in self.places)
        names = tuple(labels[place] for place in self.places) if labels else ()
        single = len(chosen) == 1 and self.kind.reads != "flags"
        return {"target": chosen[0] if single else chosen, "labels": () if "" in names else names}

    def target(self, batch):
        """The targets (B,) or (B, n) of a batch's (B, columns)."""
        single = len(self.places) == 1 and self.kind.reads != "flags"
        return batch[:, self.places[0]] if single else batch[:, list(self.places)]


class _Case(SimpleNamespace):
    """A case whose targets are those of a part; all else is the case's."""

    def __init__(self, case, part):
        own = part._of(case.target, case.labels)
        if part.dense:  # whether there is foreground
            own["target"] = float(bool(getattr(case, "foreground_mm3", None)))
        super().__init__(case=case, **own)

    def __getattr__(self, name):
        return getattr(self.__dict__["case"], name)


def read(section, tasks):
    """The Parts of a config's section `task`, in their order. Raises UserError for what is mistyped or unknown.

    tasks: {name: class} of all tasks.
    """
    if not section.parts or len(section.parts) < 2:
        got = f"got {len(section.parts or {})} parts"
        raise UserError(f"task.parts: {got}, wanted two or more, for example {{lesion: {{type: segmentation}}, ...}}")
    found, columns = [], []
    for name, values in section.parts.items():
        where = f"task.parts.{name}"
        if not _NAME.fullmatch(name):
            raise UserError(f"{where}: got the name {name[:80]!r}, wanted letters and digits: columns begin with it")
        if not isinstance(values, dict):
            raise UserError(f"{where}: got {values!r}, wanted a section with type, and targets but for a mask")
        found.append(_part(name, dict(values), where, columns, tasks))
    dense = [part.name for part in found if part.dense]
    if len(dense) > 1:
        raise UserError(f"task.parts: got several masks ({', '.join(dense)}), wanted one: its classes can be many")
    return found


def _part(name, values, where, columns, tasks):
    weight = values.pop("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
        raise UserError(f"{where}.weight: got {weight!r}, wanted a number above 0")
    section = section_of(Section, values, f"{where}.", {f"{where}.type": TYPES})
    kind = tasks[section.type].variant(section)
    own = {key.removeprefix("task.") for key in (*kind.options, *kind.own_keys())} | set(_SHARED)
    if foreign := sorted(set(values) - own - {"type"}):
        raise UserError(f"{where}.{foreign[0]}: got {values[foreign[0]]!r}, which type={section.type} does not read")
    if section.loss not in ("auto", *kind.losses):
        raise UserError(f"{where}.loss: got {section.loss}, wanted one of auto, {', '.join(kind.losses)}")
    if section.evidence != "none":
        raise UserError(f"{where}.evidence: got {section.evidence}, wanted none: make the mask a part of its own")
    least, most, text = kind.columns
    if not least <= len(section.targets) <= most:
        raise UserError(f"{where}.targets: got {list(section.targets)}, wanted {text}")
    if twice := sorted(
        {column for column in section.targets if section.targets.count(column) > 1 or column in columns}
    ):
        raise UserError(f"{where}.targets: got {listed(twice)} twice, wanted each column in one part")
    places = tuple(range(len(columns), len(columns) + len(section.targets)))
    columns += section.targets
    return Part(name, section, float(weight), places, kind)


def wanted(parts):
    """What the parts read of each case, together."""
    targets = tuple(column for part in parts for column in part.section.targets)
    kinds = tuple(part.kind.reads for part in parts for _ in part.section.targets)
    mask = next((part for part in parts if part.dense), None)
    classes = 2 if mask is None else mask.section.classes
    return Wanted("several", targets, classes, kinds=kinds, mask=mask is not None)
