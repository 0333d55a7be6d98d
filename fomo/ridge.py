"""Ridge regression on many features of few cases, in closed form, with what it says of cases that it has not seen.

Features come in groups. All groups of one depth count the same, however many features they have, and a deeper group
counts `decay` times as much as the one above it. For each decay the strength of the penalty is the one with the
smallest squared error when each subject is left out, which needs no second fit (Allen 1974; Hastie et al. 2009,
section 7.10). With 16 cases it is often chance which decay has the smallest error. So the answer is a mean over all
decays, each with the weight 1 / error**4. It is linear in the same features. Needs numpy only.
"""

from dataclasses import dataclass, replace

import numpy as np

DECAYS = (0.125, 0.25, 0.5, 1.0)
STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(4, -7, -1))
_FLAT = 1e-6  # a feature whose deviation is below this share of its size does not vary


@dataclass(frozen=True)
class Scaling:
    """How features (n, F) are standardised; each array is (F,).

    bound: what lies more than so many standard deviations outside of the training cases moves an answer no further.
    """

    mean: np.ndarray
    deviation: np.ndarray
    share: np.ndarray  # weight of each feature: the squares add up to 1; 0 for a feature that does not vary
    bound: float = 4.0

    def __call__(self, features):
        """(n, F): deviations from the mean, limited smoothly to `bound`, times their share."""
        z = (np.asarray(features, float) - self.mean) / self.deviation
        return self.bound * np.tanh(z / self.bound) * self.share


@dataclass(frozen=True)
class Ridge:
    """answers (n, K) = scaling(features) @ weight.T + bias, and how that was chosen."""

    scaling: Scaling
    weight: np.ndarray  # (K, F)
    bias: np.ndarray  # (K,)
    decay: float  # mean of the decays by their weights
    strength: np.ndarray  # (K,) of the penalty, at the decay of the smallest error
    left_out: np.ndarray  # (n, K): what is said of each case without its subject; it had a part in the choice

    def __call__(self, features):
        return self.scaling(features) @ self.weight.T + self.bias


def fit(features, targets, groups, depths, subjects=None, decays=DECAYS, strengths=STRENGTHS, bound=4.0, each=False):
    """The Ridge from features (n, F) to targets (n, K).

    groups, depths: (F,) whole numbers from 0, the group of each feature and its depth.
    subjects: (n,), of each case, left out together; None: each case by itself.
    decays: to average over. strengths: to choose from; at equal errors the first. bound: see `Scaling`.
    each: whether each target has a strength of its own. The weights of the decays are the same for all targets.

    ValueError for features or targets that are not finite, for fewer than three subjects, and without a decay.
    """
    features, targets = np.asarray(features, float), np.asarray(targets, float)
    parts = _parts(range(len(features)) if subjects is None else subjects)
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise ValueError("features, targets: got numbers that are not finite, wanted finite ones")
    if len(parts) < 3:
        raise ValueError(f"subjects: got {len(parts)}, wanted 3 or more")
    if not decays:
        raise ValueError("decays: got none, wanted at least one")
    mean, deviation = features.mean(0), features.std(0)
    varies = deviation > _FLAT * np.maximum(np.abs(mean), _FLAT)
    deviation = np.where(varies, deviation, 1.0)
    fits, errors = [], []
    for decay in decays:
        share = _shares(np.asarray(groups), np.asarray(depths), varies, decay)
        fitted, error = _best(Scaling(mean, deviation, share, bound), features, targets, parts, strengths, each, decay)
        fits.append(fitted)
        errors.append(error)
    return _mean(fits, np.maximum(errors, 1e-12) ** -4.0)


def _best(scaling, features, targets, parts, strengths, each, decay):
    """(the Ridge of the strength, or of the one of each target, with the smallest error, that error)."""
    standardised, outputs = scaling(features), targets.shape[1]
    unit, least = np.maximum(targets.std(0), 1e-12), np.full(outputs, np.inf)
    dual, left_out, strength = np.zeros_like(targets), np.zeros_like(targets), np.zeros(outputs)
    for tried, solved, answers in _solutions(standardised, targets, parts, strengths):
        error = np.mean(((answers - targets) / unit) ** 2, axis=0)
        error = error if each else np.full(outputs, error.mean())
        better = error < least
        least, strength = np.where(better, error, least), np.where(better, tried, strength)
        dual, left_out = np.where(better, solved, dual), np.where(better, answers, left_out)
    weight = dual.T @ standardised
    bias = targets.mean(0) - weight @ standardised.mean(0)
    return Ridge(scaling, weight, bias, decay, strength, left_out), least.mean()


def _mean(fits, weights):
    """The Ridge whose answers are the weighted mean of those of fits that differ in the shares of the features."""
    weights = weights / weights.sum()
    share = np.sqrt(sum(weight * fit.scaling.share**2 for weight, fit in zip(weights, fits)))
    slope = sum(weight * fit.weight * fit.scaling.share for weight, fit in zip(weights, fits))
    bias, decay, left_out = (
        sum(weight * getattr(fit, name) for weight, fit in zip(weights, fits)) for name in ("bias", "decay", "left_out")
    )
    scaling = replace(fits[0].scaling, share=share)
    strength = fits[int(weights.argmax())].strength
    return Ridge(scaling, slope / np.where(share > 0, share, 1.0), bias, decay, strength, left_out)


def _parts(subjects):
    """Indices of the cases of each subject."""
    found = {}
    for index, subject in enumerate(subjects):
        found.setdefault(subject, []).append(index)
    return list(found.values())


def _shares(groups, depths, varies, decay):
    """(F,): square roots of the features' weights. The weight of a depth is spread over its groups, theirs over F."""
    features = np.bincount(groups, weights=varies)[groups]
    of_depth = {depth: len(np.unique(groups[varies & (depths == depth)])) for depth in np.unique(depths)}
    count = np.array([of_depth[depth] for depth in depths])
    weight = np.where(varies, float(decay) ** depths / np.maximum(features * count, 1), 0.0)
    return np.sqrt(weight / max(weight.sum(), 1e-300))


def _solutions(features, targets, parts, strengths):
    """Yield (strength, dual weights (n, K), answers (n, K) without each one's subject), by an unpenalised intercept."""
    n, mean = len(features), targets.mean(0)
    vectors, values = _axes(features - features.mean(0))
    along = vectors.T @ (targets - mean)
    alone = [part[0] for part in parts if len(part) == 1]
    sizes = {len(part) for part in parts} - {1}
    several = [np.array([part for part in parts if len(part) == size]) for size in sizes]  # (P, size) each
    for strength in strengths:
        kept = values / (values + strength)  # the hat matrix is (vectors * kept) @ vectors.T + 1 / n
        residuals, left_out = targets - mean - vectors @ (kept[:, None] * along), np.empty_like(targets)
        free = 1 - 1 / n - (vectors[alone] ** 2 @ kept)[:, None]
        left_out[alone] = targets[alone] - residuals[alone] / np.where(free > 1e-12, free, np.inf)
        for part in several:
            own = np.eye(part.shape[1]) - 1 / n - (vectors[part] * kept) @ vectors[part].swapaxes(1, 2)
            left_out[part] = targets[part] - np.linalg.pinv(own) @ residuals[part]
        yield strength, vectors @ (along / (values + strength)[:, None]), left_out


def _axes(centred):
    """(orthonormal vectors (n, R), values (R,)) of the kernel of centred features (n, F), R the smaller of n and F."""
    n, count = centred.shape
    if count < n:
        vectors, values, _ = np.linalg.svd(centred, full_matrices=False)
        return vectors, values**2
    values, vectors = np.linalg.eigh(centred @ centred.T)
    return vectors, values.clip(0)
