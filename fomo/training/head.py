"""The start of a multistage head: one pass over the training cases, and a linear fit to what it saw.

Fine-tuning then begins at the best linear answer from the features as they are, not at noise, whose gradients would
distort them (Kumar et al., ICLR 2022). Nothing but the training cases is looked at.
"""

import numpy as np
import torch

from .. import ridge
from ..config import UserError
from ..nets import image_head
from ..runtime import dist, seeds
from . import optimization
from .evaluate import windows_of

_CASES = 500  # more of them change the fit little


def start_head(config, task, network, train_cases, log):
    """Fit the multistage head of a network, if it has one; collective."""
    head = multistage(network)
    if head is None:
        return
    cases = _chosen(config, train_cases)
    features, targets = statistics(config, network, cases), np.asarray(task.head_targets(cases), float)
    fit, slope, offset = dist.on_main(lambda: _fitted(task, head, features, targets, cases))
    head.adopt(fit.scaling, slope[:, None] * fit.weight, slope * fit.bias + offset)
    error = np.mean((fit.left_out - targets) ** 2) / max(np.mean((targets - targets.mean(0)) ** 2), 1e-12)
    found = {"decay": fit.decay, "strength": fit.strength, "left_out_r2": 1 - error}
    log("head", kind=head.kind, cases=len(cases), features=features.shape[1], **found)


def multistage(network):
    """The ImageHead of a network that reads all stages; None if it has none."""
    heads = (module for module in network.modules() if isinstance(module, image_head.ImageHead))
    return next((head for head in heads if head.kind == "multistage"), None)


def _chosen(config, cases):
    """The cases, or as many of them as the fit needs, drawn by the seed."""
    if len(cases) <= _CASES:
        return cases
    drawn = seeds.generator(config.seed, "head").permutation(len(cases))[:_CASES]
    return [cases[index] for index in sorted(drawn)]


def statistics(config, network, cases):
    """(n, F) float64, what a multistage head reads of the cases: the mean over the windows that cover each; collective.

    Moves the network to the device.
    """
    optimization.lay_out(network, dist.device())
    windows, reader = windows_of(config, dist.device()), _Reader(network.eval())

    def own_share():
        for index in range(dist.rank(), len(cases), dist.world_size()):
            case = cases[index]
            each = windows.each(reader, case.image(), case.background)
            yield index, each.mean(0).double().cpu().numpy()

    parts = dist.gather(dist.together(lambda: list(own_share())))
    found = dict(pair for part in parts for pair in part)
    return np.stack([found[index] for index in range(len(cases))])


class _Reader(torch.nn.Module):
    """A network as a function to its statistics; a module, whose parameters' type the windows get."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network.statistics(x)


def _fitted(task, head, features, targets, cases):
    """(the ridge.Ridge, slope (K,), offset (K,)): the outputs are slope times its answers plus the offset."""
    try:
        subjects = [case.subject for case in cases]
        fit = ridge.fit(features, targets, head.groups, head.depths, subjects, bound=image_head.BOUND)
    except ValueError as error:
        raise UserError(f"model.head=multistage: the training cases cannot start it: {error}") from error
    slope, offset = np.ones(targets.shape[1]), np.zeros(targets.shape[1])
    for own, outputs, seen in task.head_parts(cases):
        if own.mode != "regression":
            found = _as_logits(own, fit.left_out[:, outputs], [case.target for case in seen])
            slope[outputs], offset[outputs] = found
    return fit, slope, offset


def _as_logits(task, answers, targets):
    """(slope, offset (K,)) that turn answers about unseen cases (n, K) into logits with the least loss of the task.

    The slope is held near 4, where answers from 0 to 1 span logits from -2 to 2, so that few cases that happen to be
    told apart do not make it infinite.
    """
    from scipy.optimize import minimize  # not torch's LBFGS, which imports torch._dynamo, as all its optimizers do

    answers, batch = torch.as_tensor(answers), {"target": torch.tensor(targets, dtype=torch.float32)}
    start = torch.cat([torch.tensor([4.0]), -4.0 * answers.mean(0)])

    def objective(values):
        values = torch.tensor(values, requires_grad=True)
        loss = task.loss(values[0].abs() * answers + values[1:], batch).double().sum()
        total = loss + 0.5 * ((values - start) / 4).square().sum()
        total.backward()
        return total.item(), values.grad.numpy()

    slope, *offset = minimize(
        objective, start.numpy(), jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-6}
    ).x
    return abs(float(slope)), np.array(offset)
