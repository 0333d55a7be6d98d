"""Masked autoencoder: most cubes of a volume are hidden, and the network restores it; no labels are needed.

He et al. (CVPR 2022), in 3D and with a U-Net as in AMAES (Munk et al. 2024), the pretraining of the FOMO25 baseline.
The mask of a training patch is drawn by the sample's generator. That of a validation case depends on the case alone, so
that it is the same in all epochs and on all ranks.
"""

import numpy as np
import torch

from .. import losses
from ..config import show
from ..runtime import seeds
from ..transforms import masking
from .results import Answer
from .task import Columns, Task
from .views import mae as view

_PICTURES = 6  # cases whose reconstructions each process keeps


class MaskedAutoencoder(Task):
    mode = "segmentation"  # one value per voxel and channel
    losses = ()
    reads, columns = "nothing", Columns(0, 0, "none: no labels are used")
    select, higher_is_better = "reconstruction_mse", False
    stratum_kind = "class"
    pretrains = True
    keys = (
        "task.mask_ratio",
        "task.mask_cube",
        "task.mask_value",
        "task.mae_loss",
        "task.mae_clamp",
        "data.crop_position",
    )
    options = ("model.skips",)
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

    def draw(self, generators, batch):
        task, image = self.config.task, batch["image"]
        return {"cubes": masking.draw_cubes(generators, len(image), image.shape[2:], task.mask_ratio, task.mask_cube)}

    def prepare(self, batch):
        image, masked = self._mask(batch["image"], batch["cubes"])
        return {**batch, "image": image, "original": self._target(batch["image"]), "masked": masked}

    def _mask(self, image, cubes):
        return masking.mask_image(image, cubes, self.config.task.mask_cube, self.config.task.mask_value)

    def _target(self, image):
        """What is to be restored: outliers would outweigh all else."""
        limits = self.config.task.mae_clamp
        return image if limits is None else image.clamp(*limits)

    def loss(self, outputs, batch):
        return losses.masked_mse(outputs, batch["original"], self._scored(batch["masked"]))

    def _scored(self, masked):
        return masked if self.config.task.mae_loss == "masked" else None

    def predict(self, network, case, windows, fold=None):
        """The error over the whole case, restored window by window.

        With `fold`, the first cases' central planes are written to its `reconstruction`: original_0..2, masked_0..2 and
        reconstructed_0..2, across the three axes, float16, of the first channel.
        """
        section = self.config.task
        original = torch.from_numpy(np.array(case.image(), np.float32))[None]
        generator = seeds.of_case(self.config.seed, case.id)
        cubes = masking.draw_cubes([generator], 1, case.shape, section.mask_ratio, section.mask_cube)
        image, masked = self._mask(original, cubes)
        restored = windows.blend(network, image[0], case.background).cpu()[None]
        if fold is not None and self._pictures < _PICTURES:
            self._pictures += 1
            volumes = {"original": original, "masked": image, "reconstructed": restored}
            _write_planes(fold.reconstruction(case.id, new=True), volumes)
        return Answer.of(case, loss=float(losses.masked_mse(restored, self._target(original), self._scored(masked))))

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
