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


def test_the_mean_follows_the_depth_that_has_the_signal_and_noise_gets_a_strong_penalty():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(40, 60))
    groups = np.repeat([0, 1], 30)
    for depth in (0, 1):
        signal = features[:, groups == depth][:, :3].sum(1, keepdims=True)
        fit = ridge.fit(features, signal, groups, groups)
        assert (fit.decay < np.mean(ridge.DECAYS)) == (depth == 0), "the depth with the signal has the larger weight"
        assert np.corrcoef(fit.left_out[:, 0], signal[:, 0])[0, 1] > 0.5
    noise = ridge.fit(features, rng.normal(size=(40, 1)), groups, groups)
    assert noise.strength[0] >= 1 and np.abs(noise.left_out - noise.left_out.mean()).max() < 1


@pytest.mark.parametrize("each", [False, True])
def test_the_answer_is_the_mean_over_decays_by_the_inverse_fourth_power_of_the_error_on_subjects_left_out(each):
    features, targets, groups, depths = problem()
    features[:, 8] = 7.0  # says nothing
    fits = [ridge.fit(features, targets, groups, depths, decays=(decay,), each=each) for decay in (0.125, 2.0)]
    unseen = features[::-1] + 1.0
    errors = np.array([np.mean(((fit.left_out - targets) / targets.std(0)) ** 2) for fit in fits])
    weights = errors**-4 / np.sum(errors**-4)
    assert errors.max() > 1.02 * errors.min(), "the weights differ"
    both = ridge.fit(features, targets, groups, depths, decays=(0.125, 2.0), each=each)
    np.testing.assert_allclose(both(unseen), sum(w * fit(unseen) for w, fit in zip(weights, fits)), rtol=1e-9)
    np.testing.assert_allclose(both.left_out, sum(w * fit.left_out for w, fit in zip(weights, fits)))
    shares = sum(w * fit.scaling.share**2 for w, fit in zip(weights, fits))
    np.testing.assert_allclose(both.scaling.share**2, shares)
    assert both.scaling.share[8] == 0 and not both.weight[:, 8].any()
    assert both.decay == pytest.approx(weights @ (0.125, 2.0))
    assert list(both.strength) == list(fits[errors.argmin()].strength)


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
        (lambda x, y: (x, y, None, ()), "decays: got none"),
    ],
)
def test_what_cannot_be_fitted_is_an_error(change, message):
    features, targets, groups, depths = problem()
    features, targets, *more = change(features, targets)
    with pytest.raises(ValueError, match=message):
        ridge.fit(features, targets, groups, depths, *more)
