"""Training batches: the case of each sample slot, and the loader, which reads ahead of the network.

Slot s of a run is sample s % batch_size of step s // batch_size, whatever the ranks and workers. Everything random
about it is addressed by (seed, fold, s).
"""

import collections
import contextlib
import dataclasses
import functools
import os
import shutil
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..config import Config, UserError
from ..runtime import interrupt, seeds
from ..space import patches
from ..transforms import build, mixing
from . import sources
from .cases import Wanted, known
from .order import Order

_OPEN_CASES = 32  # that a process keeps mapped, since mapping again takes time; each is one or two open files
_FEW_BATCHES = 4  # per worker: fewer are read sooner than a process is started


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
        starts = range(first, first + per_rank, self.micro_batch)
        return [list(range(start, start + self.micro_batch)) for start in starts]

    @property
    def micro_batches(self):
        return self.batch_size // self.world_size // self.micro_batch


@functools.lru_cache(maxsize=_OPEN_CASES)
def _open(case, masked):
    """(image (C, X, Y, Z), mask (X, Y, Z) or None, both mapped, [voxels (N, 3) of each foreground class it has])."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # they are only read
        image = torch.from_numpy(case.image())
        mask = torch.from_numpy(case.mask()) if masked else None
    foreground = case.foreground() if masked else ()
    if len(foreground):
        foreground = np.split(foreground[:, :3], np.flatnonzero(np.diff(foreground[:, 3])) + 1)
    return image, mask, list(foreground)


@dataclass(frozen=True)
class Samples(Dataset):
    """slot -> one unaugmented patch {image (C,X,Y,Z) float32, mask (X,Y,Z) uint8 or target, id, slot, outside}.

    Of labels with masks of the findings (Wanted.finding) it has both, each label's finding being a bit of the mask, and
    `known`, of each label: whether the mask is right. A finding is empty for a case of class 0, and for one of class 1
    without a mask, of which it is not known.

    With augment.mix also `mix`, a plan or None; with a plan `partner`, the sample of another slot of the same step,
    whichever rank has it.
    """

    cases: list
    order: Order
    config: Config
    wanted: Wanted
    fold: int

    def __getitem__(self, slot):
        sample, augment, batch_size = self._read(slot), self.config.augment, self.config.train.batch_size
        if augment.mix != "none":
            place, generator = slot % batch_size, seeds.generator(self.config.seed, "mix", self.fold, slot)
            size = batch_size, self.config.data.patch
            sample["mix"] = plan = mixing.draw(augment.mix, generator, place, *size, augment.mix_p)
            if plan is not None:
                sample["partner"] = self._read(slot - place + plan["partner"])
        return sample

    def ids(self, slots):
        """The ids of the cases of some slots."""
        return [self.cases[self.order[slot]].id for slot in slots]

    def _read(self, slot):
        case, data = self.cases[self.order[slot]], self.config.data
        facts = {"id": case.id, "slot": slot, "outside": case.outside}
        if case.is_patch:
            target = {} if self.wanted.pretraining else {"target": case.target}
            return {"image": torch.from_numpy(case.distinct()), **facts, **target}
        image, mask, foreground = _open(case, self.wanted.masked and bool(case.class_voxels))
        generator = seeds.generator(self.config.seed, "crop", self.fold, slot)
        position, voxel = data.crop_position, None
        if self.wanted.masked:
            position = "random"
            # drawn even without foreground, so that the draws after it do not depend on the case
            if generator.random() < data.foreground_fraction and foreground:
                voxels = foreground[generator.integers(len(foreground))]
                voxel = voxels[generator.integers(len(voxels))]
        start = patches.draw_start(case.shape, data.patch, generator, position, voxel)
        image = patches.read(image, start, data.patch, case.background, torch.float32)
        sample = {"image": image, **facts}
        if mask is not None:
            sample["mask"] = patches.read(mask, start, data.patch, 0)  # uint8 until the loss: less to move
        elif self.wanted.inside:
            sample["mask"] = torch.from_numpy(patches.inside(case.shape, start, data.patch))
        elif self.wanted.masked:
            sample["mask"] = torch.zeros(data.patch, dtype=torch.uint8)
        if self.wanted.finding:
            sample["known"] = known(case.findings, np.atleast_1d(case.target))
        if self.wanted.kind != "mask" and not self.wanted.pretraining:
            sample["target"] = case.target
        return sample


def augmentation(config, build=build):
    """The augmentation of a config, by a function `build` like that of `transforms`. UserError for wrong parameters."""
    parameters = dict(config.augment.parameters or {})
    spacing_mm = config.data.spacing_mm if sources.of(config.data).geometry else None
    resample = parameters.get("resample", {})
    if spacing_mm is not None and isinstance(resample, dict):  # angles are those of space
        parameters["resample"] = {"spacing_mm": spacing_mm, **resample}
    try:
        return build(config.augment.preset, config.data.patch, parameters)
    except ValueError as error:
        raise UserError(f"augment.parameters.{str(error)[:1000]}") from error


def drops_channels(config):
    """Whether training samples lose channels, see `transforms.intensity.dropout`."""
    dropout = augmentation(config).parameters["channel_dropout"]
    return dropout["p"] > 0 and dropout["channel_p"] > 0


def augments_on_gpu(config):
    """Whether batches leave the loader unaugmented, with their drawn `plans`, to be augmented on the GPU."""
    if config.augment.device == "gpu" and not torch.cuda.is_available():
        raise UserError("augment.device: got gpu where there is none, wanted cpu or auto")
    return config.augment.device != "cpu" and torch.cuda.is_available()


class Collate:
    """Stacks samples into a batch and draws its augmentation, each sample with its own addressed generator.

    With augment.mix the batch has also `own_share` (B,), each sample's share of its image, and `partner_target`, the
    target of what fills the rest. scaling: see `Prepared.scaling`.
    """

    def __init__(self, config, task, fold, scaling=None):
        self.augment, self.apply = task.augmentation(), not augments_on_gpu(config)
        self.seed, self.fold, self.draw, self.scaling = config.seed, fold, task.draw, scaling

    def __call__(self, samples):
        batch = {name: [sample[name] for sample in samples] for name in samples[0] if name != "partner"}
        batch.update({name: torch.stack(batch[name]) for name in ("image", "mask") if name in batch})
        if "target" in batch:
            batch["target"] = torch.tensor(batch["target"], dtype=torch.float32)
        if "known" in batch:
            batch["known"] = torch.tensor(batch["known"])
        if self.draw is not None:
            batch.update(self.draw(self._generators("task", batch["slot"]), batch))
        slots, outside = batch["slot"], batch.pop("outside")
        if "mix" in batch:
            partners = _add_partners(batch, samples)
            slots = slots + [one["slot"] for one in partners]
            outside = outside + [one["outside"] for one in partners]
        if self.scaling is not None:
            batch["scaling"] = self.scaling
            outside = None  # of several channels that are one
        plans = self.augment.draw(self._generators("augment", slots), *batch["image"].shape[:2], outside)
        return {**batch, "plans": plans} if not self.apply else augmented(self.augment, batch, plans)

    def _generators(self, stream, slots):
        return [seeds.generator(self.seed, stream, self.fold, slot) for slot in slots]


def _add_partners(batch, samples):
    """Add the partners of mixed samples, their images behind those of the batch until `mixed`; returns them."""
    partners = [sample["partner"] for sample in samples if sample["mix"] is not None]
    targets = [sample.get("partner", sample)["target"] for sample in samples]
    batch["partner_target"] = torch.tensor(targets, dtype=torch.float32)
    batch["own_share"] = torch.tensor([1.0 if plan is None else plan["share"] for plan in batch["mix"]])
    batch["image"] = torch.cat([batch["image"], *(partner["image"][None] for partner in partners)])
    return partners


def augmented(augment, batch, plans):
    """The batch augmented and mixed, by one thread: sums depend on their number, and small matrices need no more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return mixed(augment.apply(batch, plans))
    finally:
        torch.set_num_threads(threads)


def mixed(batch):
    """An augmented batch, its samples mixed with their partners, and slices that are several channels repeated."""
    batch = dict(batch)
    plans, scaling = batch.pop("mix", None), batch.pop("scaling", None)
    if plans is not None:
        batch["image"] = mixing.mix(batch["image"][: len(plans)], batch["image"][len(plans) :], plans)
    if scaling is not None:
        scaling = torch.tensor(scaling).to(
            batch["image"].device, non_blocking=True
        )  # lists, where torch 2.5 has pinned
        means, deviations = scaling.T[..., None, None, None]
        plain = not means.any() and bool((deviations == 1).all())
        for name in ("image", "local") if "local" in batch else ("image",):
            repeated = batch[name].expand(-1, len(scaling), -1, -1, -1)
            batch[name] = repeated if plain else (repeated - means) / deviations
    return batch


def check_shared_memory(config, task, plan, folder="/dev/shm"):
    """Raise UserError if the workers' batches do not fit into shared memory: they would be killed without a word."""
    workers = config.train.workers
    if not workers or not os.path.isdir(folder):
        return
    on_gpu = augments_on_gpu(config)
    sample = task.sample_voxels(augmented=not on_gpu) * (
        4 * len(config.data.channels) + task.wanted(config.task).masked
    )
    if on_gpu and config.augment.mix != "none":
        sample *= 2  # partners come along
    needed = (2 * workers + 1) * plan.micro_batch * sample  # two batches ahead per worker, and the one in use
    if (free := shutil.disk_usage(folder).free) < needed:
        wanted = f"wanted {needed / 1e9:.3g} GB for the batches of {workers} workers"
        advice = "give the container more (docker run --shm-size=8g, or --ipc=host), or set train.workers=0"
        raise UserError(f"{folder} has {free / 1e9:.3g} GB free, {wanted}: {advice}")


def read_batch(config, task, cases, fold, slots):
    """One micro-batch, of the given slots, read in this process."""
    samples, collate = _reading(config, task, cases, fold)
    return collate([samples[slot] for slot in slots])


def _reading(config, task, cases, fold):
    """(Samples, Collate) of the training cases of a fold."""
    groups = task.balance(cases) if config.train.balanced else None
    samples = Samples(cases, Order(len(cases), config.seed, fold, groups), config, task.wanted(config.task), fold)
    return samples, Collate(config, task, fold, cases[0].scaling)


def before_and_after(config, task, case, fold):
    """({name: value} of a training patch of a case, the same augmented): what a step would see of it, on the CPU.

    Both have image (C, X, Y, Z) and, where there is one, mask (X, Y, Z); a task that makes views has no second image.
    """
    augment = dataclasses.replace(config.augment, mix="none", device="cpu")  # of this case alone
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, balanced=False), augment=augment)
    samples, collate = _reading(config, task, [case], fold)
    before, batch = samples[0], collate([samples[0]])
    after = {name: batch[name][0] for name in ("image", "mask") if name in batch}
    if "image" in after and after["image"].shape[1:] != before["image"].shape[1:]:
        del after["image"]
    return before, after


def batches(config, task, cases, fold, plan, first_step, last_step, pin_memory=False):
    """Iterator over the micro-batches of steps first_step .. last_step - 1 of this rank, in order, read ahead."""
    steps = range(first_step, last_step)
    slots = (micro_batch for step in steps for micro_batch in plan.slots(step))  # a list could be very long
    workers = min(config.train.workers, len(steps) * plan.micro_batches)
    return _read_ahead(*_reading(config, task, cases, fold), slots, workers, pin_memory)


class WorkerKilled(RuntimeError):
    exit_code = 1

    def __init__(self, ids=()):
        while_read = f" while it read one of {', '.join(ids)}" if ids else ""
        advice = "lower train.workers, or give the machine more memory; the same command continues"
        super().__init__(f"a process that reads batches was killed{while_read}, as where memory is short: {advice}")


@contextlib.contextmanager
def explained():
    """One line for a worker that was killed: torch raises it wherever this process is at that moment."""
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise WorkerKilled from error


def _read_ahead(data_set, collate, batches, workers, pin_memory):
    """Yield the `batches` of indices of a data set, collated, in order."""
    ahead = collections.deque()  # the batches that were asked for and have not come

    def asked():
        for batch in batches:
            ahead.append(batch)
            yield batch

    options = dict(num_workers=workers, pin_memory=pin_memory, worker_init_fn=interrupt.ignore_in_worker)
    loader = iter(DataLoader(data_set, batch_sampler=asked(), collate_fn=collate, **options))
    come = 0
    try:
        for batch in loader:
            ahead.popleft()
            come += 1
            yield batch
    except UserError as error:  # without the traceback that torch puts around it in a worker
        raise UserError(str(error).rstrip().rpartition(f"{UserError.__name__}: ")[2]) from None
    except (RuntimeError, OSError, EOFError) as error:
        dead = [number for number, worker in enumerate(getattr(loader, "_workers", ())) if not worker.is_alive()]
        if not dead:
            raise
        # batches go to the workers in turn
        lost = [batch for number in dead for batch in list(ahead)[(number - come) % workers :: workers]]
        raise WorkerKilled(sorted({id for batch in lost for id in data_set.ids(batch)})) from error
    finally:  # torch's frames of an error hold the iterator until the process ends, which would wait for its workers
        if hasattr(loader, "_shutdown_workers"):
            loader._shutdown_workers()


def in_one_window(case, patch):
    """Whether a window of `patch` voxels holds the whole case."""
    return all(size <= length for size, length in zip(case.shape, patch))


@dataclass(frozen=True)
class WholeCases(Dataset):
    """Index -> image (C, *patch) float32 of a case that one window holds, in its middle."""

    cases: list
    patch: tuple[int, int, int]

    def __getitem__(self, index):
        case = self.cases[index]
        image, _, _ = _open(case, False)
        start = patches.draw_start(case.shape, self.patch, None, "center")
        return patches.read(image, start, self.patch, case.background, torch.float32)

    def ids(self, indices):
        return [self.cases[index].id for index in indices]


def whole_cases(config, cases, batches, pin_memory=False):
    """Iterator over the images (B, C, *patch) of `batches`, lists of indices of `cases`, in order, read ahead."""
    workers = min(config.train.workers, len(batches) // _FEW_BATCHES)
    return _read_ahead(WholeCases(cases, config.data.patch), torch.stack, batches, workers, pin_memory)
