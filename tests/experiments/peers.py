"""What do others reach in the same time? This project, MONAI and nnU-Net, at equal CPU-seconds, on the same cases.

  pip install monai nnunetv2     (besides this project's requirements; only the arms that run need them)
  python shared/make_semi_real.py --out semi/train --subjects 60 --seed 1
  python shared/make_semi_real.py --out semi/test --subjects 60 --seed 2
  python tests/experiments/peers.py semi/train semi/test runs/peers --task 2 --seeds 0 1 \\
      --arm "ours: train.steps=300 train.steps_per_epoch=50" --arm "monai: lr=3e-3" \\
      --arm "nnunet: mirror=0" --arm "nnunet narrow: width=8 bf16=1"
  python tests/experiments/peers.py semi/train semi/test runs/peers --task 1 --seeds 0 \\
      --arm "ours: task.evidence=none train.steps=150 train.steps_per_epoch=25" \\
      --arm "monai:" --arm "monai longer: times=3"

An arm begins with who it is. The first one is ours, and takes any key of a config; its training sets the CPU-seconds
that each other arm of the seed has, or so many `times`: of all threads, with validations, without what is read and
preprocessed before and tested afterwards. All rates end with the time. Cases and parts are those of `recipes.py`.

- monai, task 2: DynUNet of as many channels, instance norm, deep supervision; flips, other intensities. Task 1:
  DenseNet121. AdamW (`lr`) and a cosine, bfloat16 unless `bf16=0`, the best of six validations.
- nnunet, task 2: see `peers_nnunet.py`. Of a training in so little time most depends on `width`.

Prints of each run its CPU-seconds, steps and score, and then what `arms.report` says: all by this project's metrics.
Runs that are finished are kept: the same command goes on.
"""

import argparse
import copy
import csv
import itertools
import math
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import arms
import nibabel
import numpy as np
import recipes
import torch

from fomo import metrics, tasks
from fomo.config import to_dict
from fomo.data import sources
from fomo.runtime import files
from fomo.runtime.log import Log

VALIDATIONS = 6
PATCH, WHOLE = (64, 64, 64), (64, 72, 64)  # voxels of MONAI's networks
SETTINGS = {"monai": dict(times=1, lr=None, bf16=1), "nnunet": dict(times=1, width=None, bf16=0, mirror=1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path, help="where tables and runs go")
    parser.add_argument("--task", type=int, default=2, choices=(1, 2))
    parser.add_argument("--labelled", type=int, default=40, help="subjects to train on")
    parser.add_argument("--selecting", type=int, default=8, help="further ones, to choose the epoch")
    parser.add_argument("--width", type=int, default=8, help="channels of the first level: ours, and MONAI's U-Net")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1))
    parser.add_argument("--arm", action="append", required=True, help="WHO FURTHER NAME: key=value key=value ...")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found, results = [text.partition(":") for text in options.arm], {}
    if [arm.split()[:1] for arm, _, _ in found][0] != ["ours"]:
        parser.error(f"--arm: got {options.arm[0]!r} first, wanted ours, which sets the time of the others")
    for seed in options.seeds:
        first = None
        for arm, _, settings in found:
            run = finished(options, arm, settings.split(), seed, first)
            first = first or run["cpu_s"]
            results.setdefault(arm, []).append(run["rows"])
            print(f"run arm={arm!r} seed={seed} cpu_s={run['cpu_s']:.0f} steps={run['steps']}", flush=True)
    arms.report(recipes.TASKS[options.task][0], results)


def finished(options, arm, settings, seed, cpu_s):
    """{settings, cpu_s, steps, rows} of one run, from its file where there is one; cpu_s: those of ours."""
    name = f"task{options.task}_n{options.labelled}_w{options.width}_{arm.replace(' ', '-')}_{seed}"
    path = options.folder.resolve() / "peers" / f"{name}.json"
    if path.exists():
        known = files.read_json(path)
        if known["settings"] != settings:
            sys.exit(f"{path}: got {settings}, wanted {known['settings']}, with which it was made: take another name")
        return known
    train = ours if cpu_s is None else peer
    cpu_s, steps, rows = train(options, arm, settings, seed, cpu_s)
    run = {"settings": settings, "cpu_s": cpu_s, "steps": steps, "rows": sorted(rows, key=lambda row: row["id"])}
    os.makedirs(path.parent, exist_ok=True)
    files.write_json(path, run)
    return run


def ours(options, arm, settings, seed, _):
    """(CPU-seconds of the training, steps, rows of the test cases)."""
    config = recipes.config_of(options, arm, [*settings, "train.mode=train"], seed)
    folder, wanted = pathlib.Path(config.output, config.name), tasks.wanted(config)
    if folder.exists():
        sys.exit(f"{folder}: a training that was stopped, whose CPU-seconds are not known: delete it")
    sources.prepare(sources.list_cases(config.data, wanted, log=Log()), config.data, wanted, Log())
    began = arms.cpu_s()
    arms.run(to_dict(config))
    return arms.cpu_s() - began, config.train.steps, recipes.train(options, arm, settings, seed)


def peer(options, arm, settings, seed, cpu_s):
    """The same of another's training."""
    who = arm.split()[0]
    if (options.task, who) not in PEERS:
        sys.exit(f"--arm {arm}: got {who} for task {options.task}, wanted one of {sorted(PEERS)}")
    given = dict(text.split("=") for text in settings)
    if unknown := set(given) - set(SETTINGS[who]):
        sys.exit(f"--arm {arm}: got {sorted(unknown)}, wanted some of {sorted(SETTINGS[who])}")
    given = SETTINGS[who] | {key: float(value) for key, value in given.items()}
    parts = {"train": [], "val": [], "test": []}
    with open(recipes.make_table(options, seed), newline="") as file:
        for row in csv.DictReader(file):
            names = (name for text in recipes.TASKS[options.task][3] for name in text.split("|"))
            case = {"id": row["id"], "image": [row[name] for name in names if row[name]]}
            parts[row["fold"]].append(case | {"mask": row["mask"], "target": row["target"]})
    return PEERS[options.task, who](options, parts, seed, cpu_s * given.pop("times"), **given)


def dice(case, mask):
    """The row of a case: Dice of a predicted mask, in the voxels of its files."""
    return {"id": case["id"], "dice": metrics.dice(nibabel.load(case["mask"]).get_fdata() > 0, mask)}


def nnunet_masks(options, parts, seed, cpu_s, **settings):
    import peers_nnunet

    root = options.folder.resolve() / f"nnunet_n{options.labelled}"
    spent, steps, masks = peers_nnunet.train_and_predict(root, parts, seed, cpu_s, **settings)
    return spent, steps, [dice(case, mask) for case, mask in zip(parts["test"], masks)]


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


def monai_loaders(parts, keys, before, augment, batch_size):
    """Loaders of train, val and test; what is before the augmentation is done once, and kept in memory."""
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import Compose, EnsureTyped

    for part, chain, size in (("train", augment, batch_size), ("val", [], 1), ("test", [], 1)):
        chain = Compose([*before, *chain, EnsureTyped(keys, track_meta=False)])
        dataset = CacheDataset(parts[part], chain, num_workers=0, progress=False)
        yield DataLoader(dataset, batch_size=size, shuffle=part == "train")


def monai_masks(options, parts, seed, cpu_s, lr, bf16):
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
        *(transforms.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(3)),
        transforms.RandScaleIntensityd("image", 0.1, prob=1),
        transforms.RandShiftIntensityd("image", 0.1, prob=1),
    ]
    train, val, test = monai_loaders(parts, both, before, augment, 2)
    filters, strides = [options.width * 2**level for level in range(5)], [1, 2, 2, 2, 2]
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
            yield dice(case, outputs[0].argmax(0).numpy() == 1)

    def score(network):
        return np.nanmean([row["dice"] for row in rows(val, "val")])

    return *anneal(network, train, loss_of, score, cpu_s, lr or 1e-3, bf16), list(rows(test, "test"))


def monai_labels(options, parts, seed, cpu_s, lr, bf16):
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
    train, val, test = monai_loaders(parts, "image", before, augment, 4)
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

    return *anneal(network, train, loss_of, score, cpu_s, lr or 1e-4, bf16), list(rows(test, "test"))


PEERS = {(1, "monai"): monai_labels, (2, "monai"): monai_masks, (2, "nnunet"): nnunet_masks}

if __name__ == "__main__":
    main()
