"""Ranks and collectives. The same calls work under torchrun, without it, on GPUs (nccl) and on the CPU (gloo).

The only file that reads torchrun's environment variables. Every rank must enter every collective.
"""

import contextlib
import datetime
import gc
import os
import time
import uuid

import torch
import torch.distributed as torch_dist
from torch.distributed.rendezvous import rendezvous

_alone = False


class OtherRankFailed(RuntimeError):
    """Another rank has raised and has reported its error; this rank ends with the same exit code, in silence."""

    collective = True

    def __init__(self, rank, exit_code):
        super().__init__(f"rank {rank} failed")
        self.exit_code = exit_code


class LaunchError(RuntimeError):
    """The processes were started in a way that cannot work."""

    exit_code = 2


def rank():
    return 0 if _alone else int(os.environ.get("RANK", 0))


def world_size():
    return 1 if _alone else int(os.environ.get("WORLD_SIZE", 1))


def local_rank():
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main():
    return rank() == 0


def device():
    """This rank's device: one GPU per local rank (CUDA_VISIBLE_DEVICES is honoured), else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank() >= torch.cuda.device_count():
        raise LaunchError(
            f"rank {rank()}: {torch.cuda.device_count()} visible GPUs for local rank {local_rank()}; "
            "start at most one process per GPU (torchrun --nproc_per_node)"
        )
    return torch.device("cuda", local_rank())


def init(timeout_s=3600):
    """Join torchrun's process group; nothing to do in a single process started without it."""
    if world_size() == 1 or torch_dist.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
        backend = "cpu:gloo,cuda:nccl"
    timeout = datetime.timedelta(seconds=timeout_s)
    store, _, _ = next(rendezvous("env://", rank(), world_size(), timeout=timeout))
    store = torch_dist.PrefixStore(_agree_on_prefix(store, timeout_s), store)
    torch_dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)


def _agree_on_prefix(store, timeout_s):
    """A prefix of the store that is new, and the same on all ranks.

    torchrun keeps its store when it restarts the ranks, and a restarted rank would find the addresses of the dead ones.
    Each rank therefore asks rank 0 under a name of its own that no earlier process has used.
    """
    if rank() > 0:
        own = uuid.uuid4().hex
        store.set(f"fomo/ask/{rank()}", own)
        store.wait([f"fomo/answer/{own}"], datetime.timedelta(seconds=timeout_s))
        prefix = store.get(f"fomo/answer/{own}").decode()
        store.set(f"fomo/heard/{prefix}/{rank()}", "")
        return prefix
    prefix, others = uuid.uuid4().hex, range(1, world_size())
    deadline = time.monotonic() + timeout_s
    while not store.check([f"fomo/heard/{prefix}/{other}" for other in others]):
        if time.monotonic() > deadline:
            raise LaunchError(f"not all of {world_size()} ranks have come within {timeout_s} s")
        for other in others:  # again and again: what is there first may be a dead rank's question
            if store.check([f"fomo/ask/{other}"]):
                store.set(f"fomo/answer/{store.get(f'fomo/ask/{other}').decode()}", prefix)
        time.sleep(0.02)
    return prefix


def is_initialized():
    return torch_dist.is_initialized()


@contextlib.contextmanager
def alone():
    """While this lasts, this process is the only rank: rank() is 0, world_size() 1, collectives are its own affair."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def hand_out(items, name):
    """Yield items so that each goes to one rank only, to whichever asks first; `name` is new for every list."""
    if world_size() == 1:
        yield from items
        return
    store = torch_dist.distributed_c10d._get_default_store()
    while (index := store.add(f"fomo/{name}", 1) - 1) < len(items):
        yield items[index]


def wait_for_all(name, stop):
    """Return when every rank has called this with the same `name`, however long that takes, or when stop() is true.

    A collective would give up after its timeout, while a rank may be busy with a fold for days.
    """
    if world_size() == 1:
        return
    store = torch_dist.distributed_c10d._get_default_store()
    store.add(f"fomo/{name}", 1)
    while store.add(f"fomo/{name}", 0) < world_size() and not stop():
        time.sleep(0.2)


def close():
    """Leave the process group."""
    if torch_dist.is_initialized():
        gc.collect()  # DistributedDataParallel is held by cycles; freed after its group, it aborts the process at exit
        torch_dist.destroy_process_group()


def gather(value):
    """[value of rank 0, value of rank 1, ...] on every rank; any picklable value."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch_dist.all_gather_object(values, value)
    return values


def mean(tensor):
    """Mean over the ranks of a tensor of equal shape; a NaN or Inf of any rank reaches all."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    torch_dist.all_reduce(total)
    return total / world_size()


def any(flag):
    """Whether `flag` is true on any rank."""
    return bool(mean(torch.tensor(float(flag))) > 0)


def together(function):
    """function() on every rank; when it raises on some, it raises on all, so that no rank waits for one that is gone.

    A rank that failed raises its own error, the others OtherRankFailed; both have `collective` set: all ranks know.
    """
    result, error = None, None
    try:
        result = function()
    except Exception as caught:  # every error: it is raised again below, once the other ranks know
        error = caught
    codes = gather(None if error is None else getattr(error, "exit_code", 1))
    if error is not None:
        error.collective = True
        error.reported = codes[: rank()].count(None) < rank()  # the first rank that failed speaks for all
        raise error
    for failed, code in enumerate(codes):
        if code is not None:
            raise OtherRankFailed(failed, code)
    return result


def on_main(function):
    """function() on rank 0 only; its result on every rank; an error on rank 0 ends all ranks."""
    result = together(lambda: function() if is_main() else None)
    return gather(result)[0] if world_size() > 1 else result
