"""Training batches: which case each global sample slot takes, and the loader that reads them ahead of the network.

Slot s of a run is sample s % batch_size of step s // batch_size, whatever the ranks and workers. Everything random
about it is addressed by (seed, fold, s).
"""

import functools
import math
import os
import shutil
import warnings
from dataclasses import dataclass

import numpy as np
import torch

from .. import interrupt, patches, seeds
from ..config import UserError
from ..transforms import build as build_transform


@dataclass(frozen=True)
class Plan:
    """How the global batch divides over ranks and forward passes."""

    batch_size: int  # samples per optimizer step, all ranks together
    rank: int
    world_size: int
    micro_batch: int  # samples per forward pass of one rank

    def slots(self, step):
        """Slots of one step on this rank: a list of micro-batches."""
        per_rank = self.batch_size // self.world_size
        first = step * self.batch_size + self.rank * per_rank
        return [
            list(range(first + start, first + start + self.micro_batch)) for start in range(0, per_rank, self.micro_batch)
        ]

    @property
    def micro_batches(self):
        return self.batch_size // self.world_size // self.micro_batch


class Order:
    """The case of each slot: one shuffled pass after another, so that all cases are seen equally often.

    labels: with class labels (balanced sampling) the passes are over the classes, and each class has its own passes.
    """

    def __init__(self, count, seed, fold, labels=None):
        self._address = (seed, fold)
        labels = np.zeros(count, int) if labels is None else np.asarray(labels)
        self._groups = [np.flatnonzero(labels == value) for value in np.unique(labels)]
        self._shuffled = functools.lru_cache(maxsize=2 * len(self._groups) + 2)(self._shuffle)

    def _shuffle(self, size, *address):
        seed, fold = self._address
        return seeds.generator(seed, "order", fold, *address).permutation(size)

    def __getitem__(self, slot):
        turn, place = divmod(slot, len(self._groups))
        which = self._shuffled(len(self._groups), 0, turn)[place]
        members = self._groups[which]
        turn, place = divmod(turn, len(members))
        return int(members[self._shuffled(len(members), 1 + int(which), turn)[place]])

    def __getstate__(self):  # worker processes that are spawned: the memo stays behind
        return {"_address": self._address, "_groups": self._groups}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._shuffled = functools.lru_cache(maxsize=2 * len(self._groups) + 2)(self._shuffle)


_OPEN_CASES = 32  # that a process keeps mapped, for what it costs to map a file again; each is one or two open files


@functools.lru_cache(maxsize=_OPEN_CASES)
def _open(case, segmentation):
    """(image (C, X, Y, Z), mask (X, Y, Z), voxels (N, 3) of each foreground class that the case has), the first two
    tensors over memory maps. Without `segmentation` the mask is None and there are no voxels.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # they are only read
        image = torch.from_numpy(case.image())
        mask = torch.from_numpy(case.mask()) if segmentation else None
    foreground = case.foreground() if segmentation else ()
    if len(foreground):
        foreground = np.split(foreground[:, :3], np.flatnonzero(np.diff(foreground[:, 3])) + 1)
    return image, mask, list(foreground)


class Samples(torch.utils.data.Dataset):
    """slot -> one unaugmented patch {image (C,X,Y,Z) float32, mask (X,Y,Z) uint8 or target, id, slot}."""

    def __init__(self, cases, order, config, fold):
        self.cases, self.order, self.data, self.seed, self.fold = cases, order, config.data, config.seed, fold
        self.segmentation = config.task.type == "segmentation"

    def __getitem__(self, slot):
        case = self.cases[self.order[slot]]
        generator = seeds.generator(self.seed, "crop", self.fold, slot)
        image, mask, foreground = _open(case, self.segmentation)
        position, voxel = self.data.crop_position, None
        if self.segmentation:
            position = "random"
            # drawn even where there is nothing to draw from, so that the draws after it do not depend on the case
            if generator.random() < self.data.foreground_fraction and foreground:
                voxels = foreground[generator.integers(len(foreground))]
                voxel = voxels[generator.integers(len(voxels))]
        start = patches.draw_start(case.shape, self.data.patch, generator, position, voxel)
        image = patches.read(image, start, self.data.patch, case.background, torch.float32)
        sample = {"image": image, "id": case.case.id, "slot": slot}
        if self.segmentation:
            sample["mask"] = patches.read(mask, start, self.data.patch, 0)  # uint8 up to the loss: an eighth to move
        else:
            sample["target"] = case.case.target
        return sample


def augmentation(config):
    """The augmentation of a config; its wrong parameters are the user's error."""
    augment, spacing_mm = config.augment, config.data.spacing_mm
    parameters = dict(augment.parameters or {})
    resample = parameters.get("resample", {})
    if spacing_mm is not None and isinstance(resample, dict):  # angles are those of space
        parameters["resample"] = {"spacing_mm": spacing_mm, **resample}
    try:
        return build_transform(augment.preset, config.data.patch, parameters)
    except ValueError as error:
        raise UserError(f"augment.parameters.{error}") from error


def augments_on_gpu(config):
    """Whether batches leave the loader unaugmented, with their drawn `plans`, to be augmented on the GPU."""
    if config.augment.device == "gpu" and not torch.cuda.is_available():
        raise UserError("augment.device: got gpu where there is none, wanted cpu or auto")
    return config.augment.device != "cpu" and torch.cuda.is_available()


class Collate:
    """Stacks samples into a batch and draws its augmentation, each sample with its own addressed generator."""

    def __init__(self, config, fold):
        self.augment, self.apply = augmentation(config), not augments_on_gpu(config)
        self.seed, self.fold = config.seed, fold

    def __call__(self, samples):
        batch = {name: [sample[name] for sample in samples] for name in samples[0]}
        for name in ("image", "mask"):
            if name in batch:
                batch[name] = torch.stack(batch[name])
        if "target" in batch:
            batch["target"] = torch.tensor(batch["target"], dtype=torch.float32)
        generators = [seeds.generator(self.seed, "augment", self.fold, slot) for slot in batch["slot"]]
        plans = self.augment.draw(generators, *batch["image"].shape[:2])
        if not self.apply:
            return {**batch, "plans": plans}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # sums depend on the number of threads: the same in this process as in a worker
        try:
            return self.augment.apply(batch, plans)
        finally:
            torch.set_num_threads(threads)


def check_shared_memory(config, plan, folder="/dev/shm"):
    """Workers hand batches over in shared memory; in a container it is often 64 MB, and too little kills them later."""
    workers = config.train.workers
    if not workers or not os.path.isdir(folder):
        return
    voxels = math.prod(config.data.patch)
    sample = voxels * (4 * len(config.data.channels) + (config.task.type == "segmentation"))
    needed = (2 * workers + 1) * plan.micro_batch * sample  # two batches ahead per worker, and the one in use
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 1e9:.3g} GB free, wanted {needed / 1e9:.3g} GB for the batches of {workers} workers: "
            "give the container more (docker run --shm-size=8g, or --ipc=host), or set train.workers=0"
        )


def batches(config, cases, fold, plan, first_step, last_step, pin_memory=False):
    """Iterator over the micro-batches of steps first_step .. last_step - 1 of this rank, in order, read ahead."""
    labels = [int(case.case.target) for case in cases] if config.train.balanced else None
    order = Order(len(cases), config.seed, fold, labels)
    slots = [micro for step in range(first_step, last_step) for micro in plan.slots(step)]
    return iter(
        torch.utils.data.DataLoader(
            Samples(cases, order, config, fold),
            batch_sampler=slots,
            collate_fn=Collate(config, fold),
            num_workers=min(config.train.workers, len(slots)),
            pin_memory=pin_memory,
            worker_init_fn=interrupt.ignore_in_worker,
        )
    )
