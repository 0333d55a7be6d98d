"""Memory: what is said when the GPU has too little, and that it and the open files do not grow.

The quick part runs with every test run. The long part, of many more epochs:
    python -m pytest -q -m slow tests/faults/test_memory.py
"""

import re

import pytest
import torch
from conftest import ROOT, run_command

from fomo import kinds
from fomo.nets import unet
from fomo.runs import crossval
from fomo.training import memory


@pytest.fixture
def small_device(monkeypatch):
    """Function that leaves the networks with memory for `fits` samples of `voxels` at once, after `after` calls."""

    def limit(fits, voxels=32**3, training=True, after=0):
        calls, forward = [], unet.UNet.forward

        def limited(self, x):
            calls.append(self.training == training)
            if calls[-1] and sum(calls) > after and x.shape[0] * x[0, 0].numel() > fits * voxels:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(self, x)

        monkeypatch.setattr(unet.UNet, "forward", limited)

    return limit


def ends_with(path, overrides=()):
    with pytest.raises(memory.OutOfMemory) as caught:
        crossval.run(kinds.load(path, overrides))
    return str(caught.value)


def test_too_little_memory_for_a_step_ends_with_what_half_of_it_needs(tiny_config, tmp_path, small_device, capfd):
    path = tiny_config(cv={"folds_to_run": [1]}, train={"save_every_s": 0})
    small_device(fits=2, after=3)  # in the second epoch
    message = ends_with(path)
    assert "4 samples of data.patch=[32,32,32] at once do not fit" in message
    needed = float(
        re.search(r"; train\.micro_batch=2 needs about (\S+) GB; then the same command continues$", message)[1]
    )
    assert 0.05 < needed < 4, "on the CPU the process's peak"
    output = capfd.readouterr()
    assert (
        len(output.err.splitlines()) == 1
        and message in output.err
        and message in (tmp_path / "runs/run/log.txt").read_text()
    )
    last = torch.load(tmp_path / "runs/run/fold_1/last.pt", weights_only=True)
    assert last["epoch"] == 1 and last["step"] == 3, "it holds the first epoch"
    crossval.run(kinds.load(path, ["train.micro_batch=2"]))
    assert re.search(r" resume fold=1 epoch=2 step=3$", capfd.readouterr().out, re.M)


@pytest.mark.parametrize(
    "batch_size, fits, said",
    [
        (4, 1, r"; train\.micro_batch=1 needs about"),  # 2 does not fit either
        (1, 0.5, r"; data\.patch=\[32,32,32\], with another `name`, needs about"),
        (4, 0, r"; nor does train\.micro_batch=1; lower data\.patch or model\.width"),
    ],
)
def test_the_next_smaller_step_that_fits_is_named(tiny_config, small_device, batch_size, fits, said):
    data = {"patch": [64, 32, 32], "spacing_mm": [2.0, 8.0, 8.0]}
    path = tiny_config(cv={"folds_to_run": [1]}, data=data, train={"batch_size": batch_size})
    small_device(fits, voxels=64 * 32 * 32)
    assert re.search(said, ends_with(path))


def test_too_little_memory_for_an_evaluation(tiny_config, small_device):
    path = tiny_config(
        "regression", data={"spacing_mm": [4.0, 4.0, 4.0]}, train={"steps_per_epoch": 1}, eval={"windows": 4}
    )
    small_device(fits=2, training=False)
    said = (
        r"evaluating case \S+ of \d+x\d+x\d+ voxels with eval\.windows=4 windows .* eval\.windows=2 needs about \S+ GB"
    )
    assert re.search(said, ends_with(path))


def test_the_memory_of_the_failed_step_is_free_when_a_smaller_one_is_tried():
    class Tracked(torch.nn.Module):
        pass

    import gc
    import weakref

    held = []

    def step():
        large = Tracked()
        held.append(weakref.ref(large))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def explain():
        gc.collect()
        return f"left={held[0]() is not None}"

    with pytest.raises(memory.OutOfMemory, match="left=False"), memory.explained(explain):
        step()


@pytest.mark.parametrize(
    "said, of_memory",
    [
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", True),
        ("CUDA error: device-side assert triggered", False),
    ],
)
def test_what_cudas_libraries_say_of_memory(said, of_memory):
    with pytest.raises(RuntimeError) as caught, memory.explained(lambda: "too little"):
        raise RuntimeError(said)
    assert (str(caught.value), isinstance(caught.value, memory.OutOfMemory)) == (
        "too little" if of_memory else said,
        of_memory,
    )
    with pytest.raises(memory.OutOfMemory, match="out of memory on"), memory.explained(lambda: "explained twice"):
        raise memory.OutOfMemory("out of memory on")


# cv.py where the second rank, or each, has too little memory; as with NCCL no rank leaves its group before all do
RANKS = """
import os, sys, time
sys.path.insert(0, {root!r})
import torch
from fomo import cli, kinds
from fomo.nets import unet
from fomo.runs import crossval
from fomo.runtime import dist

def leave():
    store, deadline = torch.distributed.distributed_c10d._get_default_store(), time.monotonic() + 100
    store.add("leaving", 1)
    while store.add("leaving", 0) < 2:
        assert time.monotonic() < deadline, "left alone"
        time.sleep(0.2)

torch.distributed.destroy_process_group = leave
forward, calls = unet.UNet.forward, []

def limited(self, x):
    calls.append(len(x))
    if {where} and len(calls) > 3 and len(x) > 1:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    return forward(self, x)

unet.UNet.forward = limited
cli.run(lambda arguments: crossval.run(kinds.load(arguments[0])))
"""


@pytest.mark.parametrize("where", ["self.training and dist.rank() == 1", "self.training"])
def test_ranks_without_memory_end_all_ranks_with_one_line(tiny_config, tmp_path, where):
    (tmp_path / "ranks.py").write_text(RANKS.format(root=str(ROOT), where=where))
    path = tiny_config(cv={"folds_to_run": [1]})
    done = run_command(tmp_path / "ranks.py", path, ranks=2)
    assert done.returncode == 1 and "left alone" not in done.stderr
    assert done.stderr.count("Traceback") <= 1, "torchrun's own"
    assert done.stderr.count("do not fit; train.micro_batch=1 needs about") == 1
    assert "2 samples of data.patch=[32,32,32] at once do not fit" in (tmp_path / "runs/run/log.txt").read_text()


@pytest.fixture
def returning(monkeypatch):
    """The C library gives freed memory back at once; by itself it keeps up to some 60 MB a process, and no more."""
    for variable in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(variable, "65536")


def growth(path, *overrides):
    """([MB of the training process], [MB of the largest worker], [most open files of a process]) after each epoch."""
    done = run_command("tests/faults/growth.py", path, "cv.folds_to_run=[1]", *overrides, timeout=1800)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^growth .* files=(\d+) processes=\d+ mb=(.+)$", done.stdout, re.M)
    sizes = [[float(size) for size in text.split()] for _, text in lines]
    return [size[0] for size in sizes], [max(size[1:], default=0) for size in sizes], [int(files) for files, _ in lines]


def assert_no_growth(path, epochs, limit_mb, *overrides):
    own, workers, files = (column[:epochs] for column in growth(path, f"train.epochs={epochs}", *overrides))
    assert len(own) == epochs
    begin, end = slice(epochs // 3, 2 * epochs // 3), slice(2 * epochs // 3, None)  # after a third everything is warm
    for sizes in (own, workers):
        assert max(sizes[end]) - max(sizes[begin]) < limit_mb, sizes
    assert max(files[end]) <= max(files[begin]) and max(files) < 200, files
    return own, workers, files


def test_memory_and_open_files_do_not_grow_over_epochs(tiny_config, returning):
    path = tiny_config(augment={"preset": "basic"}, train={"batch_size": 2, "ema": 0.9})
    assert_no_growth(path, 12, 2, "train.workers=2")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["classification", "segmentation"])
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_open_files_do_not_grow_over_many_epochs(tiny_config, returning, capsys, task, workers):
    path = tiny_config(task, augment={"preset": "all"}, train={"batch_size": 2, "ema": 0.9})
    own, loading, files = assert_no_growth(path, 300, 3, f"train.workers={workers}")
    with capsys.disabled():
        shown = [f"{sizes[e]:.0f}" for sizes in (own, loading) for e in (0, 99, 199, 299)]
        sizes = f"MB at epoch 1, 100, 200, 300: {shown[:4]}, of a worker {shown[4:]}"
        print(f"\n{task} workers={workers}: {sizes}; files {max(files)}")
