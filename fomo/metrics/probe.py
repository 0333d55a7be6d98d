"""How much frozen features tell about a label: linear probe and nearest neighbours. Needs numpy and scipy only.

features: (n, F); labels: (n,) whole numbers 0 .. K-1. The result is (m, K), each row a probability distribution.
Features are first standardised over the training cases, because pooled features of a network are nearly parallel and of
very unequal size. A feature that does not vary is left out.
"""

import numpy as np
import scipy


def linear(features, labels, new, classes=2, l2=1.0):
    """Multinomial logistic regression on (features, labels), applied to the features `new`.

    l2: weight of half the squared coefficients (not the intercept) against the summed log loss; other libraries' 1/C.
    """
    from scipy.optimize import minimize  # heavy, and most runs have no probe

    features, new = _standardised(features, new)
    one_hot = np.eye(classes)[check_classes(labels, classes)]
    inputs, size = features.shape[1], features.shape[1] * classes

    def objective(x):
        weights, offset = x[:size].reshape(inputs, classes), x[size:]
        log_p = scipy.special.log_softmax(features @ weights + offset, axis=1)
        error = np.exp(log_p) - one_hot
        loss = -(one_hot * log_p).sum() + l2 / 2 * (weights**2).sum()
        return loss, np.concatenate([(features.T @ error + l2 * weights).ravel(), error.sum(0)])

    found = minimize(objective, np.zeros(size + classes), jac=True, method="L-BFGS-B", options={"maxiter": 1000}).x
    return np.exp(scipy.special.log_softmax(new @ found[:size].reshape(inputs, classes) + found[size:], axis=1))


def nearest(features, labels, new, classes=2, neighbours=20, temperature=0.07):
    """Votes of the `neighbours` training cases with the largest cosine, each weighted by exp(cosine / temperature).

    All training cases vote where there are fewer (Wu et al. 2018, and DINO).
    """
    features, new = (_unit(x) for x in _standardised(features, new))
    one_hot = np.eye(classes)[check_classes(labels, classes)]
    similarity = new @ features.T
    count = min(neighbours, len(features))
    chosen = np.argsort(-similarity, axis=1, kind="stable")[:, :count]
    weights = np.exp((np.take_along_axis(similarity, chosen, axis=1) - 1) / temperature)
    votes = (weights[..., None] * one_hot[chosen]).sum(1)
    return votes / votes.sum(1, keepdims=True)


def cross_validated(features, labels, groups, seed=0, folds=5, classes=2):
    """{"linear": (n, K), "nearest": (n, K)}: scores of each case by probes on the cases of other folds.

    groups: (n,); the cases of a group stay in one fold. There are fewer folds where a class has fewer groups, and all
    scores are NaN where it has less than two.
    """
    features, labels, groups = np.asarray(features, float), check_classes(labels, classes), np.asarray(groups)
    names, first = np.unique(groups, return_index=True)
    stratum = labels[first]  # a group has the class of its first case
    folds = min(folds, *np.bincount(stratum, minlength=classes))
    scores = {name: np.full((len(labels), classes), np.nan) for name in ("linear", "nearest")}
    if folds < 2:
        return scores
    shuffled = np.random.default_rng(seed).permutation(len(names))
    dealt = shuffled[np.argsort(stratum[shuffled], kind="stable")]
    fold_of = dict(zip(names[dealt], np.arange(len(names)) % folds))
    fold = np.array([fold_of[group] for group in groups])
    for k in range(folds):
        train, test = fold != k, fold == k
        for name, probe in (("linear", linear), ("nearest", nearest)):
            scores[name][test] = probe(features[train], labels[train], features[test], classes)
    return scores


def cosines(features):
    """(n, n): the cosine between the standardised features of each two cases."""
    unit = _unit(_standardised(features, features)[0])
    return unit @ unit.T


def _standardised(features, new):
    features, new = np.asarray(features, float), np.asarray(new, float)
    if features.ndim != 2 or new.ndim != 2 or features.shape[1] != new.shape[1] or not len(features):
        raise ValueError(f"features, new: got shapes {features.shape} and {new.shape}, wanted (n, F) and (m, F)")
    mean, deviation = features.mean(0), features.std(0)
    kept = deviation > 1e-12 * np.maximum(1, np.abs(mean))
    return (features[:, kept] - mean[kept]) / deviation[kept], (new[:, kept] - mean[kept]) / deviation[kept]


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def check_classes(labels, classes):
    """`labels` (n,) as whole numbers from 0 to classes - 1, or a ValueError."""
    found = np.asarray(labels)
    whole = found.astype(int)
    if found.ndim != 1 or (whole != found).any() or (len(found) and not 0 <= whole.min() <= whole.max() < classes):
        raise ValueError(f"labels: got {found[:5]}, wanted whole numbers from 0 to {classes - 1}")
    return whole
