"""Is DINO on slices worth it? A linear probe of frozen features on phantom CT, by public functions only.

  nice python tests/experiments/dino_slices.py runs/dino_slices

Makes phantom CT and its slices, and pretrains a slice network by configs/demo_slices_dino.yaml without labels, for each
seed. A scan's features are mean and maximum over its slices of the teacher's features; with them, and with those of the
same network as it was initialised, logistic regressions learn the 18 findings from some of the training patients, and
are tested on the test patients, whom the pretraining has not seen.

Prints for both arms the mean macro AUROC over the seeds with its 95% interval (bootstrap of the test scans), and that
of the difference. A pretraining that is finished is kept: the same command goes on.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np
import torch

from fomo import checkpoint, kinds, tasks
from fomo.data import ct, extract, sources
from fomo.data.cases import Wanted
from fomo.data.phantoms import chests
from fomo.metrics import macro_auroc, probe
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.runtime.log import Log
from fomo.training import fold


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where data and runs go")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3))
    parser.add_argument("--labelled", type=int, nargs="+", default=(60, 240), help="training scans with labels")
    parser.add_argument("keys", nargs="*", metavar="key=value", help="of the pretraining")
    options = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    folder = os.path.abspath(options.folder)
    make_data(folder)
    found = {}
    for seed in options.seeds:
        config = pretraining(folder, seed, options.keys)
        for arm in ("random", "dino"):
            network = backbone(config, run(config) if arm == "dino" else None)
            scans, features, labels = features_of_scans(config, network, arm == "random")
            test = np.array([name.startswith("valid") for name in scans])
            for count in options.labelled:
                chosen = np.flatnonzero(~test)[np.random.default_rng(0).permutation((~test).sum())[:count]]
                scores = probed(features, labels, chosen, test)
                print(f"run arm={arm} seed={seed} labelled={count} auroc={macro(labels[test], scores):.4f}", flush=True)
                found.setdefault(count, {}).setdefault(arm, []).append(scores)
    for count, arms in found.items():
        report(count, labels[test], arms)


def make_data(folder):
    """300 phantom scans and eight slices of each, where they are missing."""
    root, slices = (os.path.join(folder, name) for name in ("ct", "slices"))
    if not os.path.exists(root):
        chests.make(root, 300)
    if not os.path.exists(slices):
        extract.extract(os.path.join(root, "volumes"), slices, ct.Settings(slices=8, size=128), Log(), workers=2)


def pretraining(folder, seed, keys):
    inside = lambda *names: os.path.join(folder, *names)  # noqa: E731
    place = [f"output={inside('runs')}", f"name=dino_{seed}", f"seed={seed}"]
    data = [f"data.csv={inside('slices', 'splits', 'all_slices.csv')}"]
    data.append(f"data.labels_csv={inside('ct', 'multi_abnormality_labels.csv')}")
    return kinds.load(ROOT / "configs" / "demo_slices_dino.yaml", [*place, *data, *keys])


def run(config):
    """The pretrained file."""
    first = RunFolder(os.path.join(config.output, config.name)).fold(1)
    if not first.is_finished:
        crossval.run(config, one_split=True)
    return first.best


def backbone(config, weights):
    """The network from which the pretraining starts, or with its teacher's weights."""
    network = fold.build_network(config, tasks.build(config), 1).trunk
    if weights is not None:
        checkpoint.load_weights(network, weights)
    return network.eval()


@torch.no_grad()
def adapt_norms(network, images):
    """Give a network's batch norms the statistics of these images, which a training would have given them."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all that is seen
    network.train()
    for part in images.split(64):
        network(part)
    network.eval()


@torch.no_grad()
def features_of_scans(config, network, adapts):
    """(names, (scans, 2 F) mean and maximum over the slices, (scans, 18) labels); adapts: the batch norms, first."""
    wanted = Wanted("flags", chests.LABELS)
    cases = sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted)
    of_scan = {}
    if adapts:
        first = cases[:: max(1, len(cases) // 512)]
        adapt_norms(network, torch.stack([torch.from_numpy(case.image()) for case in first]))
    for start in range(0, len(cases), 64):
        part = cases[start : start + 64]
        images = torch.stack([torch.from_numpy(case.image()) for case in part])
        for case, vector in zip(part, network(images).numpy()):
            of_scan.setdefault(case.scan, ([], case.target))[0].append(vector)
    features = [np.concatenate((np.mean(one, 0), np.max(one, 0))) for one, _ in of_scan.values()]
    return list(of_scan), np.stack(features), np.array([target for _, target in of_scan.values()], int)


def probed(features, labels, chosen, test):
    """(test scans, 18) probabilities of logistic regressions."""
    return np.stack(
        [
            probe.linear(features[chosen], labels[chosen, k], features[test], classes=2)[:, 1]
            for k in range(labels.shape[1])
        ],
        axis=1,
    )


def macro(labels, scores):
    return macro_auroc(labels, scores)


def report(count, labels, arms):
    scans = len(labels)
    draws = np.vstack([np.arange(scans), np.random.default_rng(0).integers(scans, size=(500, scans))])
    values = {
        arm: np.mean([[macro(labels[draw], one[draw]) for draw in draws] for one in runs], axis=0)
        for arm, runs in arms.items()
    }
    values["difference"] = values["dino"] - values["random"]
    for arm, (mean, *resampled) in values.items():
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        measured = f"auroc={mean:.4f} low={low:.4f} high={high:.4f}"
        print(f"result labelled={count} arm={arm} scans={scans} seeds={len(arms['dino'])} {measured}")


if __name__ == "__main__":
    main()
