"""The evaluation of a network on labelled cases: each case once, on one rank, in batches where that is exact."""

import collections
import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from ..data import listing, loader
from ..inference import WindowOptions
from ..runtime import dist, interrupt
from ..tasks.results import finished
from . import memory, optimization


def windows_of(config, device, amp=None):
    """The inference.WindowOptions of a config on a device; amp: instead of its train.amp."""
    autocast, _ = optimization.precision(amp or config.train.amp, device)
    return WindowOptions(config.data.patch, config.eval.overlap, config.eval.windows, device, autocast)


def evaluate(config, task, network, cases, fold=None):
    """The Results of the cases, sorted by id, on every rank.

    fold: the FoldFolder, for the final evaluation: it is in native space, and writes masks and pictures there.
    """
    windows = windows_of(config, dist.device())
    network.eval()
    if can_batch(config, task, network, cases):
        own_share = _in_batches(config, task, network, cases, windows)
    else:
        own_share = _one_by_one(task, network, cases, windows, fold, behind=windows.device.type == "cuda")
    with contextlib.closing(own_share):  # after a signal no more of it is asked for
        answers = dist.together(lambda: list(itertools.takewhile(lambda _: not interrupt.requested(), own_share)))
    if dist.any(interrupt.requested()):
        raise interrupt.Interrupted("stopped by a signal")
    answers = sorted((answer for part in dist.gather(answers) for answer in part), key=lambda answer: answer.row["id"])
    answered, wanted = [answer.row["id"] for answer in answers], sorted(case.id for case in cases)
    if answered != wanted:
        raise RuntimeError(f"evaluated {len(answered)} rows for {len(wanted)} cases: {answered}")
    if config.data.optional_channels:
        by_id = {case.id: case for case in cases}
        for answer in answers:
            answer.row["missing"] = listing.missing_in(config.data, by_id[answer.row["id"]])
    return task.finish(answers, fold)


def can_batch(config, task, network, cases):
    """Whether cases may be evaluated in batches: one window holds each, and the network sees each sample alone."""
    norms = [module for module in network.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    alone = task.predict_batch is not None and all(module.track_running_stats for module in norms)
    return alone and all(loader.in_one_window(case, config.data.patch) for case in cases)


def _one_by_one(task, network, cases, windows, fold, behind):
    """Yield the Answers of this rank's share of the cases.

    behind: whether a case's answer is finished while the network is at the next one; the CPU is the network's own.
    """
    with ThreadPoolExecutor(1) as finisher:
        finishing = collections.deque()
        for case in _read_ahead(cases[dist.rank() :: dist.world_size()], windows.device):
            if interrupt.requested():
                return
            with memory.explained(lambda: memory.advise_evaluation(task, network, case, windows)):
                finishing.append(finisher.submit(finished, task.predict(network, case, windows, fold)))
            if len(finishing) > behind:
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()


class _InMemory:
    """A prepared case whose image, and mask where it has one, are read; for a GPU into pinned memory."""

    def __init__(self, case, device):
        self._case, self._image = case, _read(case.image(), device)
        self._mask = _read(case.mask(), device) if getattr(case, "class_voxels", ()) else None

    def __getattr__(self, name):
        return getattr(self._case, name)

    def image(self):
        return self._image

    def mask(self):
        return self._mask


def _read(array, device):
    copy = np.array(array)
    return torch.from_numpy(copy).pin_memory().numpy() if device.type == "cuda" else copy


def _read_ahead(cases, device):
    """Yield the cases in their order, read; a thread reads the next one while the network is at one."""
    with ThreadPoolExecutor(1) as reader:
        reading = collections.deque()
        for case in cases:
            reading.append(reader.submit(_InMemory, case, device))
            if len(reading) > 1:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()


def _in_batches(config, task, network, cases, windows):
    """Yield the Answers of this rank's share; what is in a batch depends on the ids of all cases alone."""
    ordered = sorted(cases, key=lambda case: case.id)
    size = max(config.eval.windows, config.train.micro_batch or config.train.batch_size)
    batches = [range(start, min(start + size, len(ordered))) for start in range(0, len(ordered), size)]
    batches = batches[dist.rank() :: dist.world_size()]
    images = loader.whole_cases(config, ordered, batches, pin_memory=windows.device.type == "cuda")
    with memory.explained(lambda: memory.advise_batches(config, windows.device, size)), contextlib.closing(images):
        for chosen, image in zip(batches, images):
            with torch.no_grad(), windows.autocast:
                outputs = network(image.to(windows.device, non_blocking=True))
            yield from task.predict_batch(outputs.float(), [ordered[i] for i in chosen])
