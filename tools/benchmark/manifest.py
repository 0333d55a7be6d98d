"""The part `manifest`: how long a run of very many volumes takes to start, and what memory each rank needs for it.

The volumes are small arrays in a tree like FOMO-60K's. The first start preprocesses all of them.
The others are like every later start of a run: list, split, open the cache, and read the first batch. Each start is a
command of its own (this module), so that its peak memory is its own: `start_mb` is what it had after importing
everything. On a machine that is busy with other things `cpu_s` says more than `total_s`.
"""

import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch

from fomo import tasks
from fomo.data import listing, sources
from fomo.run_folder import RunFolder
from fomo.runs import splits
from fomo.runtime import dist
from fomo.runtime.log import Log

from . import feed
from .timing import say

TOOLS = pathlib.Path(__file__).resolve().parent.parent
TARGET_S, TARGET_MB = 20.0, 500.0
_SCANS = 5  # of a subject, in two sessions


def add_arguments(parser):
    parser.add_argument("--cases", type=int, default=60000, help="volumes (60000)")
    parser.add_argument("--ranks", type=int, nargs="+", default=(1, 2), help="ranks of the warm starts (1 2)")
    parser.add_argument("--folder", help="existing folder with room for the cache (a temporary one); kept")


def run(options):
    folder = options.folder or tempfile.mkdtemp(prefix="fomo-manifest-")
    try:
        make_tree(folder, options.cases)
        for step, ranks in (("first", 1), *(("warm", ranks) for ranks in options.ranks)):
            for rank, found in enumerate(run_start(folder, ranks)):
                line = dict(step=step, cases=options.cases, ranks=ranks, rank=rank, **found)
                if step == "warm":
                    line["seconds_reached"] = found["total_s"] <= TARGET_S
                    line["memory_reached"] = found["peak_mb"] <= TARGET_MB
                say("start", **line)
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def make_tree(folder, cases):
    """`cases` volumes of 8x8x8 voxels below folder/data, no two of them alike."""
    rng = np.random.default_rng(0)
    noise = rng.normal(100, 10, (8, 8, 8)).astype(np.float32)
    for number in range(cases):
        subject, scan = divmod(number, _SCANS)
        place = os.path.join(folder, "data", f"sub_{subject:05d}", f"ses_{1 + scan // 3}")
        os.makedirs(place, exist_ok=True)
        path = os.path.join(place, f"scan_{scan}.npy")
        if not os.path.exists(path):
            noise[0, 0, 0] = number
            np.save(path, noise)


def run_start(folder, ranks):
    """[what each rank found] of one start."""
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    results = os.path.join(folder, "results")
    shutil.rmtree(results, ignore_errors=True)
    os.makedirs(results)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TOOLS.parent}{os.pathsep}{TOOLS}"}
    subprocess.run([*launch, "-m", "benchmark.manifest", folder], check=True, env=environment)
    return [json.loads(pathlib.Path(results, f"{rank}.json").read_text()) for rank in range(ranks)]


class Marks:
    """Seconds between marks, and memory."""

    def __init__(self):
        self.found = {"start_mb": peak_mb()}
        torch.set_num_threads(1)
        dist.init()
        self.begin, self.cpu = time.perf_counter(), time.process_time()
        self.last = self.begin

    def mark(self, name):
        now = time.perf_counter()
        self.found[name], self.last = now - self.last, now

    def finish(self):
        total, cpu = time.perf_counter() - self.begin, time.process_time() - self.cpu
        return {**self.found, "total_s": total, "cpu_s": cpu, "peak_mb": peak_mb()}


def start(folder):
    """What cross-validation does before a fold is trained, and the loader's first batch."""
    place, log = pathlib.Path(folder), Log(active=False)
    values = {
        "output": str(place / "runs"),
        "task": {"type": "mae"},
        "data": {
            "source": "volumes", "root": str(place / "data"), "cache": str(place / "cache"),
            "channels": ["mri"], "patch": [32, 16, 16], "spacing_mm": None, "crop": False,
        },
        "model": {"name": "unet_b_lw_dec", "width": 2},
        "train": {"batch_size": 8, "workers": 0},
        "augment": {"preset": "none"},
    }  # fmt: skip
    config = feed.config_of(values)
    clock = Marks()
    task, wanted = tasks.build(config), tasks.wanted(config)
    os.makedirs(config.output, exist_ok=True)
    listed = dist.on_main(lambda: sources.list_cases(config.data, wanted, log=log))
    listing.describe(config, wanted, listed, log)
    clock.mark("list_s")
    folds = dist.on_main(lambda: splits.read_or_make_splits(config, task, listed, RunFolder(config.output)))
    clock.mark("split_s")
    cases = dist.on_main(lambda: sources.prepare(listed, config.data, wanted, log))
    clock.mark("cache_s")
    by_id = {case.id: case for case in cases}
    train = [by_id[name] for name in folds[0]["train"]]
    batch = next(feed.batches(config, train, 100 * len(train) // config.train.batch_size))
    clock.mark("batch_s")
    assert len(batch["id"]) == config.train.batch_size // dist.world_size()
    (place / "results" / f"{dist.rank()}.json").write_text(json.dumps(clock.finish()))
    dist.close()


def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    start(sys.argv[1])
