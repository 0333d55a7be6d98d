"""Masked autoencoder: most cubes of a volume are hidden, and the network restores it; no labels are needed.

He et al. (CVPR 2022), in 3D and with a U-Net as in AMAES (Munk et al. 2024), the pretraining of the FOMO25 baseline.
The mask of a training patch is drawn by the sample's generator. Patch and mask of a validation case depend on the case
alone, so that they are the same in all epochs and on all ranks. Training and validation see the same kind of patch, and
neither scores what lies outside of the volume. The error says little of what has been learned: the last epoch is kept.

With task.global_weight each patch is seen twice, under two masks. Besides being restored, what the encoder says of the
two as a whole shall be alike, and of different scans different in many ways: VICReg (Bardes et al., ICLR 2022), which
needs no negatives. Nothing of it is in the error of validation cases.
"""

import numpy as np

from ..config import show
from ..nets import NETWORKS
from ..runtime import dist, lazy, seeds
from ..runtime.lazy import torch
from ..space import patches
from .results import Answer
from .task import Columns, Rates, Task
from .views import mae as view

losses = lazy.Module("..losses", __package__)
masking = lazy.Module("..transforms.masking", __package__)
two_views = lazy.Module("..nets.two_views", __package__)
views = lazy.Module("..transforms.views", __package__)

_PICTURES = 6  # cases whose reconstructions each process keeps
_OF_COVARIANCE = 1 / 25  # weight of its term against the other two, as published
_PARTS = ("reconstruction", "invariance", "variance", "covariance")


class MaskedAutoencoder(Task):
    mode = "segmentation"  # one value per voxel and channel
    losses = ()
    reads, columns = "nothing", Columns(0, 0, "none: no labels are used")
    rates = Rates(2.5e-4, 2.5e-4)
    select, higher_is_better = "reconstruction_mse", False
    stratum_kind = "class"
    pretrains = True
    keys = (
        "task.mask_ratio",
        "task.mask_cube",
        "task.mask_value",
        "task.mae_loss",
        "task.mae_clamp",
        "task.keep_epoch",
        "task.global_weight",
        "data.crop_position",
    )
    options = ("model.skips", "model.channel_dropout")
    view = view.VIEW

    @classmethod
    def check(cls, config, refuse):
        cube, patch = config.task.mask_cube, config.data.patch
        if 2 * cube > min(patch):
            refuse("task.mask_cube", cube, f"at most half of the shortest axis of data.patch={show(patch)}")
        if (clamp := config.task.mae_clamp) and clamp[0] >= clamp[1]:
            refuse("task.mae_clamp", clamp, "the lower one first")
        if weight := config.task.global_weight:
            name, batch_size = config.model.name, config.train.batch_size
            if NETWORKS[name].mixes_batch:
                refuse("task.global_weight", weight, f"0 for model.name={name}: its features depend on the batch")
            if batch_size < 2:
                wanted = f"at least 2 for task.global_weight={show(weight)}: scans are to differ from one another"
                refuse("train.batch_size", batch_size, wanted)

    def __init__(self, config):
        super().__init__(config)
        self.out_channels = len(config.data.channels)
        self._pictures = 0
        self._views = 2 if config.task.global_weight else 1  # of each patch, in training
        self._seen = []  # of each micro-batch of a step: (slots, parts of the loss, statistics of both views)
        self._watched = []  # parts of the loss of each step since the last look

    @classmethod
    def wanted(cls, section):
        return super().wanted(section)._replace(inside=True)

    @property
    def is_best(self):
        return (lambda row, history: True) if self.config.task.keep_epoch == "last" else None

    def wrap(self, network):
        smallest = NETWORKS[self.config.model.name].holding((1, 1, 1))
        return two_views.TwoViews(network, smallest, self.config.train.batch_size) if self._views == 2 else network

    def load(self, network, load):
        return load(network.network if self._views == 2 else network)

    def augmentation(self):
        augment = super().augmentation()
        return views.Pairs(augment) if self._views == 2 else augment

    def sample_voxels(self, augmented):
        return super().sample_voxels(augmented) * (self._views if augmented else 1)

    def draw(self, generators, batch):
        return self._draw(generators, batch, self._views)

    def _draw(self, generators, batch, views):
        """Masks of each view: `cubes` (B, V, nx, ny, nz) and `offsets` (B, V, 3)."""
        task, image = self.config.task, batch["image"]
        settings = len(image), image.shape[2:], task.mask_ratio, task.mask_cube
        drawn = zip(*(masking.draw_cubes(generators, *settings) for _ in range(views)))
        return {name: torch.stack(each, 1) for name, each in zip(("cubes", "offsets"), drawn)}

    def prepare(self, batch):
        """The masked image; `original`, what is restored; `scored`, which voxels count. `mask`: those in the volume.

        View v of sample b is at v * B + b.
        """
        section, image = self.config.task, batch["image"]
        cubes, offsets = (batch[name].transpose(0, 1).flatten(0, 1) for name in ("cubes", "offsets"))
        masked_image, masked = masking.mask_image(image, cubes, offsets, section.mask_cube, section.mask_value)
        inside = batch["mask"][:, None] > 0
        scored = inside & masked if section.mae_loss == "masked" else inside
        return {**batch, "image": masked_image, "original": self._target(image), "scored": scored}

    def _target(self, image):
        """What is to be restored: outliers would outweigh all else."""
        limits = self.config.task.mae_clamp
        return image if limits is None else image.clamp(*limits)

    def loss(self, outputs, batch):
        if self._views == 1 or isinstance(outputs, torch.Tensor):  # or in evaluation
            return losses.masked_mse(outputs, batch["original"], batch["scored"])
        restored, statistics, vectors, same, covariance = outputs
        error = losses.masked_mse(restored, batch["original"], batch["scored"]).unflatten(0, (2, -1)).mean(0)
        vectors, same = (each.unflatten(0, (2, -1)) for each in (vectors, same))
        spread, apart = losses.vicreg(*same, torch.zeros_like(covariance[0]), covariance)[1:]
        alike = losses.mse(*vectors)
        parts = error, alike, spread, apart
        said = torch.stack([part.detach().mean() for part in parts])
        self._seen.append((batch["slot"], said, statistics.detach().float().unflatten(0, (2, -1))))
        return error + self.config.task.global_weight * (alike + spread + _OF_COVARIANCE * apart)

    def after_step(self, network, step, last_step):
        """Let the network remember this step's scans, of all micro-batches and ranks, in the order of their slots."""
        if self._views == 1:
            return
        seen, self._seen = self._seen, []
        batch_size = self.config.train.batch_size
        statistics = seen[0][2].new_zeros(2, batch_size, seen[0][2].shape[-1])
        for slots, _, own in seen:
            statistics[:, [slot % batch_size for slot in slots]] = own
        network.remember(dist.mean(statistics) * dist.world_size(), step)
        self._watched.append(dist.mean(torch.stack([parts for _, parts, _ in seen]).mean(0)))  # read when it is shown

    def watch(self):
        watched, self._watched = self._watched, []
        return dict(zip(_PARTS, torch.stack(watched).mean(0).tolist())) if watched else {}

    def predict(self, network, case, windows, fold=None):
        """The error over one patch of the case.

        With `fold`, the first cases' central planes are written to its `reconstruction`: original_0..2, masked_0..2 and
        reconstructed_0..2, across the three axes, float16, of the first channel.
        """
        generator, patch = seeds.of_case(self.config.seed, case.id), windows.patch
        start = patches.draw_start(case.shape, patch, generator, self.config.data.crop_position)
        image = patches.read(case.image(), start, patch, case.background).astype(np.float32)
        inside = torch.from_numpy(patches.inside(case.shape, start, patch))
        batch = {"image": torch.from_numpy(image)[None], "mask": inside[None]}
        original = batch["image"]
        batch = self.prepare({**batch, **self._draw([generator], batch, views=1)})
        restored = windows.blend(network, batch["image"][0], case.background).cpu()[None]
        if fold is not None and self._pictures < _PICTURES:
            self._pictures += 1
            volumes = {"original": original, "masked": batch["image"], "reconstructed": restored}
            _write_planes(fold.reconstruction(case.id, new=True), volumes)
        return Answer.of(case, loss=float(self.loss(restored, batch)))

    def score(self, results):
        return {"reconstruction_mse": float(np.mean(*results.arrays("loss")))}

    def intervals(self, results, resamples, seed):
        return {"reconstruction_mse": results.bootstrap(resamples, seed)(np.mean, *results.arrays("loss"))}


def _write_planes(path, volumes):
    planes = {
        f"{name}_{axis}": volume[0, 0].select(axis, volume.shape[2 + axis] // 2).numpy().astype(np.float16)
        for name, volume in volumes.items()
        for axis in range(3)
    }
    np.savez_compressed(path, **planes)
