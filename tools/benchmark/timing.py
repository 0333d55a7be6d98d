"""What all parts share: the lines they print, the libraries held against fomo, and the clocks."""

import datetime
import importlib
import os
import pathlib
import platform
import time
import warnings

import numpy as np
import scipy
import torch

from fomo.runtime.log import format_value


def say(event, **values):
    print(event, *(f"{name}={format_value(value)}" for name, value in values.items()), flush=True)


def say_machine():
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    say("machine", date=datetime.date.today(), cpu=model, cores=os.cpu_count(), threads=1)
    say("versions", python=platform.python_version(), numpy=np.__version__, scipy=scipy.__version__)


def peer(module, install):
    """The imported library, or None and a line that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(module)
    except ImportError:
        say("peer", name=module, missing=True, install=f"pip install {install}")
        return None
    root = importlib.import_module(module.split(".")[0])
    say("peer", name=module, version=getattr(root, "__version__", "unknown"))
    return found


def device():
    """The GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(device):
    """Until all that a GPU was told to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


CPU = torch.device("cpu")


def timed(function, device=CPU, clock=time.perf_counter):
    """(seconds, result) of one call."""
    wait(device)
    start = clock()
    result = function()
    wait(device)
    return clock() - start, result


def best_seconds(function, device, repeat=1, turns=3):
    """Seconds of one call: the best of `turns` means over `repeat` calls, after one call that does not count."""

    def calls():
        for _ in range(repeat):
            function()

    function()
    return min(timed(calls, device)[0] for _ in range(turns)) / repeat


def best_times(functions, turns, device=CPU, clock=time.perf_counter, enough_s=np.inf):
    """{name: (best seconds, last result)} of functions without arguments, which take turns.

    enough_s: a function that takes longer than this is measured once.
    """
    found = {}
    for _ in range(turns):
        for name, function in functions.items():
            best, _ = found.get(name, (np.inf, None))
            if name in found and best > enough_s:
                continue
            seconds, result = timed(function, device, clock)
            found[name] = min(seconds, best), result
    return found
