"""Do features that DINO learned without labels tell what random features don't? On phantoms, with the public functions only.

  nice python tests/experiments/dino_probe.py runs/dino_probe

For each of three seeds, SuPreM's 3D U-Net is pretrained by DINO on 400 unlabelled heads. Its frozen features (the teacher's),
and those of the same network as it was initialised, then get a linear probe: logistic regression on 60 labelled heads,
tested on 350 others. The heads of the three sets are different ones, and the same for all seeds.

The label is the cohort of the phantom table: how a bright and a dark lesion lie to each other (ring, core or pair). Lesions
are what tells one head's views from another head's, so DINO has a reason to represent them, and neither the mean intensity
nor how much there is of each tells the cohort. Age would not do: random features tell it (AUROC 0.8 to 0.9).
AUROC: mean over the three cohorts, each against the others.

UNet-B needs larger views than two cores can pretrain with in minutes: of 32 voxels its instance norm leaves eight at the
bottleneck, of 16 x 32 x 16 two, whose mean is the same for all heads.

Prints one line per run, and for both arms the mean AUROC over the seeds with its 95% interval (bootstrap of the test heads,
the same heads for all seeds), and that of their difference. Runs that are finished are kept: the same command goes on.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from fomo import kinds
from fomo import checkpoint, inference, tasks  # noqa: E402
from fomo import config as config_module  # noqa: E402
from fomo.data import cache, sources  # noqa: E402
from fomo.metrics import (
    macro_auroc,  # noqa: E402
    probe,  # noqa: E402
)
from fomo.runs import crossval  # noqa: E402
from fomo.training import fold  # noqa: E402

PRETRAINING, PROBE, TEST, SEEDS = 400, 60, 350, (1, 2, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where data and runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--skip", type=int, default=0, help="labelled heads to leave out, so that others follow (410: all others)"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = os.path.abspath(options.folder)
    cases = labelled(folder, options.skip)
    labels = np.array([int(case.case.target) for case in cases])
    scores = {"random": [], "dino": []}
    for seed in options.seeds:
        run = pretrain(folder, seed)
        for arm, weights in (("random", None), ("dino", os.path.join(run, "best.pt"))):
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
    both = {
        name: {**base.get(name, {}), **section} if isinstance(section, dict) else section
        for name, section in sections.items()
    }
    return kinds.from_dict({**base, **both}, "the experiment")


def labelled(folder, skip):
    """Heads with labels in random order: PROBE of them to fit, then TEST to test, all of different subjects; after `skip`."""
    config = content(
        folder,
        task={"type": "classification", "targets": ["cohort"]},
        data={"phantom_cases": (skip + PROBE + TEST) * 11 // 10 + 1},
    )
    first = [case for case in sources.list_cases(config.data, tasks.wanted(config)) if case.id.endswith("ses_1")]
    order = np.random.default_rng(0).permutation(PROBE + TEST)
    return cache.prepare([first[skip + i] for i in order], config.data, tasks.wanted(config))


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
    """The finished run's folder."""
    config = dino(folder, seed)
    run = os.path.join(config.output, config.name, "fold_1")
    if not os.path.exists(os.path.join(run, "results.csv")):
        crossval.run(config, one_split=True)
    return run


def extract(folder, seed, weights, cases):
    """(heads, features) of the network that the pretraining starts from, or with its teacher's weights."""
    config = dino(folder, seed)
    network = fold.build_network(config, tasks.build(config), 1).trunk.eval()
    if weights is not None:
        checkpoint.load_weights(network, weights)
    options = dict(patch=config.data.patch, overlap=config.eval.overlap, windows=config.eval.windows)
    return np.stack(
        [
            inference.window_outputs(network, case.image(), background=case.background, **options).mean(0).numpy()
            for case in cases
        ]
    )


def macro(labels, scores):
    return macro_auroc(np.eye(3, dtype=int)[labels], scores)


def report(labels, scores):
    draws = np.vstack(
        [np.arange(len(labels)), np.random.default_rng(0).integers(len(labels), size=(2000, len(labels)))]
    )
    values = {
        arm: np.mean([[macro(labels[draw], one[draw]) for draw in draws] for one in runs], axis=0)
        for arm, runs in scores.items()
    }
    values["difference"] = values["dino"] - values["random"]
    for arm, (mean, *resampled) in values.items():
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        print(
            f"result arm={arm} heads={len(labels)} seeds={len(scores['dino'])} auroc={mean:.4f} low={low:.4f} high={high:.4f}"
        )


if __name__ == "__main__":
    main()
