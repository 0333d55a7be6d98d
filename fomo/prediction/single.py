"""One case into one file, as the FOMO challenge wants it."""

import math
import os
import time

from .. import tasks
from ..config import UserError, as_user_error
from ..data import cache, listing
from ..runtime import files
from .budget import infer_within
from .folder import write_volume
from .inputs import case_from_channels
from .members import answer


def predict_to_file(members, given, path, log, corrected=False, deadline=None):
    """Predict one case into a file; returns the row.

    given: {channel name: path}. Of the alternatives 'a|b' the first that is given is taken. Channels that the
        checkpoint does not know are left out, and logged.
    path: a .nii.gz for a mask, else a text file for one number in full precision: the probability, or the prediction.
    corrected: the bias-corrected prediction instead of the raw one.
    deadline: of time.perf_counter, which the networks end by; see `budget.infer_within`. None: they take their time.
    """
    config, task = members[0].config, members[0].task
    if task.single is None:
        got = "got a network of several targets or labels, wanted one of a single answer"
        raise UserError(f"{members[0].path}: {got}: use tools/predict.py")
    is_volume, of = task.single in task.volumes, f"task.type={config.task.type}"
    if path.endswith((".nii", ".nii.gz")) != is_volume:
        wanted = f"a .nii.gz file for the {task.single}" if is_volume else "a text file for one number"
        raise UserError(f"--output: got {path}, wanted {wanted}: the checkpoints are of {of}")
    if corrected and "corrected" not in task.scored:
        wanted = " or ".join(name for name, other in tasks.TASKS.items() if "corrected" in other.scored)
        raise UserError(f"--corrected: got checkpoints of {of}, wanted {wanted}")
    data, used = config.data, _used(config.data.channels, given, log)
    case = case_from_channels(data.channels, used, optional=data.optional_channels)
    listing.warn_missing(data, [case], log)
    try:
        image, background, geometry = cache.load(case, config.data, tasks.wanted(config))
        left_s = math.inf if deadline is None else deadline - time.perf_counter()
        asked, said = infer_within(members, case, image, background, left_s, log)
        row, volumes = answer(asked, said, geometry)
    except (ValueError, OSError) as error:
        raise UserError(str(error)) from error
    if corrected and not math.isfinite(row["corrected"]):
        undefined = "it is undefined by these checkpoints' validation cases"
        raise UserError(f"--corrected: {undefined}, wanted the raw prediction")
    with as_user_error(f"cannot write {path}", OSError):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        if is_volume:
            write_volume(path, volumes[task.single], case, geometry)
        else:
            files.write_text(path, f"{row['corrected' if corrected else task.single]!r}\n")
    if row.get("predicted_voxels") == 0:
        log.warn("the predicted mask is empty", output=path)
    return row


def _used(channels, given, log):
    """Those of {channel name: path} that the checkpoint sees."""
    firsts = (next((name for name in text.split("|") if name in given), None) for text in channels)
    used = {name: given[name] for name in firsts if name is not None}
    left_out = sorted(given.keys() - used.keys())
    if left_out:
        log.warn("channels left out", channels=left_out, used=list(used))
    return used
