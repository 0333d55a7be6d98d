"""Other libraries for the part `data`: each one's own augmentation of the same image, and its own reading.

An augmentation is a function without arguments that makes one sample; image: (C, X, Y, Z), mask: (X, Y, Z), numpy. With
`spatial` it only turns, scales and deforms.
"""

import contextlib
import io
import pickle

import numpy as np
import torch

PATCH = (96, 96, 96)
DEGREES = 30.0


def batchgeneratorsv2(library, image, mask, spatial):
    """nnU-Net's default training transforms; for `spatial` with the elastic deformation that they leave out."""
    from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
    from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
    from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
    from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
    from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
    from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
    from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
    from batchgeneratorsv2.transforms.utils.random import RandomTransform

    angle = np.deg2rad(DEGREES)
    steps = [
        library.SpatialTransform(
            PATCH, patch_center_dist_from_border=0, random_crop=False, p_elastic_deform=0.33 if spatial else 0.0,
            p_rotation=0.2, rotation=(-angle, angle), p_scaling=0.2, scaling=(0.9, 1.1) if spatial else (0.7, 1.4),
            p_synchronize_scaling_across_axes=1,
        )
    ]  # fmt: skip
    if not spatial:
        each = dict(synchronize_channels=False, p_per_channel=1.0)
        contrast, gamma = BGContrast((0.75, 1.25)), BGContrast((0.7, 1.5))
        blur = GaussianBlurTransform(
            (0.5, 1.0), synchronize_channels=False, synchronize_axes=False, p_per_channel=0.5, benchmark=True
        )
        coarse = SimulateLowResolutionTransform((0.5, 1), False, True, None, None, 0.5)
        steps += [
            RandomTransform(GaussianNoiseTransform((0, 0.1), p_per_channel=1, synchronize_channels=True), 0.1),
            RandomTransform(blur, 0.2),
            RandomTransform(MultiplicativeBrightnessTransform(contrast, **each), 0.15),
            RandomTransform(ContrastTransform(contrast, preserve_range=True, **each), 0.15),
            RandomTransform(coarse, 0.25),
            RandomTransform(GammaTransform(gamma, p_invert_image=1, p_retain_stats=1, **each), 0.1),
            RandomTransform(GammaTransform(gamma, p_invert_image=0, p_retain_stats=1, **each), 0.3),
            MirrorTransform((0, 1, 2)),
        ]
    transform = ComposeTransforms(steps)
    label = torch.from_numpy(mask.astype(np.int16))[None]
    return lambda: transform(image=torch.from_numpy(image).clone(), segmentation=label.clone())


def monai(library, image, mask, spatial):
    """The transforms of preset `all` that MONAI has (no ghosting); elastic sigma 3-4, because 20-30 takes minutes."""
    both, one, angle = ["image", "mask"], ["image"], (np.deg2rad(DEGREES),) * 3
    modes = dict(mode=("bilinear", "nearest"))
    steps = [
        library.Rand3DElasticd(both, (3, 4), (200, 600), prob=0.33, **modes),
        library.RandAffined(both, prob=0.36, rotate_range=angle, scale_range=(0.1,) * 3, **modes),
    ]
    if not spatial:
        sigma = dict.fromkeys(("sigma_x", "sigma_y", "sigma_z"), (0.25, 1.0))
        steps += [
            library.RandGaussianNoised(one, prob=0.2),
            library.RandGaussianSmoothd(one, prob=0.2, **sigma),
            library.RandGaussianNoised(one, prob=0.2),
            library.RandGibbsNoised(one, prob=0.2),
            library.RandSimulateLowResolutiond(one, prob=0.2),
            library.RandBiasFieldd(one, prob=0.33),
            library.RandAdjustContrastd(one, prob=0.2, gamma=(0.5, 2.0)),
        ]
    transform = library.Compose(steps)
    return lambda: transform({"image": torch.from_numpy(image).clone(), "mask": torch.from_numpy(mask)[None].clone()})


def torchio(library, image, mask, spatial):
    """The transforms of preset `all` that TorchIO has; a spike stands for Gibbs ringing."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    steps = [library.RandomElasticDeformation(p=0.33), library.RandomAffine(scales=0.1, degrees=DEGREES, p=0.36)]
    if not spatial:
        steps += [
            library.RandomNoise(p=0.2),
            library.RandomBlur(std=(0, 1), p=0.2),
            library.RandomNoise(p=0.2),
            library.RandomGhosting(p=0.2),
            library.RandomSpike(p=0.2),
            library.RandomAnisotropy(p=0.2),
            library.RandomBiasField(p=0.33),
            library.RandomGamma(p=0.2),
        ]
    transform = library.Compose(steps)

    def run():
        channels, label = torch.from_numpy(image), torch.from_numpy(mask)[None]
        return transform(
            library.Subject(image=library.ScalarImage(tensor=channels), mask=library.LabelMap(tensor=label))
        )

    return run


def yucca(library, image, mask, spatial):
    """yucca's defaults, which are the FOMO25 baseline's preset `all`."""
    from yucca.modules.data.augmentation.augmentation_presets import no_aug

    changes = {
        "elastic_deform_p_per_sample": 0.33,
        "rotation_p_per_sample": 0.2,
        "rotation_p_per_axis": 0.66,
        "scale_p_per_sample": 0.2,
    }
    with contextlib.redirect_stdout(io.StringIO()):
        composer = library.YuccaAugmentationComposer(
            patch_size=PATCH, parameter_dict=no_aug | changes if spatial else {}
        )
    return lambda: composer.train_transforms({"image": image.copy(), "label": mask[None].copy()})


PEERS = {"batchgeneratorsv2": batchgeneratorsv2, "monai": monai, "torchio": torchio, "yucca": yucca}


def read_yucca(paths, foreground):
    from yucca.modules.data.datasets.YuccaDataset import YuccaTrainDataset

    labels = foreground[:, 3]
    locations = {int(label): foreground[labels == label, :3].tolist() for label in np.unique(labels)}
    for path in paths:
        with open(path + ".pkl", "wb") as file:
            pickle.dump({"foreground_locations": locations}, file)
    data, rng = YuccaTrainDataset(paths, PATCH, p_oversample_foreground=1.0), np.random.default_rng(0)
    return lambda: data[rng.integers(len(data))]


def read_monai(library, rows):
    from monai.data import CacheDataset

    keys = ["image", "mask"]
    steps = [
        library.LoadImaged(keys),
        library.EnsureChannelFirstd(keys),
        library.RandCropByPosNegLabeld(keys, "mask", PATCH, pos=1, neg=0, num_samples=1),
    ]
    rows = [{"image": [row["flair"], row["swi"]], "mask": row["mask"]} for row in rows]
    data = CacheDataset(rows, library.Compose(steps), num_workers=1, progress=False)
    rng = np.random.default_rng(0)
    return lambda: data[rng.integers(len(data))]


def read_torchio(library, rows):
    subjects = [
        library.Subject(image=library.ScalarImage([row["flair"], row["swi"]]), mask=library.LabelMap(row["mask"]))
        for row in rows
    ]
    sampler = library.LabelSampler(PATCH, label_name="mask")
    queue = library.Queue(library.SubjectsDataset(subjects), 40, 8, sampler, num_workers=0)
    return lambda: queue[0]
