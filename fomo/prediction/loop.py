"""The loop of every prediction: what is read differs (`readers`), and all else stands here.

Reading, the networks and writing overlap: a network waits for no compression. A scan goes through the same functions as
in training, so that a fold's checkpoint gives its test cases the very numbers that cross-validation stored.
"""

import collections
import time
from concurrent.futures import ThreadPoolExecutor

from .. import checkpoint
from ..config import UserError, as_user_error, one_line
from ..data import listing
from ..training import memory, optimization
from .members import describe

_BEHIND = 3  # items that are being written behind the one that the networks are at
_HELD = 2**30  # bytes of what the networks said of them: above, the networks wait until they are written


def predict(reader, folder, log, overwrite=False):
    """Predict the items of a reader into a PredictionFolder, which must be of the same members.

    `PredictionFolder.begin` says what is kept and what is refused. An item that fails is logged; the others are
    predicted, and then one UserError names those that failed.
    """
    with as_user_error(f"cannot write to {folder.path}", OSError):
        todo = folder.begin(reader.items, reader.volumes, overwrite)
        failures = _predict(reader, todo, folder, log)
    if failures:
        (first, message), *rest = failures
        if rest:
            message += f" ({len(rest)} more failed: {', '.join(id for id, _ in rest)})"
        kept = f"the results of the other {reader.what}s are in {folder.path}"
        raise UserError(f"{reader.what} {first}: {message}; {kept}")


def _predict(reader, todo, folder, log):
    """Predict the items `todo`; [(id, message)] of those that failed."""
    if reader.in_space:
        listing.warn_without_geometry(reader.items, log)
        listing.warn_not_oriented(todo, log)
    reader.warn(todo, log)
    for member in reader.members:
        checkpoint.warn_of_known(reader.subjects, member.subjects, member.path, log)
    networks = (member.config.model.name for member in reader.members)
    for message in optimization.doubts(reader.members[0].windows.device, *networks):
        log.warn(message)
    total, left = (sum(map(reader.size, items)) for items in (reader.items, todo))
    log("predict", **{reader.counted: total}, kept=total - left, **describe(reader.members), output=folder.path)
    begun, network_s, predicted, failures = time.perf_counter(), 0.0, 0, []

    def finish(job):
        nonlocal predicted
        id = job.item.id
        if job.error is not None:
            failures.append((id, one_line(job.error)))
            log.warn(f"{reader.what} failed", **{reader.what: id}, error=failures[-1][1])
            return
        predicted += 1
        row, slices = job.content
        took = {"seconds": round(sum(job.times.values()), 3)} if reader.timed else {}
        folder.add(id, {**row, **took}, slices)
        log("predict", id=id, **reader.shown(row), **job.times, done=predicted + len(failures), of=len(todo))

    with ThreadPoolExecutor(reader.threads) as readers, ThreadPoolExecutor(2) as writers:
        writing = collections.deque()
        try:
            for reading in _ahead(readers, reader, todo):
                jobs = reading.result()
                network_s += _infer(reader, [job for job in jobs if job.error is None])
                for job in jobs:
                    held, answer = _bytes(job.content), (reader.answer, job.item, job.content, folder)
                    writing.append((writers.submit(job.step, "write_s", *answer), held))
                    del answer  # or it holds what the networks said until the next one
                while writing and _crowded(writing):
                    finish(writing.popleft()[0].result())
        finally:  # whatever ends the loop, what is predicted is kept
            while writing:
                finish(writing.popleft()[0].result())
            folder.save()
    counts = {"predicted": predicted, "failed": len(failures)}
    counts |= {} if reader.counted == f"{reader.what}s" else {reader.counted: left}
    seconds = time.perf_counter() - begun
    log("predict", finished=True, **counts, seconds=seconds, waited_s=seconds - network_s)
    return failures


def _bytes(content):
    """Of the arrays in what the networks said."""
    if isinstance(content, list | tuple):
        return sum(map(_bytes, content))
    return getattr(content, "nbytes", 0)


def _crowded(writing):
    """Whether the networks wait for the first of the items that are being written, (future, bytes) each."""
    return writing[0][0].done() or len(writing) > _BEHIND or sum(held for _, held in writing) > _HELD


class _Job:
    """An item on its way from its files to the tables."""

    def __init__(self, item):
        self.item, self.content, self.times, self.error = item, None, {}, None

    def step(self, name, function, *arguments):
        """Take the next content from a function unless the item has failed. It fails alone if a file cannot be used."""
        begun = time.perf_counter()
        try:
            if self.error is None:
                self.content = function(*arguments)
        except (ValueError, OSError) as error:
            self.error = error.with_traceback(None)  # whose frames hold volumes
        self.times[name] = time.perf_counter() - begun
        return self


def _ahead(readers, reader, items):
    """Yield a future of the jobs of each group of items that the networks are asked about together; read some ahead."""
    groups, room = [], 0  # the sizes in a group add up to at most `reader.together`; a larger item is alone
    for item in items:
        room -= reader.size(item)
        if room < 0:
            groups.append([])
            room = reader.together - reader.size(item)
        groups[-1].append(item)
    reading = collections.deque()
    for group in groups:
        reading.append(readers.submit(_read, reader, group))
        if len(reading) > reader.threads + 1:
            yield reading.popleft()
    yield from reading


def _read(reader, items):
    return [_Job(item).step("read_s", reader.read, item) for item in items]


def _infer(reader, jobs):
    """Ask the networks about some jobs together; returns the seconds."""
    begun = time.perf_counter()
    try:
        said = reader.infer([(job.item, job.content) for job in jobs]) if jobs else ()
        for job, content in zip(jobs, said):
            job.content = content
    except memory.OutOfMemory as error:
        for job in jobs:
            job.error = error.with_traceback(None)  # whose frames hold tensors
    seconds = time.perf_counter() - begun
    for job in jobs:
        job.times["network_s"] = seconds / len(jobs)
    return seconds
