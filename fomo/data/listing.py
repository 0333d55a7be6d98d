"""What was found: one `data` line in the log, which shows a wrong folder or column before anything is trained."""

import collections
import contextlib
import re

import numpy as np

from ..config import UserError
from . import sources
from .cases import NOT_ORIENTED, unoriented

_FEW_NUMBERS = 8
_FAR = 3.0  # quartile ranges beyond the quartiles
_RARE = 0.2  # a larger share of the cases is no exception


def describe(config, wanted, listed, log):
    """Log the `data` line of the cases `listed`: how many are of each class, or the range of the target."""
    values = {"source": config.data.source, "cases": len(listed), "subjects": len({case.subject for case in listed})}
    values |= counts(wanted, listed, taken=(*values, "example"))
    if lacking := missing(config.data, listed):
        values["missing"] = _counted(lacking)
    values.update(sources.of(config.data).found(config.data, listed))
    log("data", **values, example=listed[0].files[0].path)
    if sources.of(config.data).geometry:
        warn_without_geometry(listed, log)
    _warn_of_unused_folds(config, wanted, listed, log)
    if wanted.kind == "number":
        labelled = [case for case in listed if case.target is not None]
        for name, targets in _numbers(wanted, labelled):
            if set(targets.tolist()) == {0, 1}:
                said = "all targets are 0 or 1, which look like classes: is it another task's folder or column?"
                log.warn(said, **({"target": name} if name else {}), cases=len(targets))
            _warn_of_codes(labelled, targets, {"target": name} if name else {}, log)


def counts(wanted, cases, taken=()):
    """{name: number} of the cases of each class, or the range of the target; taken: names that are other things."""
    found = {}
    for text, value in _targets(wanted, [case for case in cases if case.target is not None]):
        name = re.sub(r"\W+", "_", text)  # a key of the log is a word
        while name in found or name in taken:
            name += "_"
        found[name] = value
    return found


def _numbers(wanted, labelled):
    """[(name, or "" of a single one, (n,) values)] of the numbers that are learned."""
    columns = np.array([case.target for case in labelled], float).reshape(len(labelled), -1).T
    return list(zip(wanted.targets if len(columns) > 1 else ("",), columns))


def _warn_of_codes(cases, targets, named, log):
    """Warn of numbers that stand for a missing one, as -9 and 999 do: apart from the others, by sign or by size."""
    if len(targets) < _FEW_NUMBERS:
        return
    low, high = np.percentile(targets, (25, 75))
    far = (high > low) & (np.maximum(low - targets, targets - high) > _FAR * (high - low))
    if (targets < 0).sum() <= _RARE * len(targets):
        far |= targets < 0
    if 0 < far.sum() <= _RARE * len(targets):
        values = sorted(set(targets[far].tolist()))[:5]
        example = cases[int(np.argmax(far))].id
        said = "targets lie far from all others: if they are codes for a missing value, leave these cases out"
        log.warn(said, **named, cases=int(far.sum()), values=values, example=example)


def _warn_of_unused_folds(config, wanted, cases, log):
    """Warn where a table has folds and others are made."""
    data, source = config.data, sources.of(config.data)
    named = data.train_folds or data.val_folds or data.test_folds
    if not (source.reads_csv and source.geometry) or config.cv.kind != "kfold" or named or wanted.pretraining:
        return
    folds = {case.fold for case in cases}
    if None not in folds:
        said = "the table's folds are not used, new ones are made (cv.kind=kfold)"
        advice = "cv.kind=fold_column tests on each of them, data.fold_column=none leaves them out"
        log.warn(f"{said}: {advice}", column=data.fold_column, folds=len(folds))


def warn_not_oriented(cases, log):
    """Warn of NIfTI files that do not say how their axes lie; it reads their headers."""
    found = []
    for case in cases:
        with contextlib.suppress(ValueError, OSError):  # of a file that cannot be read, which is said when it is
            found += unoriented(case.files)
    if found:
        log.warn(NOT_ORIENTED, files=len(found), example=found[0])


def warn_without_geometry(cases, log):
    """Warn of files that do not say how they lie in space."""
    if unknown := sum(not all(image.has_geometry for image in case.files) for case in cases):
        log.warn(".npy files have no orientation and voxel size: taken as RAS with 1 mm voxels", cases=unknown)


def missing(data, cases):
    """{channel: how many of the cases, or Prepared cases, lack it} of the data.optional_channels that some lack."""
    counts = collections.Counter(data.channels[channel] for case in cases for channel in case.missing)
    return {text: counts[text] for text in data.channels if counts[text]}


def missing_in(data, case):
    """The names of the channels that a case lacks, for a cell of a table."""
    return ", ".join(data.channels[channel] for channel in case.missing)


def check_optional(data, cases, drops, log):
    """Whether a training can teach a network what data.optional_channels promises; drops: whether it drops channels."""
    lacking = missing(data, cases)
    for text, count in lacking.items():
        if count == len(cases):
            wanted = "wanted at least one: is its name right? Else take it out of data.channels"
            raise UserError(f"data.optional_channels: no case has the channel '{text}', {wanted}")
    if data.optional_channels and not lacking and not drops:
        said = "data.optional_channels: no case lacks one and augment.parameters drops none"
        advice = "set augment.parameters={channel_dropout: {p: 0.5}}, or answers without them will be wrong"
        log.warn(f"{said}, so that the network does not learn to do without: {advice}", channels=data.optional_channels)


def warn_missing(data, cases, log):
    """Warn of cases that are answered without one of data.optional_channels."""
    if lacking := missing(data, cases):
        log.warn("cases lack an optional channel: they are answered without it", missing=_counted(lacking))


def _counted(lacking):
    return [f"{text}:{count}" for text, count in lacking.items()]


def _targets(wanted, labelled):
    """Yield (name, count) of the labels or of the classes of each target, or the range of the target."""
    if not labelled:
        yield "labelled", 0
    elif wanted.kind == "flags":
        yield from zip(wanted.targets, np.array([case.target for case in labelled]).sum(axis=0).astype(int).tolist())
    elif wanted.kind == "several":
        yield from _of_several(wanted, labelled)
    elif wanted.kind == "number":
        for name, targets in _numbers(wanted, labelled):
            yield from _range(f"{name}_" if name else "", targets.tolist())
    else:
        several = isinstance(labelled[0].target, tuple)
        for place, column in enumerate(wanted.targets if several else ("class",)):
            targets = [case.target[place] if several else case.target for case in labelled]
            names = [case.labels[place] if case.labels else f"{target:g}" for case, target in zip(labelled, targets)]
            for _, name in sorted(set(zip(targets, names))):
                yield f"{column}_{name}", names.count(name)


def _of_several(wanted, labelled):
    """Yield as `_targets` of columns of several kinds, and of a mask."""
    for place, (name, kind) in enumerate(zip(wanted.targets, wanted.kinds)):
        values = [case.target[place] for case in labelled]
        if kind == "number":
            yield from _range(f"{name}_", values)
        else:
            names = [case.labels[place] or f"{value:g}" for case, value in zip(labelled, values)]
            yield from ((f"{name}_{text}", names.count(text)) for _, text in sorted(set(zip(values, names))))
    if wanted.mask:
        yield "with_mask", sum(bool(case.foreground_mm3) for case in labelled)


def _range(begin, values):
    """Yield (name, number) of the range of a target."""
    yield from ((f"{begin}lowest", min(values)), (f"{begin}mean", sum(values) / len(values)))
    yield f"{begin}highest", max(values)
