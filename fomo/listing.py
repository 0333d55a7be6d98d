"""What was found before anything is trained: one `data` line in which a wrong folder or column of labels shows."""

import re

import numpy as np


def describe(config, task, listed, log):
    """Log the `data` line of the cases `listed`, with how many are of each class or the range of the target."""
    found = _targets(config.task.targets, task.stratum_kind, [case for case in listed if case.target is not None])
    subjects = len({case.subject for case in listed})
    example = listed[0].images[0].path
    log("data", source=config.data.source, cases=len(listed), subjects=subjects, **found, example=example)
    unknown = sum(not case.images[0].has_geometry for case in listed)
    if unknown and config.data.source != "slices":
        log.warn(".npy files have no orientation and voxel size: taken as RAS with 1 mm voxels", cases=unknown)


def _targets(columns, kind, labelled):
    """{name: count} of the labels or of the classes of each target, or the range of the target; kind: task.stratum_kind."""
    if not labelled:
        return {"labelled": 0}
    if kind == "multilabel":
        positives = np.array([case.target for case in labelled]).sum(axis=0).astype(int).tolist()
        return {_key(name): count for name, count in zip(columns, positives)}
    if kind == "continuous":
        targets = [case.target for case in labelled]
        return {"lowest": min(targets), "mean": sum(targets) / len(targets), "highest": max(targets)}
    several = isinstance(labelled[0].target, tuple)
    found = {}
    for place, column in enumerate(columns if several else ("class",)):
        targets = [case.target[place] if several else case.target for case in labelled]
        names = [case.labels[place] if case.labels else f"{target:g}" for case, target in zip(labelled, targets)]
        for _, name in sorted(set(zip(targets, names))):
            found[_key(f"{column}_{name}")] = names.count(name)
    return found


def _key(text):
    """`text` as a key of the log, which are words."""
    return re.sub(r"\W+", "_", text)
