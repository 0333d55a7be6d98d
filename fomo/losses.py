"""Losses per sample: every function returns shape (B,) in float32, for any input dtype and under autocast.

The caller takes the mean over the batch, so that accumulation and ranks add up exactly to one big batch.
Logits are (B, K) or (B, K, X, Y, Z); class targets are whole numbers 0..K-1 of shape (B,) or (B, X, Y, Z).
A wrong shape is a ValueError, because broadcasting would hide it.
"""

import torch
import torch.nn.functional as F


def cross_entropy(logits, target, class_weights=None, label_smoothing=0.0):
    """-log softmax of the target class, times its weight; the mean over the voxels of a sample.

    class_weights: (K,). The loss is not divided by the weights in a batch; their mean over a training set should be 1.
    label_smoothing e: 1 - e times this loss, and e times the mean over the K classes, as if each were the target.
    """
    _check_classes(logits, target)
    return _of_target(-logits.float().log_softmax(1), target, class_weights, label_smoothing)


def focal(logits, target, alpha=None, gamma=2.0, label_smoothing=0.0):
    """Softmax focal loss alpha[y] (1 - p_y)^gamma (-log p_y) (Lin et al. 2017); the mean over the voxels of a sample.

    alpha: class weights (K,) or None; gamma=0 is cross_entropy, which explains label_smoothing.
    """
    _check_classes(logits, target)
    return _of_target(_focused(-logits.float().log_softmax(1), gamma), target, alpha, label_smoothing)


def dice_ce(logits, target, class_weights=None, smooth=1.0, activation="softmax"):
    """1 - soft Dice, averaged over the foreground classes (1..K-1), plus cross_entropy, both per sample.

    Dice of class c = (2 sum p_c y_c + smooth) / (sum p_c + sum y_c + smooth) over the voxels of the sample, p the
    softmax (Isensee et al. 2021, with the foreground only). A class that the sample does not have has the loss
    sum p_c / (sum p_c + smooth): 0 where none is predicted.
    activation="sigmoid": channel k of the logits is class k + 1, p their sigmoid, and sigmoid_cross_entropy is added.
    """
    log_p = _log_probabilities(logits, target, activation, class_weights)
    if activation == "sigmoid":
        ce = sigmoid_cross_entropy(logits, target)
    else:
        ce = _of_target(-log_p, target, class_weights)
    return _dice(log_p, target, smooth, activation) + ce


def dice_focal(logits, target, class_weights=None, gamma=2.0, smooth=1.0, activation="softmax"):
    """As dice_ce, with the focal loss in place of the cross-entropy: easy voxels count less (Zhu et al. 2019).

    With "softmax" this is `focal`, whose alpha are the class weights; with "sigmoid" (1 - q)^gamma (-log q) in each
    voxel, q the probability of being right about a class, and the mean over the classes.
    """
    log_p = _log_probabilities(logits, target, activation, class_weights)
    if activation == "softmax":
        added = _of_target(_focused(-log_p, gamma), target, class_weights)
    else:
        classes, total = _foreground(logits, target, activation), 0.0
        for channel, c in classes:
            sign = 1 - 2 * (target == c).float()  # q is the sigmoid of the logit, or of its negative
            total = total + _focused(F.softplus(sign * logits[:, channel].float()), gamma)
        added = _per_sample(total) / len(classes)
    return _dice(log_p, target, smooth, activation) + added


def tversky(logits, target, alpha=0.3, beta=0.7, smooth=1.0, activation="softmax"):
    """1 - (TP + smooth) / (TP + alpha FP + beta FN + smooth), averaged over the foreground classes.

    Of class c TP = sum p_c y_c, FP = sum p_c (1 - y_c) and FN = sum (1 - p_c) y_c over the voxels of a sample (Salehi
    et al. 2017); p and channels as in dice_ce. alpha = beta = 1/2 is the Dice, beta above alpha values sensitivity.
    """
    log_p, total = _log_probabilities(logits, target, activation), 0.0
    classes = _foreground(logits, target, activation)
    for channel, c in classes:
        both, predicted, true = _overlap(log_p[:, channel], target == c)
        wrong = alpha * (predicted - both) + beta * (true - both)
        total = total + (both + smooth) / (both + wrong + smooth)
    return 1 - total / len(classes)


def sigmoid_cross_entropy(logits, target):
    """Cross-entropy, by the sigmoid, of independent classes: channel k of the logits (B, K, X, Y, Z) is class k + 1.

    The mean over the classes and voxels of a sample. target: whole numbers (B, X, Y, Z), 0 where there is no class.
    """
    classes = _foreground(logits, target, "sigmoid")
    total = 0.0
    for channel, c in classes:
        wanted = (target == c).float()
        total = total + F.binary_cross_entropy_with_logits(logits[:, channel].float(), wanted, reduction="none")
    return _per_sample(total) / len(classes)


def generalized_dice(logits, target, activation="softmax", smooth=1e-5):
    """1 - 2 sum_c w_c sum p_c y_c / sum_c w_c sum (p_c + y_c), w_c = 1 / (voxels of c)^2 (Sudre et al. 2017).

    The sums run over the voxels and the classes. With "softmax" all channels are classes, the background too; with
    "sigmoid" channel k is class k + 1, and there is no background. A class that the sample does not have gets the
    largest weight of the others (as in the authors' NiftyNet). A sample without any class (sigmoid) has the
    loss mean p. `smooth` is added above and below, in voxels of the rarest class.
    """
    first = _foreground(logits, target, activation)[0]
    p = logits.float().softmax(1) if activation == "softmax" else logits.float().sigmoid()
    shift = first[1] - first[0]  # from channel to class
    y = torch.stack([(target == channel + shift).flatten(1) for channel in range(p.shape[1])], 1)
    p, count = p.flatten(2), y.sum(2)
    rarest = torch.where(count > 0, count, count.amax() + 1).amin(1, keepdim=True)
    weights = (rarest / torch.where(count > 0, count, rarest)) ** 2  # 1 for the rarest class: the scale cancels
    both, each = (weights * (p * y).sum(2)).sum(1), (weights * (p.sum(2) + count)).sum(1)
    dice = (2 * both + smooth) / (each + smooth).clamp(min=1e-30)
    return torch.where(count.sum(1) > 0, 1 - dice, p.mean((1, 2)))


def huber(prediction, target, delta=1.0):
    """Squared error / 2 up to `delta`, linear beyond; the mean over the values of a sample. Both (B,) or (B, T)."""
    _check_same(prediction, target)
    return _per_sample(F.huber_loss(prediction.float(), target.float(), delta=delta, reduction="none"))


def mse(prediction, target):
    """Squared error; the mean over the values of a sample. Both (B,) or (B, ...)."""
    _check_same(prediction, target)
    return _per_sample(F.mse_loss(prediction.float(), target.float(), reduction="none"))


def masked_mse(prediction, target, mask=None):
    """Squared error; the mean over the masked voxels of a sample, in all channels. Both (B, C, X, Y, Z).

    mask: bool (B, 1 or C, X, Y, Z), True where the error counts (None: everywhere). A sample without such a voxel has
    the loss 0 and no gradient. Values outside the mask may be infinite.
    """
    if mask is None:
        return mse(prediction, target)
    _check_same(prediction, target)
    wanted = (len(target), "1 or C", *target.shape[2:])
    if mask.dtype != torch.bool or mask.shape not in (target.shape, target[:, :1].shape):
        raise ValueError(f"mask: got {mask.dtype} of shape {tuple(mask.shape)}, wanted bool of shape {wanted}")
    error = (prediction.float() - target.float()).masked_fill(~mask, 0)
    count = mask.flatten(1).sum(1) * (target.shape[1] // mask.shape[1])
    return error.square().flatten(1).sum(1) / count.clamp(min=1)


def dino(student, teacher, centre, student_temperature=0.1, teacher_temperature=0.04):
    """Cross-entropy of each student view against each teacher view of another crop; the mean over all such pairs.

    student: outputs (B, K) of all V views, as a list or as (V, B, K).
    teacher: outputs of the first G of these views, which are the global ones; they get no gradient.
    centre: (K,), subtracted from the teacher's outputs.
    Views of the same crop (equal index) are no pair (Caron et al. 2021, eq. 3; DINOLoss of facebookresearch/dino).
    """
    student, teacher = (torch.stack(list(views)) for views in (student, teacher))
    views, others = len(student), len(teacher)
    if student.ndim != 3 or student.shape[1:] != teacher.shape[1:] or centre.shape != student.shape[2:]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (student, teacher, centre))
        raise ValueError(f"student, teacher, centre: got shapes {shapes}, wanted (V, B, K), (G, B, K), (K,)")
    if not 1 <= others <= views or views < 2:
        got = f"{views} and {others} views"
        raise ValueError(f"student, teacher: got {got}, wanted at least 2, and no more of the teacher")
    with torch.no_grad():
        target = dino_target(teacher, centre, teacher_temperature)
    log_p = (student.float() / student_temperature).log_softmax(-1)
    total = 0.0
    for g, q in enumerate(target):  # no matrix product: autocast would round it
        for v, p in enumerate(log_p):
            if v != g:
                total = total - (q * p).sum(-1)
    return total / (others * (views - 1))


def dino_target(teacher, centre, temperature):
    """Probabilities, in float32, that the student shall give: the teacher's outputs (..., K), centred and sharpened."""
    return ((teacher.float() - centre.float()) / temperature).softmax(-1)


def vicreg(first, second, mean, covariance, deviation=1.0):
    """(invariance, variance, covariance), (B,) each: the terms of VICReg of two views' vectors (Bardes et al. 2022).

    first, second: (B, K), of the same samples. mean (K,), covariance (K, K): of such vectors, over as many samples as
    are known. What they depend on gets its gradient, too.

    invariance   mean squared difference of the two views
    variance     mean over the K numbers of max(0, deviation - sqrt(their variance + 1e-4))
    covariance   sum of the squares of the covariances of two different numbers, divided by K

    The last two are facts about many samples, and have the same value for each. Their gradient is each sample's share:
    with mean and covariance (divided by n) of the 2 B vectors themselves, the gradient of the batch's mean is exactly
    that of the published loss. With those of more samples, as a moving average has them, parts of a batch still add up
    to the batch, and a batch of few says no more than it knows: four samples cannot fill K dimensions.
    """
    sizes = first.shape[1:], mean.shape, covariance.shape
    if first.ndim != 2 or first.shape != second.shape or sizes[1] != sizes[0] or sizes[2] != 2 * sizes[0]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (first, second, mean, covariance))
        raise ValueError(f"first, second, mean, covariance: got shapes {shapes}, wanted (B, K), (B, K), (K,), (K, K)")
    first, second, mean, covariance = (x.float() for x in (first, second, mean, covariance))
    variances = covariance.diagonal()
    deviations, others = (variances.clamp(min=0) + 1e-4).sqrt(), covariance - torch.diag(variances)
    values = (deviation - deviations).clamp(min=0).mean(), others.square().sum() / len(mean)
    centred, deviations, others = torch.stack([first, second]) - mean.detach(), deviations.detach(), others.detach()
    slope = (deviations < deviation) / (-2 * len(mean) * deviations)  # of the variance term in each variance
    of_variance = (centred.square() * slope).sum(-1).mean(0)
    along = (centred[..., None] * others).sum(-2)  # no matrix product: autocast would round it
    of_covariance = (along * centred).sum(-1).mean(0) * (2 / len(mean))
    shares = (share - share.detach() + value for share, value in zip((of_variance, of_covariance), values))
    return _per_sample((first - second).square()), *shares


def bce(logits, targets, pos_weight=None, label_smoothing=0.0):
    """Binary cross-entropy of each label, times pos_weight where the label is present; the mean over the labels.

    pos_weight: one number or (K,).
    As for `focal_multilabel` and `asymmetric`, logits and targets are (B, K). A target is the probability of the label:
    0 or 1, or between where images were mixed. The loss is linear in it, so that a mixed target gives the mix of the
    losses; NaN gives NaN. label_smoothing e makes the target (1 - e) target + e / 2.
    """
    logits, targets = _labels(logits, targets, label_smoothing)
    present, absent = F.softplus(-logits), F.softplus(logits)  # -log p, -log(1 - p)
    if pos_weight is not None:
        present = present * _values(pos_weight, logits, "pos_weight")
    return _per_sample(targets * present + (1 - targets) * absent)


def focal_multilabel(logits, targets, alpha=0.25, gamma=2.0, label_smoothing=0.0):
    """Sigmoid focal loss: alpha (1 - p)^gamma (-log p) where the label is present, (1 - alpha) p^gamma (-log(1 - p))
    where not (Lin et al. 2017, with its defaults); the mean over the labels. alpha, gamma: one number or (K,).
    """
    logits, targets = _labels(logits, targets, label_smoothing)
    alpha, gamma = _values(alpha, logits, "alpha"), _values(gamma, logits, "gamma")
    present = alpha * _positive(torch.sigmoid(-logits)) ** gamma * F.softplus(-logits)
    absent = (1 - alpha) * _positive(torch.sigmoid(logits)) ** gamma * F.softplus(logits)
    return _per_sample(targets * present + (1 - targets) * absent)


def asymmetric(logits, targets, gamma_neg=4.0, gamma_pos=1.0, clip=0.05, label_smoothing=0.0):
    """Asymmetric focal loss (Ridnik et al. 2021); the mean over the labels. gamma_*: one number or (K,).

    Where the label is present (1 - p)^gamma_pos (-log p), where not q^gamma_neg (-log(1 - q)), q = max(p - clip, 0):
    an absent label with p below `clip` costs nothing. The authors' code (Alibaba-MIIL/ASL) has these defaults, but
    trains with gamma_pos=0 and sums over the labels. Here the powers have a gradient, as in the paper.
    """
    logits, targets = _labels(logits, targets, label_smoothing)
    gamma_neg, gamma_pos = _values(gamma_neg, logits, "gamma_neg"), _values(gamma_pos, logits, "gamma_pos")
    present = _positive(torch.sigmoid(-logits)) ** gamma_pos * F.softplus(-logits)
    shifted = (torch.sigmoid(logits) - clip).clamp(min=0)
    # -log(1 - q); without a clip by softplus, which is exact where 1 - p is rounded
    absent = _positive(shifted) ** gamma_neg * (-torch.log1p(-shifted) if clip > 0 else F.softplus(logits))
    return _per_sample(targets * present + (1 - targets) * absent)


def deep_supervision(loss, outputs, target):
    """Weighted sum of loss(logits, target) over `outputs`, finest first, with weights 1, 1/2, 1/4 ... normalised to 1.

    outputs: list of (B, K, x, y, z) whose sizes divide the target's; one tensor gives plain loss(outputs, target).
    target: (B, X, Y, Z). Coarse levels take the voxel at the centre of each block, the upper of the two middle ones.
    """
    if isinstance(outputs, torch.Tensor):
        return loss(outputs, target)
    total = 0.0
    for i, logits in enumerate(outputs):
        size, coarse = target.shape[1:], logits.shape[2:]
        if len(size) != len(coarse) or any(n % m for n, m in zip(size, coarse)):
            wanted = f"one that divides the target's {tuple(size)}"
            raise ValueError(f"outputs[{i}]: got size {tuple(coarse)}, wanted {wanted}")
        centres = tuple(slice(n // m // 2, None, n // m) for n, m in zip(size, coarse))
        total = total + 0.5**i * loss(logits, target[(slice(None), *centres)])
    return total / (2 - 0.5 ** (len(outputs) - 1))


def _of_target(each, target, class_weights, smoothing=0.0):
    """(B,): of `each`, the losses (B, K, ...) as if each class were the target, that of the target times its weight."""
    weights = None if class_weights is None else _values(class_weights, each, "class weights", scalar=False)
    loss = F.nll_loss(-each, target.long(), weight=weights, reduction="none")
    if smoothing:
        weights = 1.0 if weights is None else weights.view(-1, *[1] * (each.ndim - 2))
        loss = (1 - smoothing) * loss + smoothing * (weights * each).mean(1)
    return _per_sample(loss)


def _focused(nll, gamma):
    """(1 - p)^gamma (-log p), from -log p."""
    return _positive(-torch.expm1(-nll)) ** gamma * nll  # 1 - p without cancellation


def _log_probabilities(logits, target, activation, class_weights=None):
    """Logarithms of the softmax or the sigmoid of segmentation logits, after a check of what is given."""
    _foreground(logits, target, activation)
    if activation == "softmax":
        return logits.float().log_softmax(1)
    if class_weights is not None:
        raise ValueError("class_weights: got some with activation='sigmoid', wanted None")
    return F.logsigmoid(logits.float())


def _overlap(log_p, present):
    """(sum p y, sum p, sum y), (B,) each: over the voxels of one class; log_p and present are (B, X, Y, Z)."""
    p, y = log_p.exp().flatten(1), present.flatten(1)
    return (p * y).sum(1), p.sum(1), y.sum(1)


def _dice(log_p, target, smooth, activation):
    """(B,): 1 - soft Dice, see dice_ce; class by class, so that there is no one-hot copy of the volume."""
    classes, total = _foreground(log_p, target, activation), 0.0
    for channel, c in classes:
        both, predicted, true = _overlap(log_p[:, channel], target == c)
        total = total + (2 * both + smooth) / (predicted + true + smooth)
    return 1 - total / len(classes)


def _per_sample(values):
    """Mean over everything but the batch."""
    return values.reshape(len(values), -1).mean(1)


def _values(values, logits, name, scalar=True):
    """(K,), or one number where `scalar` allows it, as a float32 tensor beside the logits."""
    values = torch.as_tensor(values, dtype=torch.float32).to(logits.device, non_blocking=True)
    if values.shape != logits.shape[1:2] and not (scalar and values.ndim == 0):
        wanted = f"{'one number or ' if scalar else ''}({logits.shape[1]},)"
        raise ValueError(f"{name}: got shape {tuple(values.shape)}, wanted {wanted}")
    return values


def _labels(logits, targets, smoothing):
    """Logits and targets of several labels in float32, the targets smoothed."""
    if logits.ndim != 2:
        raise ValueError(f"logits: got shape {tuple(logits.shape)}, wanted (B, labels)")
    _check_same(logits, targets)
    return logits.float(), (1 - smoothing) * targets.float() + smoothing / 2


def _positive(base):
    """The base of a power, at least 1e-8: at 0 the gradient of an exponent below 1 is infinite."""
    return base.clamp(min=1e-8)


def _check_classes(logits, target):
    wanted = (logits.shape[0], *logits.shape[2:])
    if target.shape != wanted or target.is_floating_point():
        got = f"{target.dtype} of shape {tuple(target.shape)}"
        raise ValueError(f"target: got {got}, wanted whole numbers of shape {wanted}")


def _foreground(logits, target, activation):
    """[(channel, class)] of the foreground, after a check of the shapes."""
    if activation not in ("softmax", "sigmoid"):
        raise ValueError(f"activation: got {activation!r}, wanted 'softmax' or 'sigmoid'")
    _check_classes(logits, target)
    if activation == "sigmoid":
        return [(c, c + 1) for c in range(logits.shape[1])]
    if logits.shape[1] < 2:
        raise ValueError(f"logits: got {logits.shape[1]} class, wanted at least 2, background included")
    return [(c, c) for c in range(1, logits.shape[1])]


def _check_same(prediction, target):
    if prediction.shape != target.shape:
        raise ValueError(f"target: got shape {tuple(target.shape)}, wanted the prediction's {tuple(prediction.shape)}")
