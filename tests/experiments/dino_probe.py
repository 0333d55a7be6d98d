"""Do features that DINO learned without labels tell what random ones don't? On phantoms, by public functions only.

  nice python tests/experiments/dino_probe.py runs/dino_probe

For each of three seeds, SuPreM's 3D U-Net is pretrained by DINO on 400 unlabelled heads. Its frozen features (the
teacher's), and those of the same network as it was initialised, then get a linear probe: logistic regression on 60
labelled heads, tested on 350 others. The heads of the three sets are different ones, and the same for all seeds.

The label is the cohort of the phantom table: how a bright and a dark lesion lie to each other (ring, core or pair).
Lesions tell one head's views from another head's, so DINO has a reason to represent them, and neither the mean
intensity nor how much there is of each tells the cohort. Age would not do: random features tell it (AUROC 0.8 to 0.9).
AUROC: mean over the three cohorts, each against the others.

UNet-B needs larger views than two cores can pretrain with in minutes: of 32 voxels its instance norm leaves eight at
the bottleneck, of 16 x 32 x 16 two, whose mean is the same for all heads.

Prints one line per run, and for both arms the mean AUROC over the seeds with its 95% interval (bootstrap of the test
heads, the same heads for all seeds), and that of their difference. Runs that are finished are kept: the same command
goes on.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from fomo import checkpoint, kinds, tasks
from fomo.data import sources
from fomo.inference import WindowOptions
from fomo.metrics import macro_auroc, probe
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.training import fold

PRETRAINING, PROBE, TEST, SEEDS = 400, 60, 350, (1, 2, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where data and runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    skip = "labelled heads to leave out, so that others follow (410: all others)"
    parser.add_argument("--skip", type=int, default=0, help=skip)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = os.path.abspath(options.folder)
    cases = labelled(folder, options.skip)
    labels = np.array([int(case.target) for case in cases])
    scores = {"random": [], "dino": []}
    for seed in options.seeds:
        for arm, weights in (("random", None), ("dino", pretrain(folder, seed))):
            features = extract(folder, seed, weights, cases)
            found = probe.linear(features[:PROBE], labels[:PROBE], features[PROBE:], classes=3)
            print(f"run arm={arm} seed={seed} auroc={macro(labels[PROBE:], found):.4f}", flush=True)
            scores[arm].append(found)
    report(labels[PROBE:], scores)


def content(folder, **sections):
    base = {
        "output": os.path.join(folder, "runs"),
        "data": {
            "source": "phantom",
            "root": os.path.join(folder, "phantoms"),
            "cache": os.path.join(folder, "cache"),
            "phantom_layout": "table",
            "channels": ["t1", "t2"],
            "patch": [16, 32, 16],
            "spacing_mm": [8.0, 5.2, 8.0],  # a head fills the patch
            "phantom_size": 34,
            "prepare_workers": 0,
        },
        "model": {"name": "suprem_unet3d", "width": 16},
        "eval": {"windows": 1, "bootstrap": 100},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return kinds.from_dict(base, "the experiment")


def labelled(folder, skip):
    """Labelled heads in random order, after the first `skip`: PROBE to fit, TEST to test, each of another subject."""
    config = content(
        folder,
        task={"type": "classification", "targets": ["cohort"], "classes": 3},
        data={"phantom_cases": (skip + PROBE + TEST) * 11 // 10 + 1},
    )
    wanted = tasks.wanted(config)
    first = [case for case in sources.list_cases(config.data, wanted) if case.id.endswith("ses_1")]
    order = np.random.default_rng(0).permutation(PROBE + TEST)
    return sources.prepare([first[skip + i] for i in order], config.data, wanted)


def dino(folder, seed):
    return content(
        folder,
        name=f"dino_{seed}",
        seed=seed,
        task={
            "type": "dino",
            "global_size": [16, 32, 16],
            "global_scale": [0.7, 1.0],
            "local_size": [16, 32, 16],
            "local_views": 0,
            "out_dim": 128,
            "head_width": 128,
            "teacher_temperature": [0.02, 0.02],
            "teacher_warmup_epochs": 0,
            "teacher_momentum": 0.99,
        },
        data={"phantom_cases": PRETRAINING},
        optim={
            "lr": 3e-4,
            "weight_decay": 0.04,
            "weight_decay_end": 0.4,
            "warmup_epochs": 1,
            "cosine_stretch": 1,
            "clip_norm": 3.0,
        },
        train={"epochs": 6, "steps_per_epoch": 50, "batch_size": 16, "workers": 0, "patience": None, "log_every": 10},
        augment={"preset": "none"},
        cv={"val_fraction": 0.05},
    )


def pretrain(folder, seed):
    """Path of the pretrained weights."""
    config = dino(folder, seed)
    run = RunFolder(os.path.join(config.output, config.name)).fold(1)
    if not run.is_finished:
        crossval.run(config, one_split=True)
    return run.best


def extract(folder, seed, weights, cases):
    """(heads, features) of the network that the pretraining starts from, or with its teacher's weights."""
    config = dino(folder, seed)
    network = fold.build_network(config, tasks.build(config), 1).trunk.eval()
    if weights is not None:
        checkpoint.load_weights(network, weights)
    windows = WindowOptions(config.data.patch, config.eval.overlap, config.eval.windows)
    return np.stack([windows.each(network, case.image(), case.background).mean(0).numpy() for case in cases])


def macro(labels, scores):
    return macro_auroc(np.eye(3, dtype=int)[labels], scores)


def report(labels, scores):
    heads = len(labels)
    draws = np.vstack([np.arange(heads), np.random.default_rng(0).integers(heads, size=(2000, heads))])
    values = {
        arm: np.mean([[macro(labels[draw], one[draw]) for draw in draws] for one in runs], axis=0)
        for arm, runs in scores.items()
    }
    values["difference"] = values["dino"] - values["random"]
    for arm, (mean, *resampled) in values.items():
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        measured = f"auroc={mean:.4f} low={low:.4f} high={high:.4f}"
        print(f"result arm={arm} heads={heads} seeds={len(scores['dino'])} {measured}")


if __name__ == "__main__":
    main()
