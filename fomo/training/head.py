"""The start of a multistage head: one pass over the training cases, and a linear fit to what it saw.

Fine-tuning then begins at the best linear answer from the features as they are, not at noise, whose gradients would
distort them (Kumar et al., ICLR 2022). Nothing but the training cases is looked at.

A few cases do not tell what matters from what differs between two scans of one head. So each is also seen as other
scans might show it. Errors on subjects left out are too uncertain, with few cases, to tell whether that helps: so it is
always done.
"""

import dataclasses
import itertools
import zlib

import numpy as np
import torch

from .. import ridge
from ..config import UserError
from ..data import sources
from ..nets import image_head
from ..runtime import dist, interrupt, seeds
from ..transforms import build
from . import optimization
from .evaluate import windows_of

_CASES = 500  # more of them change the fit little
_RESCANS = 5  # of each case; more gain little
_STRENGTHS = tuple(strength for strength in ridge.STRENGTHS if strength > 0.009)  # less: as good, but larger weights
_SCANS = 300  # no rescans beyond these: each costs as much as the evaluation of a case


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
    found = {"decay": fit.decay, "strength": fit.strength[0], "left_out_r2": 1 - error}
    scans, cases, count = features.shape
    log("head", kind=head.kind, cases=cases, scans=scans * cases, features=count, **found)


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
    """(S, n, F) float64, what a multistage head reads of the cases: the mean over each one's windows.

    First of the cases as they are, then of each as other scans might show it. Collective; moves the network to the
    device. Raises Interrupted after a signal.
    """
    rescans = min(_RESCANS, max(0, _SCANS // len(cases) - 1))
    if config.task.evidence == "mask" or not sources.of(config.data).geometry:  # a map says most; slices are no scans
        rescans = 0
    optimization.lay_out(network, dist.device())
    windows, reader = windows_of(config, dist.device()), _Reader(network.eval())

    def own_share():
        for index in range(dist.rank(), len(cases), dist.world_size()):
            interrupt.stop_if_requested()
            case = cases[index]
            image = case.image()
            others = (_other_scan(config, case, image, number) for number in range(rescans))
            scans = itertools.chain([image], others)  # one at a time is in memory
            each = [windows.each(reader, scan, case.background).mean(0).double().cpu().numpy() for scan in scans]
            yield index, np.stack(each)

    parts = dist.gather(dist.together(lambda: list(own_share())))
    found = dict(pair for part in parts for pair in part)
    return np.stack([found[index] for index in range(len(cases))], axis=1)


def linear_fit(features, targets, groups, depths, subjects):
    """The ridge.Ridge from features (S, n, F), see `statistics`, to targets (n, K); `left_out`: of the first scans."""
    scans, cases = features.shape[:2]
    seen = np.concatenate(features), np.tile(targets, (scans, 1))
    fit = ridge.fit(*seen, groups, depths, subjects * scans, strengths=_STRENGTHS, bound=image_head.BOUND)
    return dataclasses.replace(fit, left_out=fit.left_out[:cases])


def _other_scan(config, case, image, number):
    """(C, X, Y, Z) on the device: the image of a case as another scan might show it.

    What windows add around it stays as it is: padded first, with noise there, it told a quarter of a year less of ages.
    """
    image = torch.as_tensor(np.array(image, np.float32), device=dist.device())[None]
    augment = build("other_scan", image.shape[2:], {"resample": {"spacing_mm": case.geometry.spacing_mm}})
    generator = seeds.generator(config.seed, "head", zlib.crc32(case.id.encode()), number)
    return augment({"image": image, "outside": [case.outside]}, [generator])["image"][0]


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
        fit = linear_fit(features, targets, head.groups, head.depths, [case.subject for case in cases])
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
