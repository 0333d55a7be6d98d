"""One step of the optimizer: its batch on the device, its losses, its gradients."""

import contextlib
import functools
import math

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
    batch = {**batch, **_moved({name: value for name, value in batch.items() if torch.is_tensor(value)}, device)}
    if "plans" in batch:
        batch = loader.augmented(augment, batch, batch.pop("plans"))
    batch["image"] = batch["image"].contiguous(memory_format=layout)
    return batch


def _moved(tensors, device):
    """The tensors on the device; on a GPU copied while it still works on the step before."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in tensors.items()}
    with torch.cuda.stream(_copies(device)):
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
    stream = torch.cuda.current_stream(device)
    stream.wait_stream(_copies(device))
    for tensor in moved.values():
        tensor.record_stream(stream)
    return moved


@functools.cache
def _copies(device):
    """The stream of a GPU on which batches are copied to it."""
    return torch.cuda.Stream(device)


class Step:
    """The results of a step; a GPU may still be computing them.

    loss: mean over the global batch.
    norm: of the gradients, over all ranks; 0 with fp16, whose scaler deals with overflows.
    losses: (B,), of this rank's samples.
    ids: the cases of these samples.
    """

    def __init__(self, loss, norm, losses, ids):
        self.loss, self.losses, self.ids = loss, losses, ids
        # sent now, behind this step alone: a copy made later would wait for the steps that follow it
        self._read = torch.stack([loss, norm]).to("cpu", non_blocking=True)
        self._arrived = None
        if loss.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self):
        """The loss; waits for this step. All ranks call it: where it is not finite on one, all raise the error."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm = self._read.tolist()
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

    forward: the network, perhaps captured or spread over ranks.
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
    loss = dist.mean(local.mean())
    return Step(loss, torch.zeros_like(loss) if scaler.is_enabled() else norm, local, ids)


def loss_of(task, outputs, batch):
    """The task's losses (B,) float32. A mixed sample has both of its targets' losses, weighted by their shares."""
    loss = task.loss(outputs, batch)
    if "own_share" not in batch:
        return loss
    return torch.lerp(task.loss(outputs, {**batch, "target": batch["partner_target"]}), loss, batch["own_share"])
