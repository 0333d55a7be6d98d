"""The challenge's containers, FOMO25's and FOMO26's: one case in, one file out, checked as the challenge checks it."""

import math
import os
import time
from typing import NamedTuple

from ..config import UserError
from ..runtime import lazy
from . import members, single

np = lazy.Module("numpy")
nibabel = lazy.Module("nibabel")

# names of one sequence: the challenge's files, its two editions and its containers do not agree on them
SPELLINGS = (("dwi_b1000", "dwi"), ("t1", "t1w"), ("t2", "t2w"))
CHANNELS = ("flair", "dwi_b1000", "dwi", "adc", "swi", "t2s", "t1", "t1w", "t2", "t2w")
_SHARE = 0.75  # of the time, which the networks may end by: writing a mask takes some more


class Wish(NamedTuple):
    """What a container is to answer."""

    answer: str  # the task's one answer of a case, see `tasks.task.Task.single`
    channels: tuple[str, ...]  # that the task has, by one of their SPELLINGS; not all are needed
    classes: int | None = None  # of a mask
    low: float = -math.inf  # limits of a number
    high: float = math.inf


EMBEDDED = (6, 7)  # tasks that want a vector, which no head makes
FEATURES = "multistage"  # of the vectors: it was better than the bottleneck for those who entered
# the tasks that answer with a trained head
FOMO26 = {
    1: Wish("probability", ("flair", "dwi", "adc", "swi", "t2s"), low=0.0, high=1.0),
    2: Wish("mask", ("flair", "dwi", "swi", "t2s"), classes=2),
    3: Wish("prediction", ("t1",)),
    4: Wish("mask", ("t2",), classes=3),
    5: Wish("probability", ("t1",), low=0.0, high=1.0),
}


def check_arguments(task, given, scan):
    """Raise UserError where the number of a task (None: unknown), channels given and the one scan do not go together.

    given: names of channels. scan: the path of --input, or None.
    """
    if task is not None and task not in (*FOMO26, *EMBEDDED):
        raise UserError(f"--task: got {task}, wanted one of {', '.join(map(str, (*FOMO26, *EMBEDDED)))}")
    if scan and given:
        raise UserError(f"--input and --{sorted(given)[0]}: got both, wanted the channels of a task, or one scan")
    if scan and task in FOMO26:
        wanted = f"wanted {_flags(FOMO26[task].channels)}; --input is for {' and '.join(map(str, EMBEDDED))}"
        raise UserError(f"--task: got {task} with --input, {wanted}")
    if task in EMBEDDED and not scan:
        raise UserError(f"--task: got {task} without --input, wanted one scan of any sequence as --input")
    spare = sorted(set(given) - _spelled(FOMO26[task].channels)) if task in FOMO26 else ()
    if spare:
        raise UserError(f"--{spare[0]}: task {task} has no such channel, wanted {_flags(FOMO26[task].channels)}")


def _flags(channels):
    return ", ".join(f"--{name}" for name in channels)


def _spelled(channels):
    """The set of all names of these channels."""
    return {*channels, *(name for names in SPELLINGS if {*names} & {*channels} for name in names)}


def predict(
    given, output, places, log, task=None, mirror=None, corrected=False, device=None, begun=None, budget_s=None
):
    """Predict one case into the file `output`, and check it.

    given: {channel: path}, in any of the SPELLINGS. places: checkpoints, run folders or folders of them.
    task: its number in FOMO26, whose Wish the checkpoints must fit; None: whatever they answer.
    mirror, corrected, device: see `members.load_members` and `single.predict_to_file`.
    budget_s: seconds from `begun` (of time.perf_counter) on, see `budget.infer_within`; None: as long as it takes.
    """
    begun = time.perf_counter() if begun is None else begun
    check_arguments(task, given, None)
    paths = [path for place in places for path in members.find_checkpoints(place)]
    networks = members.load_members(paths, members.choose_device(device), mirror)
    wish = None if task is None else _fitting(task, networks)
    given = as_known(given, networks[0].config.data.channels)
    deadline = None if budget_s is None else begun + _SHARE * budget_s
    row = single.predict_to_file(networks, given, output, log, corrected, deadline)
    if wish is not None:
        check(output, wish, given.values())
    log("predict", output=output, **row, **members.describe(networks), seconds=time.perf_counter() - begun)


def embed(path, output, place, log, device=None, begun=None):
    """Write the vector of the scan `path` to the .npy file `output`, by the checkpoint that `place` stands for."""
    from . import embeddings  # torch, which a wrong argument does not wait for

    begun = time.perf_counter() if begun is None else begun
    embedder = embeddings.load_embedder(members.find_checkpoint(place), members.choose_device(device), FEATURES)
    numbers = embeddings.embed_to_file(embedder, path, output, log)
    log("predict", output=output, numbers=numbers, seconds=time.perf_counter() - begun)


def check_checkpoints(place, task):
    """Raise UserError where the checkpoints of a container cannot answer its task; for its definition file."""
    from . import embeddings

    device = members.choose_device("cpu")
    check_arguments(task, (), "any" if task in EMBEDDED else None)
    if task in EMBEDDED:
        embeddings.load_embedder(members.find_checkpoint(place), device, FEATURES)
    else:
        _fitting(task, members.load_members(members.find_checkpoints(place), device))


def _fitting(number, networks):
    """The Wish of a task, which the networks answer from channels that it has."""
    wish, task = FOMO26[number], networks[0].task
    classes = task.learned().get("classes") if task.single == "mask" else None
    if (task.single, classes) != (wish.answer, wish.classes):
        got = f"{task.single or 'several answers'}{f' of {classes} classes' if classes else ''}"
        wanted = f"{wish.answer}{f' of {wish.classes} classes' if wish.classes else ''}"
        raise UserError(f"--task: got {number}, and {networks[0].path} answers {got}, wanted checkpoints of {wanted}")
    known, channels = _spelled(wish.channels), networks[0].config.data.channels
    if other := [text for text in channels if not known & set(text.split("|"))]:
        got = f"got {number}, and {networks[0].path} reads the channel '{other[0]}', which the task does not have"
        raise UserError(f"--task: {got}, wanted checkpoints of {', '.join(wish.channels)}")
    return wish


def as_known(given, channels):
    """{channel: path} with the names that a checkpoint's `channels` have; those it does not have stay as they are."""
    known = {name for text in channels for name in text.split("|")}
    renamed = dict(given)
    for names in SPELLINGS:
        there = [name for name in names if name in given]
        if len(there) > 1:
            raise UserError(f"--{there[0]} and --{there[1]}: got both, wanted one: they name the same sequence")
        if there and there[0] not in known:
            name = next(filter(known.__contains__, names), there[0])
            renamed[name] = renamed.pop(there[0])
    return renamed


def check(path, wish, inputs):
    """Raise UserError, and remove the file, unless it is what the challenge's validator takes; inputs: paths."""
    try:
        problem = _problem_of_mask(path, wish.classes, inputs) if wish.classes else _problem_of_number(path, wish)
    except (OSError, ValueError) as error:
        problem = f"cannot read it: {error}"
    if problem is not None:
        if os.path.exists(path):
            os.remove(path)
        raise UserError(f"{path}: the answer is not what the challenge takes: {problem}")


def _problem_of_number(path, wish):
    with open(path, encoding="utf-8") as file:
        words = file.read().split()
    if len(words) != 1:
        return f"got {len(words)} words, wanted one number"
    value = float(words[0])
    if not (math.isfinite(value) and wish.low <= value <= wish.high):
        limits = f" from {wish.low:g} to {wish.high:g}" if math.isfinite(wish.low) else ""
        return f"got {value:g}, wanted a finite number{limits}"
    return None


def _problem_of_mask(path, classes, inputs):
    image = nibabel.load(path)
    array, affine = np.asanyarray(image.dataobj), image.affine
    if not np.isfinite(affine).all() or not affine.any():
        return f"got the affine {affine.tolist()}, wanted a finite one that is not zero"
    shapes = {nibabel.load(source).shape[:3] for source in inputs if not os.path.isdir(source)}
    if array.ndim != 3 or (shapes and array.shape not in shapes):
        return f"got shape {array.shape}, wanted that of an input: {sorted(shapes)}"
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= classes:
        return f"got {array.dtype} from {array.min()} to {array.max()}, wanted whole numbers from 0 to {classes - 1}"
    return None
