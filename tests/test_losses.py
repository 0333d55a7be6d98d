import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fomo import losses

torch.set_num_threads(1)
log = math.log


def logits_of(*probabilities):
    return torch.tensor(probabilities).log() + 3.0  # softmax does not see the shift


def test_cross_entropy_by_hand():
    logits, target = logits_of([0.2, 0.8], [0.5, 0.5]), torch.tensor([1, 0])
    torch.testing.assert_close(losses.cross_entropy(logits, target), torch.tensor([-log(0.8), -log(0.5)]))
    weighted = losses.cross_entropy(logits, target, class_weights=[3.0, 0.5])
    torch.testing.assert_close(weighted, torch.tensor([-log(0.8) / 2, -3 * log(0.5)]))
    volume = logits.T.reshape(1, 2, 2, 1, 1)  # one sample of two voxels: the mean of the two
    torch.testing.assert_close(
        losses.cross_entropy(volume, target.view(1, 2, 1, 1)), torch.tensor([-log(0.8 * 0.5) / 2])
    )


def test_focal_by_hand():
    logits, target = logits_of([0.2, 0.8], [0.5, 0.5]), torch.tensor([1, 0])
    torch.testing.assert_close(losses.focal(logits, target), torch.tensor([-(0.2**2) * log(0.8), -(0.5**2) * log(0.5)]))
    weighted = losses.focal(logits, target, alpha=torch.tensor([3.0, 0.5]), gamma=1.0)
    torch.testing.assert_close(weighted, torch.tensor([-0.5 * 0.2 * log(0.8), -3 * 0.5 * log(0.5)]))
    torch.testing.assert_close(losses.focal(logits, target, gamma=0.0), losses.cross_entropy(logits, target))
    volume, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(3, (2, 4, 4, 4))
    weights = [1.0, 2.0, 3.0]
    torch.testing.assert_close(
        losses.focal(volume, labels, weights, 0.0), losses.cross_entropy(volume, labels, weights)
    )


def test_dice_ce_by_hand():
    # four voxels, foreground probability .9 .6 .2 .1, the first two are foreground
    p = torch.tensor([0.9, 0.6, 0.2, 0.1])
    logits = torch.stack([1 - p, p]).log().view(1, 2, 4, 1, 1)
    target = torch.tensor([1, 1, 0, 0]).view(1, 4, 1, 1)
    ce = -log(0.9 * 0.6 * 0.8 * 0.9) / 4
    for smooth in (1.0, 0.0):
        dice = (2 * 1.5 + smooth) / (1.8 + 2 + smooth)
        torch.testing.assert_close(losses.dice_ce(logits, target, smooth=smooth), torch.tensor([1 - dice + ce]))
    # nothing there: 1 - smooth / (1.8 + smooth)
    empty_ce = -log(0.1 * 0.4 * 0.8 * 0.9) / 4
    torch.testing.assert_close(losses.dice_ce(logits, 0 * target), torch.tensor([1 - 1 / 2.8 + empty_ce]))


def test_dice_ce_of_perfect_predictions_is_zero_with_and_without_foreground():
    target = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    target[1, 1:3, 1:3, 1:3] = 1
    target[1, 0, 0, 0] = 2
    logits = 40.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    torch.testing.assert_close(losses.dice_ce(logits, target), torch.zeros(2), atol=1e-5, rtol=0)
    assert (losses.dice_ce(logits.flip(1), target) > 1).all()


def test_regression_losses_by_hand():
    prediction, target = torch.tensor([[0.5], [3.0]]), torch.tensor([[0.0], [1.0]])
    torch.testing.assert_close(losses.mse(prediction, target), torch.tensor([0.25, 4.0]))
    torch.testing.assert_close(losses.huber(prediction, target), torch.tensor([0.125, 1.5]))
    torch.testing.assert_close(losses.huber(prediction[:, 0], target[:, 0], delta=2.0), torch.tensor([0.125, 2.0]))
    torch.testing.assert_close(losses.mse(prediction.view(1, 2), target.view(1, 2)), torch.tensor([2.125]))


def test_deep_supervision_by_hand():
    target = torch.arange(4 * 4 * 4).view(1, 4, 4, 4)
    seen = []

    def loss(logits, labels):
        seen.append(labels)
        return logits.flatten(1).mean(1)

    outputs = [torch.full((1, 2, n, n, n), value) for n, value in ((4, 1.0), (2, 10.0), (1, 100.0))]
    total = losses.deep_supervision(loss, outputs, target)
    torch.testing.assert_close(total, torch.tensor([(4 * 1 + 2 * 10 + 1 * 100) / 7]))
    assert torch.equal(seen[0], target)
    assert torch.equal(seen[1], target[:, 1::2, 1::2, 1::2]) and seen[2].item() == target[0, 2, 2, 2]
    torch.testing.assert_close(losses.deep_supervision(loss, outputs[1], target), torch.tensor([10.0]))
    with pytest.raises(ValueError, match=r"outputs\[0\]: got size \(3, 3, 3\)"):
        losses.deep_supervision(loss, [torch.zeros(1, 2, 3, 3, 3)], target)


CLASS_LOSSES = [losses.cross_entropy, losses.focal, lambda x, y: losses.focal(x, y, gamma=0.5), losses.dice_ce]


@pytest.mark.parametrize("loss", CLASS_LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_extreme_logits_give_finite_losses_and_gradients(loss, dtype, autocast):
    logits = torch.tensor([[1e4, -1e4], [-1e4, 1e4], [0.0, 0.0]]).to(dtype).view(3, 2, 1, 1, 1).expand(3, 2, 2, 2, 2)
    for target in (torch.zeros(3, 2, 2, 2, dtype=torch.uint8), torch.ones(3, 2, 2, 2, dtype=torch.uint8)):
        x = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = loss(x, target)
        assert value.dtype == torch.float32 and value.shape == (3,) and torch.isfinite(value).all()
        value.mean().backward()
        assert torch.isfinite(x.grad).all()


def test_regression_losses_are_float32_in_half_precision():
    prediction = torch.tensor([300.0, -300.0], dtype=torch.float16)  # the square overflows float16
    for loss in (losses.mse, losses.huber):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(prediction, torch.zeros(2))
        assert value.dtype == torch.float32 and torch.isfinite(value).all()


@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(2, 4), batch=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_samples_are_independent_and_gradients_are_right(seed, classes, batch):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, 2, 2, 2, generator=generator)
    target = torch.randint(classes, (batch, 2, 2, 2), generator=generator)
    direction = torch.randn(logits.shape, generator=generator)
    for loss in CLASS_LOSSES:
        whole = loss(logits, target)
        torch.testing.assert_close(whole, torch.cat([loss(logits[i : i + 1], target[i : i + 1]) for i in range(batch)]))
        x = logits.clone().requires_grad_()
        loss(x, target).sum().backward()
        slope = (loss(logits + 1e-2 * direction, target) - loss(logits - 1e-2 * direction, target)).sum() / 2e-2
        assert slope.item() == pytest.approx((x.grad * direction).sum().item(), rel=0.02, abs=0.01)


def test_wrong_shapes_are_refused():
    logits = torch.zeros(2, 3, 4, 4, 4)
    labels = torch.zeros(2, 4, 4, 4, dtype=torch.long)
    for loss in (losses.cross_entropy, losses.focal, losses.dice_ce):
        for bad in (labels[:, None], labels[:1], labels.float(), labels[:, :2]):
            with pytest.raises(ValueError, match="target: got"):
                loss(logits, bad)
    with pytest.raises(ValueError, match="class weights"):
        losses.cross_entropy(logits, labels, [1.0, 2.0])
    with pytest.raises(ValueError, match="at least 2"):
        losses.dice_ce(logits[:, :1], labels)
    for loss in (losses.huber, losses.mse):
        with pytest.raises(ValueError, match=r"got shape \(2,\), wanted the prediction's \(2, 1\)"):
            loss(torch.zeros(2, 1), torch.zeros(2))
