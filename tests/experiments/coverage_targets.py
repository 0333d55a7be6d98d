"""How often do 95% intervals of the mean AUROC of three targets hold the truth? By hand: about 3 minutes on one core.

    python tests/experiments/coverage_targets.py [studies]

Each study draws cases with 5 features and three correlated targets, and trains a ridge regression per target on each of
5 folds. The truth is the mean, over folds and targets, of the AUROC in the population. `within` is the headline of a
run with several targets, over the cases of one fold each; `all` is over all cases together.

Found 2026-11-27, 100 studies, coverage in percent:

    cases  signal   within  all
    40     none     96      91
    40     weak     97      88
    40     strong   98      92
    100    none     97      84
    100    weak     94      91
    100    strong   94      95
"""

import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from fomo import metrics  # noqa: E402
from fomo.tasks.multitarget import MeanOverTargets  # noqa: E402

FEATURES, TARGETS, FOLDS, POPULATION = 5, 3, 5, 4000


def draw(rng, count, signal):
    """(features (count, 5), targets (count, 3) of 0 and 1)."""
    x = rng.standard_normal((count, FEATURES))
    odds = signal * x.sum(1, keepdims=True) / FEATURES**0.5 + 0.5 * rng.standard_normal((count, 1))
    return x, (odds + rng.logistic(size=(count, TARGETS)) > 0).astype(int)


def study(rng, count, signal):
    """(targets, scores out of fold, folds, the truth)."""
    (x, y), (all_x, all_y) = draw(rng, count, signal), draw(rng, POPULATION, signal)
    x, all_x = (np.column_stack([np.ones(len(each)), each]) for each in (x, all_x))
    fold, scores, truth = rng.permutation(count) % FOLDS, np.zeros((count, TARGETS)), []
    for k in range(FOLDS):
        train = x[fold != k]
        weights = np.linalg.solve(train.T @ train + np.eye(FEATURES + 1), train.T @ (y[fold != k] - 0.5))
        scores[fold == k] = x[fold == k] @ weights
        truth += [metrics.auroc(*pair) for pair in zip(all_y.T, (all_x @ weights).T)]
    return y, scores, fold, np.mean(truth)


def main():
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for count in (40, 100):
        for name, signal in (("none", 0.0), ("weak", 1.0), ("strong", 2.5)):
            held = np.zeros(2)
            for number in range(studies):
                y, scores, fold, truth = study(np.random.default_rng([count, int(10 * signal), number]), count, signal)
                labels = np.hstack([np.eye(2)[column] for column in y.T])
                scores = np.stack([-scores, scores], axis=2).reshape(count, -1)
                for place, within in enumerate((True, False)):
                    metric = MeanOverTargets(np.array([2, 4]), within)
                    given = np.column_stack([fold, labels]) if within else labels
                    options = {"folds": fold, "within": False, "bounds": (0, 1), "chance": 0.5}
                    interval = metrics.cross_validated_ci(metric, given, scores, **options)
                    held[place] += interval.low <= truth <= interval.high
            print(f"cases={count} signal={name} within={held[0] / studies:.3f} all={held[1] / studies:.3f}", flush=True)


if __name__ == "__main__":
    main()
