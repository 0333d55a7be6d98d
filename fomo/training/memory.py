"""Memory of a device: what was needed, and what would fit where something did not."""

import contextlib
import copy
import dataclasses
import functools
import traceback

import torch

from ..config import show


class OutOfMemory(RuntimeError):
    """The GPU's memory is too small; the message says what would fit."""

    exit_code = 1
    ends_run = True  # the same in every fold


@contextlib.contextmanager
def explained(explain):
    """Turn an error of this block that comes from too little memory into an OutOfMemory with the message that explain() gives.

    The memory that the block held is free when explain() is called, so that it can try something smaller.
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
    """Whether it is the allocator's error, or what CUDA's libraries say when memory for their own use is not there."""
    said = any(words in str(error) for words in ("out of memory", "ALLOC_FAILED"))
    return isinstance(error, torch.cuda.OutOfMemoryError) or (said and not isinstance(error, OutOfMemory))


def advise_training(config, task, network, optimizer, autocast, plan, one_batch):
    """The message for a training step that has run out of memory; what half of it needs is measured by doing that.

    one_batch(config, slots): a batch on its device, as the network gets it.
    """
    parameters = list(network.parameters())
    device, patch = parameters[0].device, config.data.patch

    def attempt(config, samples):
        network_copy = copy.deepcopy(network)  # without the hooks that would wait for the other ranks
        batch = one_batch(config, range(samples))
        with autocast:
            outputs = network_copy(batch["image"])
        task.loss(outputs, batch).mean().backward()

    attempts, samples = [], plan.micro_batch
    while samples > 1:
        samples = max(n for n in range(1, samples // 2 + 1) if samples % n == 0)
        attempts.append((f"train.micro_batch={samples}", functools.partial(attempt, config, samples)))
    half = tuple(size if size < 64 else size // 32 * 16 for size in patch)
    if not attempts and half != patch and not config.task.pretrains:
        smaller = dataclasses.replace(config, data=dataclasses.replace(config.data, patch=half))
        attempts.append((f"data.patch={show(half)}, with another `name`,", functools.partial(attempt, smaller, 1)))
    message = f"out of memory on {_describe(device)}: {plan.micro_batch} samples of data.patch={show(patch)} at once do not fit; "
    found = _largest_that_fits(attempts, device)
    if found is None:
        return (
            message
            + f"{f'nor does {attempts[-1][0]}; ' if attempts else ''}lower data.patch or model.width, with another `name`"
        )
    # less the copy, plus AdamW's two averages where the first step has not made them yet
    more = -sum(p.nbytes for p in parameters) + (not optimizer.state) * 2 * sum(
        p.nbytes for p in parameters if p.requires_grad
    )
    return message + f"{found[0]} needs about {found[1] + more / 1e9:.2g} GB; then the same command continues"


def advise_evaluation(task, network, case, options):
    """The message for a case whose evaluation has run out of memory; `options` as in task.predict."""
    device, windows, attempts = options["device"], options["windows"], []
    while windows > 1:
        windows //= 2
        smaller = {**options, "windows": windows}
        attempts.append((f"eval.windows={windows}", functools.partial(task.predict, network, case, smaller)))
    message = (
        f"out of memory on {_describe(device)}: evaluating case {case.case.id} of {'x'.join(map(str, case.shape))} voxels with "
        f"eval.windows={options['windows']} windows of data.patch={show(options['patch'])} at once does not fit; "
    )
    found = _largest_that_fits(attempts, device)
    if found is None:
        return message + "free the device of other processes, or lower data.patch, with another `name`"
    return message + f"{found[0]} needs about {found[1]:.2g} GB; then the same command continues"


def advise_batches(config, device, size):
    """The message for an evaluation of `size` cases at once that has run out of memory."""
    return (
        f"out of memory on {_describe(device)}: evaluating {size} cases of data.patch={show(config.data.patch)} at once does not fit; "
        "lower eval.windows, train.micro_batch, or both: the larger one counts; then the same command continues"
    )


def advise_prediction(case, shape, options):
    """The message for a case (shape: of its image) whose prediction has run out of memory; `options` of the sliding window."""
    return (
        f"out of memory on {_describe(options['device'])}: predicting case {case.id} of {'x'.join(map(str, shape[1:]))} voxels does not "
        "fit: free the device of other processes, or use --device cpu"
    )


def _largest_that_fits(attempts, device):
    """(name, peak GB of the device) of the first of `attempts`, (name, function) pairs, that has enough memory, or None."""
    for name, attempt in attempts:
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            attempt()
            return name, peak_gb(device)
        except RuntimeError as error:
            if not _is_of_memory(error):
                raise
    return None


def _describe(device):
    """The device's size, and what other processes take of it, in words."""
    if device.type != "cuda":
        return str(device)
    free, total = torch.cuda.mem_get_info(device)
    others = max(total - free - torch.cuda.memory_reserved(device), 0)
    return f"{device} ({total / 1e9:.3g} GB, {others / 1e9:.2g} GB of them used by other processes)"


def peak_gb(device):
    """Peak memory: of the GPU's allocator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
