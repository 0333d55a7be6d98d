"""MONAI as an arm of `peers.py`: what its tutorials would take for such cases, at the time that there is.

Masks: a DynUNet with instance norm and deep supervision, Dice and cross-entropy; cubes of 64 voxels, half of them about
foreground; flips of `flips` axes, other intensities; windows that overlap by half; bfloat16 unless bf16=0. Labels: a
DenseNet121 on whole volumes; flips, rotations, other intensities; float32 unless bf16=1, in which torch's gradients are
wrong at the size of its last maps (fomo/nets/conv.py). AdamW, a cosine over CPU-seconds, the best of six validations.
"""

import copy
import itertools
import math

import arms
import numpy as np
import torch

from fomo import metrics

VALIDATIONS = 6
PATCH, WHOLE = (64, 64, 64), (64, 72, 64)  # voxels


def anneal(network, batches, loss_of, score, cpu_s, lr, bf16):
    """(CPU-seconds, steps) of a training by AdamW and a cosine; leaves the network as in its best validation."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-5)
    began, steps, validations, validation_s, loss, best, kept = arms.cpu_s(), 0, 0, 0.0, math.nan, -math.inf, None
    for batch in itertools.chain.from_iterable(itertools.repeat(batches)):
        share = (arms.cpu_s() - began) / (cpu_s - validation_s)  # the last validation is within the time
        if share * VALIDATIONS >= validations + 1:
            validation_s, value = -arms.cpu_s(), score(network.eval())
            validation_s += arms.cpu_s()
            validations += 1
            print(f"monai {steps=} cpu_s={arms.cpu_s() - began:.0f} loss={loss:.4g} val={value:.4g}", flush=True)
            if value >= best:
                best, kept = value, copy.deepcopy(network.state_dict())
            if validations == VALIDATIONS:
                break
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * min(share, 1))) / 2
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
            outputs = network.train()(batch["image"])
        error = loss_of(outputs.float(), batch)
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        steps, loss = steps + 1, error.item()
    cpu_s = arms.cpu_s() - began
    network.eval().load_state_dict(kept)
    return cpu_s, steps


def loaders(parts, keys, before, augment, batch_size):
    """Loaders of train, val and test; what is before the augmentation is done once, and kept in memory."""
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import Compose, EnsureTyped

    for part, chain, size in (("train", augment, batch_size), ("val", [], 1), ("test", [], 1)):
        chain = Compose([*before, *chain, EnsureTyped(keys, track_meta=False)])
        dataset = CacheDataset(parts[part], chain, num_workers=0, progress=False)
        yield DataLoader(dataset, batch_size=size, shuffle=part == "train")


def masks(_, parts, seed, cpu_s, *, width=8, lr=1e-3, flips=3, bf16=1):
    """(CPU-seconds, steps, rows of the test cases) of a segmentation."""
    from monai import inferers, losses, transforms, utils
    from monai.networks.nets import DynUNet

    utils.set_determinism(seed)
    both = ("image", "mask")
    before = [
        transforms.LoadImaged(both, ensure_channel_first=True),
        transforms.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
    ]
    augment = [
        transforms.CropForegroundd(both, "image", allow_smaller=True, select_fn=lambda image: image != 0),
        transforms.SpatialPadd(both, PATCH),
        transforms.RandCropByPosNegLabeld(both, "mask", PATCH, pos=1, neg=1, num_samples=1),
        *(transforms.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(int(flips))),
        transforms.RandScaleIntensityd("image", 0.1, prob=1),
        transforms.RandShiftIntensityd("image", 0.1, prob=1),
    ]
    train, val, test = loaders(parts, both, before, augment, 2)
    filters, strides = [int(width) * 2**level for level in range(5)], [1, 2, 2, 2, 2]
    channels = len(parts["train"][0]["image"])
    shape = dict(kernel_size=[3] * 5, strides=strides, upsample_kernel_size=strides[1:], filters=filters)
    network = DynUNet(3, channels, 2, **shape, deep_supervision=True, deep_supr_num=3)
    loss = losses.DiceCELoss(to_onehot_y=True, softmax=True)

    def loss_of(outputs, batch):
        each = [0.5**level * loss(output, batch["mask"]) for level, output in enumerate(outputs.unbind(1))]
        return sum(each) / sum(0.5**level for level in range(len(each)))

    def rows(loader, part):
        for case, batch in zip(parts[part], loader):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
                outputs = inferers.sliding_window_inference(batch["image"], PATCH, 2, network, overlap=0.5)
            yield arms.dice_row(case, outputs[0].argmax(0).numpy() == 1)

    def score(network):
        return np.nanmean([row["dice"] for row in rows(val, "val")])

    return *anneal(network, train, loss_of, score, cpu_s, lr, bf16), list(rows(test, "test"))


def labels(_, parts, seed, cpu_s, *, lr=1e-4, bf16=0):
    """(CPU-seconds, steps, rows of the test cases) of a classification."""
    from monai import transforms, utils
    from monai.networks.nets import DenseNet121

    utils.set_determinism(seed)
    before = [
        transforms.LoadImaged("image", ensure_channel_first=True),
        transforms.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        transforms.ResizeWithPadOrCropd("image", WHOLE),
    ]
    augment = [
        transforms.RandFlipd("image", prob=0.5, spatial_axis=0),
        transforms.RandRotated("image", 0.2, 0.2, 0.2, prob=0.5, padding_mode="zeros"),
        transforms.RandScaleIntensityd("image", 0.1, prob=1),
        transforms.RandShiftIntensityd("image", 0.1, prob=1),
    ]
    train, val, test = loaders(parts, "image", before, augment, 4)
    network = DenseNet121(spatial_dims=3, in_channels=len(parts["train"][0]["image"]), out_channels=2)

    def loss_of(outputs, batch):
        return torch.nn.functional.cross_entropy(outputs, torch.tensor([int(text) for text in batch["target"]]))

    def rows(loader, part):
        for case, batch in zip(parts[part], loader):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bool(bf16)):
                chance = network(batch["image"]).float().softmax(1)[0, 1]
            yield {"id": case["id"], "target": int(case["target"]), "probability": float(chance)}

    def score(network):
        found = list(rows(val, "val"))
        return metrics.auroc([row["target"] for row in found], [row["probability"] for row in found])

    return *anneal(network, train, loss_of, score, cpu_s, lr, bf16), list(rows(test, "test"))
