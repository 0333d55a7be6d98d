"""Ridge regression on many features of few cases, in closed form, with what it says of cases that it has not seen.

Features come in groups. All groups of one depth count the same, however many features they have, and a deeper group
counts `decay` times as much as the one above it. The decay and the strength of the penalty are those with the smallest
squared error when each subject is left out, which needs no second fit (Allen 1974; Hastie et al. 2009, section 7.10). A
decay of 1 or more has to be clearly better: deep features are many, and with 16 cases some decay is best by chance.
Needs numpy only.
"""

from dataclasses import dataclass, replace

import numpy as np

DECAYS = (0.125, 0.25, 0.5, 1.0, 2.0)
_EARNED = 1.25  # by this factor the squared error must be smaller for a decay of 1 or more
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
    strength: float  # of the penalty; (K,) where each target has its own
    decay: float  # weight of a depth against that of the one before; likewise
    left_out: np.ndarray  # (n, K): what is said of each case without its subject

    def __call__(self, features):
        return self.scaling(features) @ self.weight.T + self.bias


def fit(features, targets, groups, depths, subjects=None, decays=DECAYS, strengths=STRENGTHS, bound=4.0, each=False):
    """The Ridge from features (n, F) to targets (n, K).

    groups, depths: (F,) whole numbers from 0, the group of each feature and its depth.
    subjects: (n,), of each case, left out together; None: each case by itself.
    decays, strengths: to choose from; at equal errors the first. bound: see `Scaling`.
    each: whether each target has a strength of its own; there is one decay then.

    ValueError for features or targets that are not finite, and for fewer than three subjects.
    """
    features, targets = np.asarray(features, float), np.asarray(targets, float)
    parts = _parts(range(len(features)) if subjects is None else subjects)
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise ValueError("features, targets: got numbers that are not finite, wanted finite ones")
    if len(parts) < 3:
        raise ValueError(f"subjects: got {len(parts)}, wanted 3 or more")
    if each and len(decays) > 1:
        raise ValueError(f"decays: got {len(decays)} for each target of its own, wanted one")
    mean, deviation = features.mean(0), features.std(0)
    varies = deviation > _FLAT * np.maximum(np.abs(mean), _FLAT)
    deviation, unit = np.where(varies, deviation, 1.0), np.maximum(targets.std(0), 1e-12)
    best, least = None, np.inf
    for decay in decays:
        scaling = Scaling(mean, deviation, _shares(np.asarray(groups), np.asarray(depths), varies, decay), bound)
        standardised = scaling(features)
        for strength, dual, left_out in _solutions(standardised, targets, parts, strengths):
            errors = np.mean(((left_out - targets) / unit) ** 2, axis=0) * (_EARNED if decay >= 1 else 1)
            error = errors if each else errors.mean()
            if np.any(error < least):
                weight = dual.T @ standardised
                bias = targets.mean(0) - weight @ standardised.mean(0)
                found = Ridge(scaling, weight, bias, strength, decay, left_out)
                best, least = found if best is None else _better(best, found, error < least), np.minimum(error, least)
    return best


def _better(first, second, chosen):
    """The second of two Ridges for the targets that are `chosen`, (K,), or for all, ()."""
    if chosen.ndim == 0:
        return second
    each = {
        name: np.where(chosen, getattr(second, name), getattr(first, name)) for name in ("strength", "bias", "left_out")
    }
    return replace(first, weight=np.where(chosen[:, None], second.weight, first.weight), **each)


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
