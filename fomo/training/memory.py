"""Memory of a device: what was needed, and what would fit where something did not."""

import contextlib
import copy
import dataclasses
import functools
import sys
import traceback

import torch

from .. import nets, tasks
from ..config import show
from ..data import loader
from .step import to_device


class OutOfMemory(RuntimeError):
    """The GPU's memory is too small; the message says what would fit."""

    exit_code = 1
    ends_run = True  # the same in every fold


@contextlib.contextmanager
def explained(explain):
    """Turn an error for lack of memory into an OutOfMemory with the message explain().

    The memory of the block is free when explain() is called, so that it can try something smaller.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_of_memory(error):
            raise
        while error is not None:
            traceback.clear_frames(error.__traceback__)  # their local variables hold the tensors
            error = error.__context__
        raise OutOfMemory(explain()) from None


def _is_of_memory(error):
    """Whether it comes from the allocator, or from a library of CUDA that found no memory for its own use."""
    said = any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
    return isinstance(error, torch.cuda.OutOfMemoryError) or (said and not isinstance(error, OutOfMemory))


def advise_training(training, cases):
    """The message for a step of a state.Training that has run out of memory: it says what was tried and fits."""
    config, samples, attempts = training.config, training.plan.micro_batch, []
    half = nets.NETWORKS[config.model.name].halved(config.data.patch)
    said = f"{samples} samples of data.patch={show(config.data.patch)} at once do not fit; "
    if samples == 1 and half != config.data.patch and not training.task.pretrains:
        task = tasks.build(dataclasses.replace(config, data=dataclasses.replace(config.data, patch=half)))
        task.state = training.task.state
        attempt = functools.partial(_try_step, training, task, cases, 1)
        attempts.append((f"data.patch={show(half)}, with another `name`,", attempt))
    while samples > 1:
        samples = max(n for n in range(1, samples // 2 + 1) if samples % n == 0)
        attempt = functools.partial(_try_step, training, training.task, cases, samples)
        attempts.append((f"train.micro_batch={samples}", attempt))
    # less the copy, plus AdamW's two averages where the first step has not made them yet
    parameters = list(training.network.parameters())
    averages = 0 if training.optimizer.state else 2 * sum(p.nbytes for p in parameters if p.requires_grad)
    fits = _first_that_fits(attempts, training.device, averages - sum(p.nbytes for p in parameters))
    tried = f"nor does {attempts[-1][0]}; " if attempts else ""
    other = f"{tried}lower data.patch or model.width, with another `name`"
    return _message(training.device, said + (fits or other))


def _try_step(training, task, cases, samples):
    """Forward and backward of so many samples, as the task's config wants them, in a copy of the network."""
    network = copy.deepcopy(training.network)  # without the hooks that would wait for the other ranks
    batch = loader.read_batch(task.config, task, cases, training.fold.number, range(samples))
    batch = task.prepare(to_device(batch, training.device, task.augmentation(), training.layout))
    with training.autocast:
        outputs = network(batch["image"])
    task.loss(outputs, batch).mean().backward()


def advise_evaluation(task, network, case, windows):
    """The message for a case whose evaluation has run out of memory; `windows` as in task.predict."""
    count, attempts, size = windows.windows, [], "x".join(map(str, case.shape))
    said = f"evaluating case {case.id} of {size} voxels with eval.windows={count} windows of data.patch="
    while count > 1:
        count //= 2
        fewer = dataclasses.replace(windows, windows=count)
        attempts.append((f"eval.windows={count}", functools.partial(task.predict, network, case, fewer)))
    fits = _first_that_fits(attempts, windows.device)
    other = "free the device of other processes, or lower data.patch, with another `name`"
    return _message(windows.device, f"{said}{show(windows.patch)} at once does not fit; {fits or other}")


def advise_batches(config, device, size):
    """The message for an evaluation of `size` cases at once that has run out of memory."""
    said = f"evaluating {size} cases of data.patch={show(config.data.patch)} at once does not fit"
    return _message(device, f"{said}; lower eval.windows, train.micro_batch, or both: the larger one counts; {_GO_ON}")


def advise_prediction(what, device):
    """The message for a prediction that has run out of memory; what: "case ID of XxYxZ voxels"."""
    return _message(device, f"predicting {what} does not fit: free the device of other processes, or use --device cpu")


_GO_ON = "then the same command continues"


def _first_that_fits(attempts, device, more=0):
    """In words: what the first (name, function) that fits needs, plus `more` bytes; None where none fits."""
    for name, attempt in attempts:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            attempt()
            return f"{name} needs about {peak_gb(device) + more / 1e9:.2g} GB; {_GO_ON}"
        except RuntimeError as error:
            if not _is_of_memory(error):
                raise
    return None


def _message(device, said):
    """The message, with the size of the device and how much of it other processes use."""
    if device.type != "cuda":
        return f"out of memory on {device}: {said}"
    free, total = torch.cuda.mem_get_info(device)
    others = max(total - free - torch.cuda.memory_reserved(device), 0) / 1e9
    return f"out of memory on {device} ({total / 1e9:.3g} GB, {others:.2g} GB of them used by other processes): {said}"


def peak_gb(device):
    """Peak memory: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
