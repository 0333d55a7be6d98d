"""Ranks and collectives; the same calls work with torchrun and without it, on GPUs (nccl) and on the CPU (gloo).

No other file reads torchrun's environment variables. Every rank must enter every collective.
"""

import contextlib
import datetime
import gc
import os
import sys
import time
import uuid

from . import lazy
from .lazy import torch

torch_dist = lazy.Module("torch.distributed")

_PART = 10_000  # items of a list that are sent at once: pickled as a whole, 300,000 cases take a gigabyte
_team = None  # (its ranks, their process group) while the ranks are divided, see `teams`


class OtherRankFailed(RuntimeError):
    """Another rank has raised and reported an error; this rank ends in silence, with the same exit code."""

    collective = True

    def __init__(self, rank, exit_code, ends_run=True):
        super().__init__(f"rank {rank} failed")
        self.exit_code, self.ends_run = exit_code, ends_run


class LaunchError(RuntimeError):
    """The processes were started in a way that cannot work."""

    exit_code = 2


def rank():
    own = int(os.environ.get("RANK", 0))
    return own if _team is None else _team[0].index(own)


def world_size():
    return int(os.environ.get("WORLD_SIZE", 1)) if _team is None else len(_team[0])


def is_main():
    return rank() == 0


def device():
    """This rank's device: of the visible GPUs the one with its local rank, counted round; without GPUs the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def shares_gpu():
    """Whether this machine has more ranks than GPUs, and has GPUs; nccl refuses that."""
    return torch.cuda.is_available() and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > torch.cuda.device_count()


def init(timeout_s=3600):
    """Join the process group of torchrun; a single process has none."""
    if world_size() == 1 or is_initialized():
        return
    if not torch.cuda.is_available() and not _threads_are_asked_for():
        torch.set_num_threads(_share_of_cores())
    from torch.distributed.rendezvous import rendezvous

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and not shares_gpu() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(device())
    timeout = datetime.timedelta(seconds=timeout_s)
    store, _, _ = next(rendezvous("env://", rank(), world_size(), timeout=timeout))
    store = torch_dist.PrefixStore(_agree_on_prefix(store, timeout_s), store)
    torch_dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=timeout)


def _threads_are_asked_for():
    """Whether the user has set OMP_NUM_THREADS. torchrun sets it to 1 for its ranks where he has not.

    Its own environment, as it was started, tells both apart; where that cannot be read the variable is the user's.
    """
    if os.environ.get("OMP_NUM_THREADS", "1") != "1":
        return True
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            return b"\0OMP_NUM_THREADS=" in b"\0" + file.read()
    except OSError:
        return True


def _share_of_cores():
    """Threads of a rank that is one of several on this machine's processors."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", world_size())))


def _agree_on_prefix(store, timeout_s):
    """A new prefix for names in the store: torchrun keeps it when it restarts ranks, with the addresses of dead ones.

    Each rank therefore asks rank 0 for the prefix, under a name that no earlier process has used.
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
        for other in others:  # again and again: the first question may be that of a dead rank
            if store.check([f"fomo/ask/{other}"]):
                store.set(f"fomo/answer/{store.get(f'fomo/ask/{other}').decode()}", prefix)
        time.sleep(0.02)
    return prefix


def is_initialized():
    return "torch.distributed" in sys.modules and torch_dist.is_initialized()


@contextlib.contextmanager
def teams(size):
    """Divide the ranks into teams of `size` neighbours, while this lasts; `size` divides their number.

    Each team is a world of its own: rank(), world_size() and every collective are those of this rank's team.
    """
    global _team
    teams = [tuple(range(first, first + size)) for first in range(0, world_size(), size)]
    groups = [torch_dist.new_group(team) if size > 1 else None for team in teams]  # all ranks make all of them
    _team = list(zip(teams, groups))[rank() // size]
    try:
        yield
    finally:
        _team = None


def group():
    """The process group of this rank's team, for functions of torch; None for that of all ranks."""
    return None if _team is None else _team[1]


def _first():
    """The number of this team's rank 0 among all ranks."""
    return 0 if _team is None else _team[0][0]


def hand_out(items, name):
    """Yield the items that this team is the first to ask for; every list has a `name` of its own."""
    if not is_initialized():
        yield from items
        return
    store = _store()
    while (index := gather(store.add(f"fomo/{name}", 1) - 1 if is_main() else None)[0]) < len(items):
        yield items[index]


def wait_for_all(name, stop):
    """Wait until every rank has called this with the same `name`, or stop() is true.

    A collective would give up after its timeout, but a rank may be busy with a fold for days.
    """
    if world_size() == 1:
        return
    store = _store()
    store.add(f"fomo/{name}", 1)
    while store.add(f"fomo/{name}", 0) < world_size() and not stop():
        time.sleep(0.2)


def speaks(error):
    """Whether this rank reports `error`, which ends it. No collective: the other ranks may be gone.

    Of errors that the ranks do not share, the first is the cause: the others then lose their connections.
    """
    if isinstance(error, OtherRankFailed) or getattr(error, "reported", False):
        return False
    if getattr(error, "ranks", 1) == world_size():  # all of them know of it, not a team alone
        return True
    return _store().add("fomo/failed", 1) == 1


def _store():
    """The key-value store that all ranks share."""
    return torch_dist.distributed_c10d._get_default_store()


def close():
    """Leave the process group."""
    if is_initialized():
        gc.collect()  # DistributedDataParallel is held by cycles; freed after its group, it aborts the process at exit
        torch_dist.destroy_process_group()


def gather(value):
    """[value of rank 0, value of rank 1, ...] on every rank, of values that can be pickled."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch_dist.all_gather_object(values, value, group=group())
    return values


def mean(tensor):
    """The mean over the ranks of tensors of equal shape; NaN or Inf of one rank reaches all."""
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    torch_dist.all_reduce(total, group=group())
    return total / world_size()


def from_main(tensors):
    """Fill the tensors, which every rank has, with the values of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            torch_dist.broadcast(tensor, src=_first(), group=group())


def any(flag):
    """Whether `flag` is true on any rank."""
    return bool(mean(torch.tensor(float(flag))) > 0)


def together(function):
    """Return function() on every rank; if it raises on one, all raise: that one its own error, others OtherRankFailed.

    Both have `collective` set: all ranks know, and none waits for one that is gone.
    """
    result, error = None, None
    try:
        result = function()
    except Exception as caught:  # any: it is raised again below, when the other ranks know
        error = caught
    ends = gather(None if error is None else (getattr(error, "exit_code", 1), getattr(error, "ends_run", False)))
    if error is not None:
        error.collective, error.ranks = True, world_size()
        error.reported = ends[: rank()].count(None) < rank()  # the first rank that failed speaks for all
        raise error
    for failed, end in enumerate(ends):
        if end is not None:
            raise OtherRankFailed(failed, *end)
    return result


def on_main(function):
    """Call function() on rank 0 and return its result on every rank; an error there ends all of them."""
    result = together(lambda: function() if is_main() else None)
    if world_size() == 1:
        return result
    long = isinstance(result, list) and len(result) > _PART
    count = _broadcast(-(-len(result) // _PART) if long else 0)
    if count == 0:
        return _broadcast(result)
    whole = []
    for start in range(0, count * _PART, _PART):
        part = _broadcast(result[start : start + _PART] if is_main() else None)
        whole += () if is_main() else part
    return result if is_main() else whole


def _broadcast(value):
    """The value of rank 0, which can be pickled, on every rank; rank 0 keeps its own object."""
    sent = [value]
    torch_dist.broadcast_object_list(sent, src=_first(), group=group())
    return value if is_main() else sent[0]
