"""Ridge regression in closed form: against scikit-learn, and left-out answers against fits without the subject."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as Oracle

from fomo import ridge


def problem(n=12, outputs=2, seed=0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 9)) * np.array([1, 10, 0.1, 1, 1, 1, 3, 1, 1]) + 5
    groups, depths = np.array([0, 0, 1, 1, 1, 2, 2, 2, 2]), np.array([0, 0, 0, 0, 0, 1, 1, 1, 1])
    targets = features[:, :outputs] / features[:, :outputs].std(0) + rng.normal(size=(n, outputs))
    return features, targets, groups, depths


@pytest.mark.parametrize("strength", [1e-3, 0.1, 10.0])
def test_weights_equal_another_library_and_left_out_answers_a_fit_without_the_subject(strength):
    features, targets, groups, depths = problem()
    subjects = [f"s{number // 2}" for number in range(12)]
    fit = ridge.fit(features, targets, groups, depths, subjects, decays=(0.5,), strengths=(strength,))
    standardised = fit.scaling(features)
    oracle = Oracle(alpha=strength).fit(standardised, targets)
    np.testing.assert_allclose(fit.weight, oracle.coef_, atol=1e-8)
    np.testing.assert_allclose(fit(features), oracle.predict(standardised), atol=1e-8)
    for subject in set(subjects):
        out = np.array([one == subject for one in subjects])
        without = Oracle(alpha=strength).fit(standardised[~out], targets[~out])
        np.testing.assert_allclose(fit.left_out[out], without.predict(standardised[out]), atol=1e-7)


def test_groups_of_a_depth_count_the_same_and_depths_by_the_decay():
    features, targets, groups, depths = problem()
    fit = ridge.fit(features, targets, groups, depths, decays=(0.25,), strengths=(1.0,))
    weights = [np.sum(fit.scaling.share[groups == group] ** 2) for group in range(3)]
    np.testing.assert_allclose(weights, [0.4, 0.4, 0.2])
    constant = features.copy()
    constant[:, 3] = 7.0
    share = ridge.fit(constant, targets, groups, depths, decays=(0.25,), strengths=(1.0,)).scaling.share
    assert share[3] == 0 and np.sum(share[groups == 1] ** 2) == pytest.approx(0.4)


def test_the_choice_follows_the_depth_that_has_the_signal_and_noise_gets_a_strong_penalty():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(40, 60))
    groups = np.repeat([0, 1], 30)
    for depth in (0, 1):
        signal = features[:, groups == depth][:, :3].sum(1, keepdims=True)
        fit = ridge.fit(features, signal, groups, groups)
        assert (fit.decay < 1) == (depth == 0), "the depth with the signal has the larger weight"
        assert np.corrcoef(fit.left_out[:, 0], signal[:, 0])[0, 1] > 0.5
    noise = ridge.fit(features, rng.normal(size=(40, 1)), groups, groups)
    assert noise.strength >= 1 and np.abs(noise.left_out - noise.left_out.mean()).max() < 1


def test_deeper_features_outweigh_the_others_only_where_the_error_is_a_fifth_smaller():
    rng, groups = np.random.default_rng(0), np.repeat([0, 1, 1], 20)
    seen = set()
    for _ in range(40):
        features = rng.normal(size=(16, 60))
        target = features[:, :4].sum(1) * rng.uniform(0, 2) + features[:, 30:34].sum(1) * rng.uniform(0, 2)
        errors = []
        for decays in ((0.125, 0.25, 0.5), (1.0, 2.0)):
            fit = ridge.fit(features, target[:, None], groups, groups, decays=decays)
            errors.append(np.mean((fit.left_out[:, 0] - target) ** 2))
        deep = ridge.fit(features, target[:, None], groups, groups).decay >= 1
        assert deep == (1.25 * errors[1] < errors[0])
        seen.add((deep, errors[1] < errors[0]))
    assert seen == {(False, False), (False, True), (True, True)}


def test_a_case_far_outside_moves_the_answer_only_so_far():
    features, targets, groups, depths = problem()
    fit = ridge.fit(features, targets, groups, depths)
    far, farther = fit(features.mean(0) + 1e3 * features.std(0)), fit(features.mean(0) + 1e6 * features.std(0))
    np.testing.assert_allclose(far, farther)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (x * np.nan, y, None), "not finite"),
        (lambda x, y: (x, y * np.inf, None), "not finite"),
        (lambda x, y: (x, y, ["a", "b"] * 6), "subjects: got 2, wanted 3 or more"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(change, message):
    features, targets, groups, depths = problem()
    features, targets, subjects = change(features, targets)
    with pytest.raises(ValueError, match=message):
        ridge.fit(features, targets, groups, depths, subjects)
