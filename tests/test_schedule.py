import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo.schedule import epochs_without_improvement, learning_rate, plateau_factor


def test_cosine_by_hand():
    def rate(step, **warmup):
        return learning_rate(step, peak=1.0, total_steps=100, stretch=1.0, minimum=0.0, **warmup)

    assert rate(0) == 1.0
    assert rate(50) == pytest.approx(0.5)
    assert rate(75) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert rate(100) == rate(1000) == 0.0
    assert rate(0, warmup_steps=20) == pytest.approx(0.001)
    assert rate(10, warmup_steps=20) == pytest.approx(0.5005)
    assert rate(20, warmup_steps=20) == 1.0
    assert rate(60, warmup_steps=20) == pytest.approx(0.5)


def test_stretch_stops_the_cosine_early():
    options = dict(peak=1e-4, total_steps=100, stretch=1.15)
    assert learning_rate(115, **options) == 1e-9
    assert learning_rate(99, **options) > 1e-4 * 0.04
    assert learning_rate(57.5, **options) == pytest.approx((1e-4 + 1e-9) / 2)


@pytest.mark.parametrize("stretch", [1.0, 1.15])
def test_equals_torchs_cosine(stretch):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=stretch * 40, eta_min=1e-9)
    for step in range(40):
        ours = learning_rate(step, peak=3e-4, total_steps=40, stretch=stretch)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        optimizer.step()
        scheduler.step()


@given(
    total=st.integers(1, 500), share=st.floats(0, 1), stretch=st.floats(1, 2), peak=st.floats(1e-6, 1),
    kind=st.sampled_from(["cosine", "constant"]),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_rises_then_never_rises_again_and_stays_in_range(total, share, stretch, peak, kind):
    warmup = int(share * total)
    rates = [
        learning_rate(s, peak=peak, total_steps=total, warmup_steps=warmup, stretch=stretch, kind=kind)
        for s in range(total + 9)
    ]
    assert all(1e-9 <= rate <= peak * (1 + 1e-12) for rate in rates)
    assert all(a <= b for a, b in zip(rates[:warmup], rates[1:warmup]))
    assert all(a >= b for a, b in zip(rates[warmup:], rates[warmup + 1 :]))
    if kind != "cosine":
        assert set(rates[warmup:]) == {peak}


def test_bad_arguments_are_refused():
    for bad in (
        dict(kind="step"),
        dict(total_steps=0),
        dict(stretch=0.5),
        dict(warmup_steps=11),
        dict(warmup_steps=-1),
    ):
        with pytest.raises(ValueError, match=next(iter(bad))):
            learning_rate(0, **{"peak": 1.0, "total_steps": 10, **bad})


def test_plateau_by_hand():
    #         best  1    2   reduce         best  1   2
    losses = [1.0, 1.0, 0.999, 1.2, 1.1, 0.5, 0.5, 0.6]
    factors = [plateau_factor(losses[: n + 1], 0.1, patience=3, min_delta=0.01) for n in range(len(losses))]
    assert factors == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.1])
    assert plateau_factor([1.0] * 7, 0.5, patience=3) == 0.25
    assert plateau_factor([1.0] * 6, 0.5, patience=3) == 0.5
    assert plateau_factor([], 0.5, patience=1) == 1.0


def test_epochs_without_improvement_by_hand():
    assert epochs_without_improvement([]) == 0
    assert epochs_without_improvement([3, 2, 1]) == 0
    assert epochs_without_improvement([3, 1, 2, 1]) == 2
    assert (
        epochs_without_improvement([1.0, 0.9995, 0.999, 0.9985], min_delta=0.001) == 0
    )  # the sum of small steps counts
    assert epochs_without_improvement([1.0, 0.9995, 0.9995], min_delta=0.001) == 2
    assert epochs_without_improvement([math.nan, math.nan]) == 2
    assert epochs_without_improvement([1.0, math.nan, 0.5, math.nan]) == 1
