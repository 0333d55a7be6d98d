"""Do the 95% intervals cover the truth as often as they say? Simulated studies; the slow set (half a minute)."""

import numpy as np
import pytest
import scipy.stats

from fomo import metrics

STUDIES, RESAMPLES = 2000, 600
pytestmark = pytest.mark.slow


def coverage(interval, study, truth):
    """Share of the simulated studies whose interval holds the truth."""
    rng = np.random.default_rng(0)
    hits = []
    for number in range(STUDIES):
        found = interval(*study(rng), number)
        assert found.undefined == 0
        hits.append(found.low <= truth <= found.high)
    return np.mean(hits)


AUROC_INTERVALS = {
    "bca": lambda labels, scores, seed: metrics.bootstrap_ci(metrics.auroc, labels, scores, RESAMPLES, seed),
    "percentile": lambda labels, scores, seed: metrics.bootstrap_ci(
        metrics.auroc, labels, scores, RESAMPLES, seed, method="percentile"
    ),
}


@pytest.mark.parametrize("share", [0.3, 0.5])
@pytest.mark.parametrize("truth", [0.7, 0.8, 0.9])
@pytest.mark.parametrize("kind", AUROC_INTERVALS)
def test_auroc_of_60_cases(kind, truth, share):
    shift = np.sqrt(2) * scipy.stats.norm.ppf(truth)

    def study(rng):
        labels = rng.random(60) < share
        return labels, rng.normal(size=60) + shift * labels

    found = coverage(AUROC_INTERVALS[kind], study, truth)
    print(f"coverage auroc n=60 interval={kind} truth={truth} positives={share} {100 * found:.1f}%")
    low = 0.91 if kind == "percentile" else 0.92  # not the default; short for high AUROCs
    assert low <= found <= 0.97


MEAN_INTERVALS = {
    "bca": lambda values, seed: metrics.bootstrap_ci(np.mean, values, None, RESAMPLES, seed),
    "percentile": lambda values, seed: metrics.bootstrap_ci(
        np.mean, values, None, RESAMPLES, seed, method="percentile"
    ),
    "t": lambda values, seed: metrics.t_interval(values),
}
DICE = {  # beta(a, b), and the share of missed cases, whose Dice is 0
    "good": (8, 2, 0.0),
    "very good": (20, 3, 0.0),
    "mixed": (2, 1.5, 0.0),
    "good or missed": (8, 2, 0.15),
}


@pytest.mark.parametrize("kind", MEAN_INTERVALS)
@pytest.mark.parametrize("shape", DICE)
def test_mean_dice_of_25_cases(shape, kind):
    a, b, missed = DICE[shape]
    found = coverage(
        MEAN_INTERVALS[kind], lambda rng: (rng.beta(a, b, 25) * (rng.random(25) >= missed),), a / (a + b) * (1 - missed)
    )
    print(f"coverage mean n=25 interval={kind} dice={shape!r} {100 * found:.1f}%")
    assert 0.92 <= found <= 0.97
