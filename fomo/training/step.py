"""One step of the optimizer: its batch on the device, its losses, its gradients."""

import contextlib
import math
from dataclasses import dataclass

import torch

from ..config import UserError
from ..data import loader
from ..runtime import dist


class NonFiniteLoss(RuntimeError):
    """A loss, or the norm of its gradients, is NaN or infinite."""

    exit_code = 1
    collective = True  # every rank raises it


def make_plan(config):
    """How the batch divides over the ranks, as a loader.Plan; it must divide exactly."""
    train, world = config.train, dist.world_size()
    if train.batch_size % world:
        raise UserError(f"train.batch_size: got {train.batch_size}, wanted a multiple of the {world} ranks")
    per_rank = train.batch_size // world
    micro = min(train.micro_batch or per_rank, per_rank)
    if per_rank % micro:
        wanted = f"a divisor of the {per_rank} samples of each of {world} ranks"
        raise UserError(f"train.micro_batch: got {micro}, wanted {wanted}")
    return loader.Plan(train.batch_size, dist.rank(), world, micro)


def to_device(batch, device, augment, layout=torch.contiguous_format):
    """The batch on its device, where it is augmented and mixed if the loader has not done that; layout: of `image`."""
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items() if torch.is_tensor(value)}
    batch = {**batch, **moved}
    if "plans" in batch:
        batch = loader.mixed(augment.apply(batch, batch.pop("plans")))
    batch["image"] = batch["image"].contiguous(memory_format=layout)
    return batch


@dataclass
class Step:
    """The results of a step; a GPU may still be computing them."""

    loss: torch.Tensor  # mean over the global batch
    norm: torch.Tensor | None  # of the gradients, over all ranks; None with fp16, whose scaler deals with overflows
    losses: torch.Tensor  # (B,), of this rank's samples
    ids: list  # the cases of these samples

    def read(self):
        """The loss; waits for the device. All ranks call it: where it is not finite on one, all raise the error."""
        loss, norm = float(self.loss), 0.0 if self.norm is None else float(self.norm)
        if math.isfinite(loss) and math.isfinite(norm):
            return loss
        pairs = [pair for part in dist.gather(list(zip(self.ids, self.losses.tolist()))) for pair in part]
        bad = [id for id, value in pairs if not math.isfinite(value)] or [id for id, _ in pairs]
        remedy = "look at them, lower optim.lr, set optim.clip_norm or train.amp=off"
        error = NonFiniteLoss(f"loss={loss:g} grad_norm={norm:g} is not finite; cases {', '.join(bad)}: {remedy}")
        error.reported = not dist.is_main()  # all ranks raise it, one says it
        raise error


def train_step(forward, task, micro_batches, optimizer, scaler, autocast, clip_norm):
    """Make one step of the optimizer and return its Step; nothing in it waits for the device.

    forward: the network, perhaps compiled or spread over ranks.
    micro_batches: dicts with image, id and what task.loss reads. All have equally many samples, so that the mean over
        micro-batches and ranks is the mean over the global batch.
    clip_norm: the largest norm of the gradients; None for any.
    """
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for index, batch in enumerate(micro_batches):
        last = index == len(micro_batches) - 1
        with contextlib.nullcontext() if last or not hasattr(forward, "no_sync") else forward.no_sync():
            with autocast:
                outputs = forward(batch["image"])
            per_sample = loss_of(task, outputs, batch)
            if per_sample.shape != (len(batch["id"]),):
                got = f"{tuple(per_sample.shape)} for {len(batch['id'])} samples"
                raise ValueError(f"{type(task).__name__}.loss: got shape {got}, wanted one number for each")
            losses.append(per_sample.detach())
            scaler.scale(per_sample.mean() / len(micro_batches)).backward()
    local = torch.cat(losses)
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, math.inf if clip_norm is None else clip_norm)
    scaler.step(optimizer)
    scaler.update()
    ids = [id for batch in micro_batches for id in batch["id"]]
    return Step(dist.mean(local.mean()), None if scaler.is_enabled() else norm, local, ids)


def loss_of(task, outputs, batch):
    """The task's losses (B,) float32. A mixed sample has both of its targets' losses, weighted by their shares."""
    loss = task.loss(outputs, batch)
    if "own_share" not in batch:
        return loss
    return torch.lerp(task.loss(outputs, {**batch, "target": batch["partner_target"]}), loss, batch["own_share"])
