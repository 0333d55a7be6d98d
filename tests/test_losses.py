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


def voxels(*probabilities):
    """Logits (1, 1, N, 1, 1) of a sigmoid, and the two channels of a softmax, with these foreground probabilities."""
    p = torch.tensor(probabilities)
    return torch.logit(p).view(1, 1, -1, 1, 1), torch.stack([1 - p, p]).log().view(1, 2, -1, 1, 1)


def test_sigmoid_segmentation_by_hand():
    one, two = voxels(0.9, 0.6, 0.2, 0.1)
    target = torch.tensor([1, 1, 0, 0]).view(1, 4, 1, 1)
    ce = -log(0.9 * 0.6 * 0.8 * 0.9) / 4
    torch.testing.assert_close(losses.sigmoid_cross_entropy(one, target), torch.tensor([ce]))
    torch.testing.assert_close(losses.dice_ce(one, target, activation="sigmoid"), losses.dice_ce(two, target))
    both = torch.cat([one, -one], 1)  # a second class with the probabilities .1 .4 .8 .9, which no voxel is of
    dice = (2 * 1.5 + 1) / (1.8 + 2 + 1) + 1 / (2.2 + 1)
    wanted = 1 - dice / 2 + (ce - log(0.9 * 0.6 * 0.2 * 0.1) / 4) / 2
    torch.testing.assert_close(losses.dice_ce(both, target, activation="sigmoid"), torch.tensor([wanted]))
    with pytest.raises(ValueError, match="class_weights"):
        losses.dice_ce(one, target, [1.0, 2.0], activation="sigmoid")


def test_generalized_dice_by_hand():
    one, two = voxels(0.9, 0.6, 0.2, 0.1)
    target = torch.tensor([1, 0, 0, 0]).view(1, 4, 1, 1)  # weights 1 for the foreground and 1/9 for the background
    wanted = 1 - 2 * (0.9 + 2.1 / 9) / ((1.8 + 1) + (2.2 + 3) / 9)
    torch.testing.assert_close(losses.generalized_dice(two, target), torch.tensor([wanted]), atol=1e-5, rtol=0)
    wanted = 1 - 2 * 0.9 / (1.8 + 1)
    torch.testing.assert_close(
        losses.generalized_dice(one, target, "sigmoid"), torch.tensor([wanted]), atol=1e-5, rtol=0
    )
    # nothing there: with sigmoid the mean probability; with softmax 1 - 2 * 2.2 / (2.2 + 4 + 1.8)
    torch.testing.assert_close(losses.generalized_dice(one, 0 * target, "sigmoid"), torch.tensor([0.45]))
    torch.testing.assert_close(losses.generalized_dice(two, 0 * target), torch.tensor([0.45]), atol=1e-5, rtol=0)
    # a third class that is absent has the weight of the rarer one that is there
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    logits, target = p.log().T.reshape(1, 3, 3, 1, 1), torch.tensor([0, 1, 0]).view(1, 3, 1, 1)
    both, each = (0.7 + 0.5) / 4 + 0.6, (1.3 + 2) / 4 + (1.05 + 1) + 0.65
    torch.testing.assert_close(
        losses.generalized_dice(logits, target), torch.tensor([1 - 2 * both / each]), atol=1e-5, rtol=0
    )
    perfect = 60.0 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert losses.generalized_dice(perfect, target).item() == pytest.approx(0, abs=1e-6)


def test_smoothed_classes_are_torchs_and_the_mix_of_the_losses_of_all_targets():
    logits, target, weights = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 2]), torch.tensor([1.0, 0.5, 2.0, 3.0])
    for of_each in (None, weights):
        wanted = torch.nn.functional.cross_entropy(logits, target, of_each, reduction="none", label_smoothing=0.3)
        torch.testing.assert_close(losses.cross_entropy(logits, target, of_each, 0.3), wanted)
        each = torch.stack([losses.focal(logits, torch.full((6,), k), of_each) for k in range(4)])
        wanted = 0.7 * losses.focal(logits, target, of_each) + 0.3 * each.mean(0)
        torch.testing.assert_close(losses.focal(logits, target, of_each, label_smoothing=0.3), wanted)
    volume, labels = torch.randn(2, 3, 4, 4, 4), torch.randint(3, (2, 4, 4, 4))
    wanted = torch.nn.functional.cross_entropy(volume, labels, weights[:3], reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(losses.cross_entropy(volume, labels, weights[:3], 0.1), wanted.mean((1, 2, 3)))


def counted(p, target, alpha, beta, classes):
    """The Tversky index of each class of one sample, voxel by voxel; p: of each class, (X, Y, Z)."""
    found = []
    for channel, c in classes:
        tp = fp = fn = 0.0
        for probability, label in zip(p[channel].flatten().tolist(), target.flatten().tolist()):
            if label == c:
                tp, fn = tp + probability, fn + 1 - probability
            else:
                fp += probability
        found.append((tp + 1) / (tp + alpha * fp + beta * fn + 1))
    return found


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_tversky_and_dice_focal_by_counting(activation):
    logits, target = torch.randn(2, 3, 3, 2, 4), torch.randint(3, (2, 3, 2, 4))
    target[1] = 0  # a sample without foreground
    p = logits.softmax(1) if activation == "softmax" else logits.sigmoid()
    classes = [(1, 1), (2, 2)] if activation == "softmax" else [(0, 1), (1, 2), (2, 3)]
    for alpha, beta in ((0.3, 0.7), (0.9, 0.2)):
        wanted = [
            1 - sum(each) / len(each) for each in (counted(p[i], target[i], alpha, beta, classes) for i in (0, 1))
        ]
        found = losses.tversky(logits, target, alpha, beta, activation=activation)
        torch.testing.assert_close(found, torch.tensor(wanted))
    torch.testing.assert_close(
        losses.dice_focal(logits, target, gamma=0.0, activation=activation),
        losses.dice_ce(logits, target, activation=activation),
    )
    dice = losses.dice_ce(logits, target, activation=activation)
    if activation == "softmax":
        weights = [0.5, 2.0, 1.0]
        wanted = dice - losses.cross_entropy(logits, target) + losses.focal(logits, target, weights, 3.0)
        torch.testing.assert_close(losses.dice_focal(logits, target, weights, 3.0), wanted)
        return
    right = torch.stack([torch.where(target == c, p[:, channel], 1 - p[:, channel]) for channel, c in classes])
    focal = (-((1 - right) ** 2) * right.log()).mean((0, 2, 3, 4))
    wanted = dice - losses.sigmoid_cross_entropy(logits, target) + focal
    torch.testing.assert_close(losses.dice_focal(logits, target, activation="sigmoid"), wanted)
    with pytest.raises(ValueError, match="class_weights"):
        losses.dice_focal(logits, target, [1.0, 2.0, 1.0], activation="sigmoid")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_tversky_and_dice_focal_are_monais(activation):
    monai = pytest.importorskip("monai.losses")
    logits, target = torch.randn(2, 3, 4, 4, 4), torch.randint(3, (2, 4, 4, 4))
    first = 0 if activation == "softmax" else 1
    one_hot = torch.nn.functional.one_hot(target, 4)[..., first : first + 3].movedim(-1, 1).float()
    background = {"include_background": activation == "sigmoid", activation: True}
    for i in (0, 1):  # MONAI's mean is over the batch, too
        one, wanted = logits[i : i + 1], one_hot[i : i + 1]
        other = monai.TverskyLoss(**background, alpha=0.2, beta=0.6, smooth_nr=1.0, smooth_dr=1.0)(one, wanted)
        found = losses.tversky(one, target[i : i + 1], 0.2, 0.6, activation=activation)
        torch.testing.assert_close(found, other[None])
        dice = monai.DiceLoss(**background, smooth_nr=1.0, smooth_dr=1.0)(one, wanted)
        if activation == "softmax":  # MONAI's focal loss is the mean over the channels, of which one is not 0
            focal = 3 * monai.FocalLoss(use_softmax=True, gamma=2.5)(one, wanted)
        else:
            focal = monai.FocalLoss(gamma=2.5)(one, wanted)
        found = losses.dice_focal(one, target[i : i + 1], gamma=2.5, activation=activation)
        torch.testing.assert_close(found, (dice + focal)[None], rtol=1e-4, atol=1e-5)


def test_masked_mse_is_the_mean_over_the_masked_voxels_of_each_sample():
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 4, 1, 1).repeat(2, 2, 1, 1, 1)
    prediction[:, 1] *= 10
    mask = torch.zeros(2, 1, 4, 1, 1, dtype=torch.bool)
    mask[0, 0, 1:3] = True  # of the second sample nothing
    target = torch.zeros_like(prediction)
    prediction[0, 0, 3] = math.inf  # not looked at
    prediction.requires_grad_()
    loss = losses.masked_mse(prediction, target, mask)
    torch.testing.assert_close(loss, torch.tensor([(4 + 9 + 400 + 900) / 4, 0.0]))
    loss.sum().backward()
    assert torch.isfinite(prediction.grad).all() and prediction.grad[0, 0].flatten().tolist() == [0, 1, 1.5, 0]
    alone = torch.cat([mask, ~mask], 1)  # a mask of its own for each channel
    assert losses.masked_mse(prediction.detach()[:1], target[:1], alone[:1]).item() == (4 + 9 + 100 + 1600) / 4
    whole = losses.masked_mse(prediction.detach()[1:], target[1:])
    torch.testing.assert_close(whole, torch.tensor([30 * 101 / 8]))
    for bad in (mask.float(), mask[:1], mask[..., 0]):
        with pytest.raises(ValueError, match="mask: got"):
            losses.masked_mse(prediction, target, bad)


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


CLASS_LOSSES = [
    losses.dice_focal,
    losses.tversky,
    lambda x, y: losses.dice_focal(x[:, :2], y, activation="sigmoid"),
    lambda x, y: losses.tversky(x[:, :2], y, activation="sigmoid"),
    losses.cross_entropy,
    losses.focal,
    lambda x, y: losses.focal(x, y, gamma=0.5),
    losses.dice_ce,
    lambda x, y: losses.dice_ce(x, y, activation="sigmoid"),
    losses.sigmoid_cross_entropy,
    losses.generalized_dice,
    lambda x, y: losses.generalized_dice(x, y, "sigmoid"),
]


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
    for loss in CLASS_LOSSES:
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


# ------------------------------------------------------------------------------------------------ several labels

PRESENT, ABSENT = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])
P = (0.8, 0.03)  # of the two labels
X = torch.tensor([[log(0.8 / 0.2), log(0.03 / 0.97)]])
MULTILABEL = [
    losses.bce,
    losses.focal_multilabel,
    losses.asymmetric,
    lambda x, y: losses.asymmetric(x, y, 0.5, 0.5, 0.0),
]


def test_bce_is_torchs():
    logits, targets = torch.randn(4, 3), torch.rand(4, 3)
    weight = torch.tensor([0.5, 2.0, 7.0])
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=weight)
    torch.testing.assert_close(losses.bce(logits, targets, weight), wanted.mean(1))
    torch.testing.assert_close(losses.bce(X, PRESENT), torch.tensor([-log(P[0] * P[1]) / 2]))
    torch.testing.assert_close(losses.bce(X, PRESENT, 3.0), torch.tensor([-3 * log(P[0] * P[1]) / 2]))
    smooth = -(0.95 * log(P[0]) + 0.05 * log(1 - P[0]) + 0.95 * log(P[1]) + 0.05 * log(1 - P[1])) / 2
    torch.testing.assert_close(losses.bce(X, PRESENT, label_smoothing=0.1), torch.tensor([smooth]))
    assert losses.bce(X, torch.tensor([[1.0, math.nan]])).isnan().all()


def test_focal_multilabel_by_hand():
    present = [0.25 * (1 - p) ** 2 * -log(p) for p in P]
    absent = [0.75 * p**2 * -log(1 - p) for p in P]
    torch.testing.assert_close(losses.focal_multilabel(X, PRESENT), torch.tensor([sum(present) / 2]))
    torch.testing.assert_close(losses.focal_multilabel(X, ABSENT), torch.tensor([sum(absent) / 2]))
    each = losses.focal_multilabel(X, PRESENT, alpha=[0.85, 0.5], gamma=torch.tensor([4.0, 1.0]))
    wanted = (0.85 * 0.2**4 * -log(0.8) + 0.5 * 0.97 * -log(0.03)) / 2
    torch.testing.assert_close(each, torch.tensor([wanted]))
    logits, targets = torch.randn(5, 4), torch.randint(2, (5, 4)).float()
    torch.testing.assert_close(2 * losses.focal_multilabel(logits, targets, 0.5, 0.0), losses.bce(logits, targets))


def test_asymmetric_by_hand():
    present = [(1 - p) * -log(p) for p in P]
    absent = [(0.8 - 0.05) ** 4 * -log(1 - 0.75), 0.0]  # 0.03 lies below the clip
    torch.testing.assert_close(losses.asymmetric(X, PRESENT), torch.tensor([sum(present) / 2]))
    torch.testing.assert_close(losses.asymmetric(X, ABSENT), torch.tensor([sum(absent) / 2]))
    seed = losses.asymmetric(X, ABSENT, gamma_neg=6, gamma_pos=1, clip=0.05)
    torch.testing.assert_close(seed, torch.tensor([0.75**6 * -log(0.25) / 2]))
    each = losses.asymmetric(X, torch.tensor([[0.0, 1.0]]), gamma_neg=[2.0, 0.0], gamma_pos=[0.0, 3.0], clip=0.0)
    torch.testing.assert_close(each, torch.tensor([(0.8**2 * -log(0.2) + 0.97**3 * -log(0.03)) / 2]))
    logits, targets = torch.randn(5, 4), torch.randint(2, (5, 4)).float()
    torch.testing.assert_close(losses.asymmetric(logits, targets, 0, 0, 0), losses.bce(logits, targets))


@pytest.mark.parametrize("loss", MULTILABEL)
def test_mixed_targets_give_the_mix_of_the_losses(loss):
    logits = torch.randn(3, 5)
    one, other = torch.randint(2, (2, 3, 5)).float()
    share = torch.tensor([0.3, 0.8, 1.0])
    mixed = share[:, None] * one + (1 - share)[:, None] * other
    torch.testing.assert_close(loss(logits, mixed), share * loss(logits, one) + (1 - share) * loss(logits, other))


@pytest.mark.parametrize("loss", MULTILABEL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_extreme_logits_of_labels_give_finite_losses_and_gradients(loss, dtype, autocast):
    logits = torch.tensor([[50.0, -50.0, 0.0], [1e4, -1e4, 20.0]]).to(dtype)
    for targets in (torch.zeros(2, 3), torch.ones(2, 3), torch.full((2, 3), 0.5)):
        x = logits.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            value = loss(x, targets)
        assert value.dtype == torch.float32 and value.shape == (2,) and torch.isfinite(value).all()
        value.mean().backward()
        assert torch.isfinite(x.grad).all()
    assert (loss(torch.full((1, 3), -50.0), torch.zeros(1, 3)) < 1e-6).all()
    wrong = torch.full((1, 3), -50.0, requires_grad=True)
    loss(wrong, torch.ones(1, 3)).backward()
    assert (wrong.grad < -0.01).all()  # what is wrong and sure still learns


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_gradients_of_labels_are_right(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, direction = torch.randn(2, 3, 4, generator=generator)
    targets = torch.rand(3, 4, generator=generator)
    for loss in MULTILABEL:
        x = logits.double().requires_grad_()
        loss(x, targets).sum().backward()
        slope = (loss(logits + 1e-2 * direction, targets) - loss(logits - 1e-2 * direction, targets)).sum() / 2e-2
        assert slope.item() == pytest.approx((x.grad * direction).sum().item(), rel=0.05, abs=0.01)


def test_wrong_shapes_of_labels_are_refused():
    logits = torch.zeros(2, 3)
    for loss in MULTILABEL:
        with pytest.raises(ValueError, match=r"got shape \(2,\), wanted the prediction's \(2, 3\)"):
            loss(logits, torch.zeros(2))
        with pytest.raises(ValueError, match=r"wanted \(B, labels\)"):
            loss(logits[0], logits[0])
    with pytest.raises(ValueError, match=r"pos_weight: got shape \(2,\), wanted one number or \(3,\)"):
        losses.bce(logits, logits, [1.0, 2.0])
    with pytest.raises(ValueError, match="gamma_neg"):
        losses.asymmetric(logits, logits, gamma_neg=[1.0])
