"""Losses per sample: every function returns shape (B,) in float32, for any input dtype and under autocast.

The mean over the batch is the caller's, so that accumulation and ranks add up exactly to one big batch.
Logits are (B, K) or (B, K, X, Y, Z); class targets are whole numbers 0..K-1 of shape (B,) or (B, X, Y, Z).
A wrong shape is a ValueError, because broadcasting would hide it.
"""

import torch
import torch.nn.functional as F


def cross_entropy(logits, target, class_weights=None):
    """-log softmax of the target class, times its weight; the mean over the voxels of a sample.

    class_weights: (K,), scaled by the caller (mean 1 over the training set keeps the learning rate's meaning):
    nothing is divided by the weights that happen to be in a batch.
    """
    _check_classes(logits, target)
    return _per_sample(_nll(logits.float().log_softmax(1), target, class_weights))


def focal(logits, target, alpha=None, gamma=2.0):
    """Softmax focal loss alpha[y] (1 - p_y)^gamma (-log p_y) (Lin et al. 2017); the mean over the voxels of a sample.

    alpha: class weights (K,) or None; gamma=0 is cross_entropy.
    """
    _check_classes(logits, target)
    nll = _nll(logits.float().log_softmax(1), target, None)
    # 1 - p without cancellation; never exactly 0, where the gradient of the power is infinite for gamma < 1
    miss = (-torch.expm1(-nll)).clamp(min=1e-8)
    loss = miss**gamma * nll
    if alpha is not None:
        loss = loss * _weights(alpha, logits)[target.long()]
    return _per_sample(loss)


def dice_ce(logits, target, class_weights=None, smooth=1.0):
    """1 - soft Dice, averaged over the foreground classes (1..K-1), plus cross_entropy, both per sample.

    Dice of class c = (2 sum p_c y_c + smooth) / (sum p_c + sum y_c + smooth) over the voxels of the sample, p the
    softmax. For a class that the sample does not have, its loss is therefore sum p_c / (sum p_c + smooth): 0 when none
    is predicted, and 1/2 when as little as `smooth` voxels of it are (Isensee et al. 2021, with the foreground only).
    """
    _check_classes(logits, target)
    if logits.shape[1] < 2:
        raise ValueError(f"logits: got {logits.shape[1]} class, wanted at least 2, background included")
    log_p = logits.float().log_softmax(1)
    dice = 0.0
    for c in range(1, logits.shape[1]):  # class by class: no one-hot copy of the volume
        p, y = log_p[:, c].exp().flatten(1), (target == c).flatten(1)
        dice = dice + (2 * (p * y).sum(1) + smooth) / (p.sum(1) + y.sum(1) + smooth)
    return 1 - dice / (logits.shape[1] - 1) + _per_sample(_nll(log_p, target, class_weights))


def huber(prediction, target, delta=1.0):
    """Squared error / 2 up to `delta`, linear beyond; the mean over the values of a sample. Both (B,) or (B, T)."""
    _check_same(prediction, target)
    return _per_sample(F.huber_loss(prediction.float(), target.float(), delta=delta, reduction="none"))


def mse(prediction, target):
    """Squared error; the mean over the values of a sample. Both (B,) or (B, T)."""
    _check_same(prediction, target)
    return _per_sample(F.mse_loss(prediction.float(), target.float(), reduction="none"))


def deep_supervision(loss, outputs, target):
    """Weighted sum of loss(logits, target) over `outputs`, finest first, with weights 1, 1/2, 1/4 ... normalised to 1.

    outputs: list of (B, K, x, y, z) whose sizes divide the target's, or one tensor (what the network gives without
    gradients), which is plain loss(outputs, target). target: (B, X, Y, Z); coarse levels take the voxel at the centre
    of each block, the upper one of the two (nearest neighbour).
    """
    if isinstance(outputs, torch.Tensor):
        return loss(outputs, target)
    total = 0.0
    for i, logits in enumerate(outputs):
        size, coarse = target.shape[1:], logits.shape[2:]
        if len(size) != len(coarse) or any(n % m for n, m in zip(size, coarse)):
            raise ValueError(
                f"outputs[{i}]: got size {tuple(coarse)}, wanted one that divides the target's {tuple(size)}"
            )
        factors = [n // m for n, m in zip(size, coarse)]
        centres = tuple(slice(f // 2, None, f) for f in factors)
        total = total + 0.5**i * loss(logits, target[(slice(None), *centres)])
    return total / (2 - 0.5 ** (len(outputs) - 1))


def _nll(log_p, target, class_weights):
    """-log p of the target class times its weight, in the target's shape."""
    weights = None if class_weights is None else _weights(class_weights, log_p)
    return F.nll_loss(log_p, target.long(), weight=weights, reduction="none")


def _per_sample(values):
    """Mean over everything but the batch."""
    return values.reshape(len(values), -1).mean(1)


def _weights(weights, logits):
    weights = torch.as_tensor(weights, dtype=torch.float32, device=logits.device)
    if weights.shape != logits.shape[1:2]:
        raise ValueError(f"class weights: got shape {tuple(weights.shape)}, wanted ({logits.shape[1]},)")
    return weights


def _check_classes(logits, target):
    wanted = (logits.shape[0], *logits.shape[2:])
    if target.shape != wanted or target.is_floating_point():
        raise ValueError(
            f"target: got {target.dtype} of shape {tuple(target.shape)}, wanted whole numbers of shape {wanted}"
        )


def _check_same(prediction, target):
    if prediction.shape != target.shape:
        raise ValueError(f"target: got shape {tuple(target.shape)}, wanted the prediction's {tuple(prediction.shape)}")
