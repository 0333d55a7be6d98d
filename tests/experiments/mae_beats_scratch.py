"""Does masked-autoencoder pretraining help where labels are few? On phantoms, with the public configuration only.

  nice python tests/experiments/mae_beats_scratch.py runs/mae_beats_scratch

One network is pretrained on 240 unlabelled heads (all channels together). Then, for each of three seeds, one is trained
on 16 labelled heads (12 to learn from, 4 to choose the epoch) from the pretrained weights and from scratch, with the
same settings, and tested on the same 120 heads. Every seed has its own 16. Nothing but the start differs between the
two arms. Prints one line per run, and for each arm what `arms.report` says. Runs that are finished are kept: the same
command goes on.

Without noise 12 heads teach the tasks from scratch (--noise 0: AUROC 1.00), which leaves nothing to gain. Cubes of 4
voxels can be restored from the finest levels through the skip connections, and features of the bottleneck are then no
better than random ones; cubes of 8, of 32 voxels in all, need the deeper levels. --data-seed gives other heads.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import arms
import nibabel
import numpy as np
import torch

from fomo.data.phantoms import heads
from fomo.runtime import files

UNLABELLED, LABELLED, TEST, SEEDS = 240, 16, 120, (1, 2, 3)
SIZE, SPACING_MM, PATCH = 34, 5.6, (32, 32, 32)
CHANNELS = {
    "classification": ["dwi_b1000", "flair", "adc", "swi|t2s"],
    "segmentation": ["dwi_b1000", "flair", "swi|t2s"],
    "regression": ["t1", "t2"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where data and runs go")
    parser.add_argument("--task", default="classification", choices=sorted(CHANNELS))
    parser.add_argument("--width", type=int, default=6)
    parser.add_argument("--pretrain-epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--mask-cube", type=int, default=8)
    parser.add_argument("--model", default="unet_b")
    noise = "standard deviation of added noise, of the head's mean intensity"
    parser.add_argument("--noise", type=float, default=0.12, help=noise)
    parser.add_argument("--data-seed", type=int, default=0, help="of all heads, unlabelled and labelled")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = os.path.join(os.path.abspath(options.folder), f"noise_{options.noise:g}_data_{options.data_seed}")
    pretrained = pretrain(folder, options)
    results = {}
    for arm, weights in (("scratch", None), ("pretrained", pretrained)):
        results[arm] = [finetune(folder, options, arm, weights, seed) for seed in options.seeds]
    arms.report(options.task, results)


def common(folder, options):
    return {
        "output": os.path.join(folder, "runs"),
        "data": {
            "source": "table",
            "channels": CHANNELS[options.task],
            "cache": os.path.join(folder, "cache"),
            "patch": list(PATCH),
            "spacing_mm": [SPACING_MM] * 3,
            "prepare_workers": 0,
        },
        "model": {"width": options.width},
        "augment": {"preset": "none"},
    }


def merged(base, **sections):
    for name, value in sections.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) and name in base else value
    return base


def pretrain(folder, options):
    """Path of the pretrained weights."""
    content = merged(
        common(folder, options),
        name=f"pretrain_{options.task}_w{options.width}_e{options.pretrain_epochs}_c{options.mask_cube}",
        task={"type": "mae", "mask_cube": options.mask_cube},
        data={"csv": make_table(folder, options, "unlabelled", UNLABELLED, 1), "val_folds": ["val"]},
        model={"name": "unet_b_lw_dec"},
        optim={"lr": 1e-3, "warmup_epochs": 1, "clip_norm": 1},
        train={"epochs": options.pretrain_epochs, "batch_size": 8, "patience": None, "workers": 0, "log_every": 20},
    )
    return arms.run(content).best


def finetune(folder, options, arm, weights, seed):
    """Rows of the test cases of one run."""
    content = merged(
        common(folder, options),
        name=f"{options.task}_{options.model}_w{options.width}_e{options.epochs}_lr{options.lr:g}_{arm}_{seed}",
        seed=seed,
        task={"type": options.task, "targets": [] if options.task == "segmentation" else ["target"]},
        data={
            "csv": make_table(folder, options, "labelled", TEST + len(SEEDS) * LABELLED, 2),
            "train_folds": [f"labelled_{seed}"],
            "test_folds": ["test"],
        },
        model={"name": options.model},
        optim={"lr": options.lr, "warmup_epochs": 1, "clip_norm": 1},
        train={"epochs": options.epochs, "batch_size": 4, "patience": None, "workers": 0},
        cv={"val_fraction": 0.25, "stratify": options.task != "segmentation"},  # one head in 16 has no tumour
        weights={"path": weights},
        eval={"bootstrap": 0},
    )
    fold = arms.run(content)
    scores = (f"{name}={value:.4g}" for name, value in fold.scores().items())
    print(f"run task={options.task} arm={arm} seed={seed}", *scores, flush=True)
    return fold.results().rows


def make_table(folder, options, name, subjects, seed):
    """CSV of so many heads, each subject's first session. Fold: test or the seed's own; unlabelled: train or val."""
    task = options.task
    root, path = os.path.join(folder, f"{name}_{task}"), os.path.join(folder, f"{name}_{task}.csv")
    if os.path.exists(path):
        return path
    seed += 100 * options.data_seed
    heads.make(
        root, {"classification": 1, "segmentation": 2, "regression": 3}[task], subjects * 11 // 10 + 1, SIZE, seed=seed
    )
    rows = []
    for number, subject in enumerate(sorted(os.listdir(os.path.join(root, "preprocessed")))[:subjects]):
        row, rng = {"id": subject, "subject": subject}, np.random.default_rng([seed, number])
        for channel in [channel for text in CHANNELS[task] for channel in text.split("|")]:
            image = os.path.join(root, "preprocessed", subject, "ses_1", f"{channel}.nii.gz")
            row[channel] = image if os.path.exists(image) else ""
            if row[channel] and options.noise:
                add_noise(image, options.noise, rng)
        if name == "unlabelled":
            rows.append({**row, "fold": "train" if number % 12 else "val"})
            continue
        row["fold"] = "test" if number < TEST else f"labelled_{(number - TEST) // LABELLED + 1}"
        labels = os.path.join(root, "labels", subject, "ses_1")
        mask, text = os.path.join(labels, "seg.nii.gz"), os.path.join(labels, "label.txt")
        if task == "segmentation":
            row["mask"] = mask
        elif os.path.exists(text):
            row["target"] = pathlib.Path(text).read_text().strip()
        else:
            row["target"] = int(nibabel.load(mask).get_fdata().any())
        rows.append(row)
    files.write_csv(path, rows)
    return path


def add_noise(path, noise, rng):
    """Rewrite a head with Gaussian noise; the background stays 0."""
    image = nibabel.load(path)
    values = image.get_fdata()
    inside = values > 0
    level = values[inside].mean()
    values[inside] = np.maximum(values[inside] + level * (3 * noise + noise * rng.standard_normal(inside.sum())), 1)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.int16), image.affine), path)


if __name__ == "__main__":
    main()
