"""Masked autoencoder: most cubes of a volume are hidden, and the network restores it; no labels are needed.

He et al. (CVPR 2022), in 3D and with a U-Net as in AMAES (Munk et al. 2024), the pretraining of the FOMO25 baseline.
The mask of a training patch is drawn by the sample's generator. Patch and mask of a validation case depend on the case
alone, so that they are the same in all epochs and on all ranks. Training and validation see the same kind of patch, and
neither scores what lies outside of the volume. The error says little of what has been learned: the last epoch is kept.
"""

import numpy as np

from ..config import show
from ..runtime import lazy, seeds
from ..runtime.lazy import torch
from ..space import patches
from .results import Answer
from .task import Columns, Rates, Task
from .views import mae as view

losses = lazy.Module("..losses", __package__)
masking = lazy.Module("..transforms.masking", __package__)

_PICTURES = 6  # cases whose reconstructions each process keeps


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

    def __init__(self, config):
        super().__init__(config)
        self.out_channels = len(config.data.channels)
        self._pictures = 0

    @classmethod
    def wanted(cls, section):
        return super().wanted(section)._replace(inside=True)

    @property
    def is_best(self):
        return (lambda row, history: True) if self.config.task.keep_epoch == "last" else None

    def draw(self, generators, batch):
        task, image = self.config.task, batch["image"]
        drawn = masking.draw_cubes(generators, len(image), image.shape[2:], task.mask_ratio, task.mask_cube)
        return dict(zip(("cubes", "offsets"), drawn))

    def prepare(self, batch):
        """The masked image; `original`, what is restored; `scored`, which voxels count. `mask`: those in the volume."""
        section, image = self.config.task, batch["image"]
        masked_image, masked = masking.mask_image(
            image, batch["cubes"], batch["offsets"], section.mask_cube, section.mask_value
        )
        inside = batch["mask"][:, None] > 0
        scored = inside & masked if section.mae_loss == "masked" else inside
        return {**batch, "image": masked_image, "original": self._target(image), "scored": scored}

    def _target(self, image):
        """What is to be restored: outliers would outweigh all else."""
        limits = self.config.task.mae_clamp
        return image if limits is None else image.clamp(*limits)

    def loss(self, outputs, batch):
        return losses.masked_mse(outputs, batch["original"], batch["scored"])

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
        batch = self.prepare({**batch, **self.draw([generator], batch)})
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
