"""What a step is made with: precision, memory layout, optimizer, averaged weights; what is frozen, and the rates of a step."""

import copy

import torch

from .. import schedule
from ..config import UserError
from ..runtime import dist


def build_optimizer(config, network, device):
    """AdamW with one group per (stage, decayed or not); norms and biases are not decayed, earlier stages learn slower."""
    groups = {}
    stages = network.stages
    for name, parameter in network.named_parameters():
        depth = next(i for i, prefixes in enumerate(stages) if name.startswith(prefixes))
        groups.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr_scale": config.finetune.layer_decay ** (len(stages) - 1 - depth),
                "decay_scale": float(decayed),
                "weight_decay": config.optim.weight_decay if decayed else 0.0,
            }
            for (depth, decayed), parameters in sorted(groups.items())
        ],
        lr=config.optim.lr,
        betas=config.optim.betas,
        fused=device.type == "cuda",
    )


class Average:
    """Exponential moving average of a network's weights and buffers, in `module`; the first update takes them as they are.

    torch's AveragedModel keeps its count in a tensor, and would wait for the GPU in each step.
    """

    def __init__(self, network, decay):
        self.module, self.decay, self.begun = copy.deepcopy(network), decay, False

    @torch.no_grad()
    def update(self, network):
        tensors = ([*module.parameters(), *module.buffers()] for module in (self.module, network))
        pairs = list(zip(*tensors, strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        if self.begun:
            torch._foreach_lerp_(*map(list, zip(*floats)), 1 - self.decay)
        for own, new in pairs:
            if not (self.begun and own.is_floating_point()):
                own.copy_(new)
        self.begun = True


def amp_of(amp, device):
    """off, bf16 or fp16: what `train.amp` means on a device."""
    if amp != "auto":
        return amp
    return (
        "off" if device.type == "cpu" else "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    )


def precision(amp, device):
    """(autocast context, gradient scaler) of `train.amp` on a device; the scaler does nothing unless it is fp16.

    Where it is off, a GPU's convolutions are in float32, which torch would round to 10 bits (TF32).
    """
    amp = amp_of(amp, device)
    if amp == "fp16" and device.type == "cpu":
        raise UserError("train.amp: got fp16 on the CPU, wanted bf16, off or auto")
    if amp == "off" and device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    dtype = torch.float16 if amp == "fp16" else torch.bfloat16
    autocast = torch.autocast(device.type, dtype=dtype, enabled=amp != "off")
    return autocast, torch.amp.GradScaler(device.type, enabled=amp == "fp16")


def lay_out(network, device):
    """Move a network to a device, with its convolutions in the memory format that is fastest there; returns that, for images.

    Channels last, on the CPU and on a GPU, except on a GPU for networks with instance norms. They give contiguous outputs,
    which each next convolution would convert back and forth (a quarter more time in all: pytorch#59168). 3D kernels of one
    voxel stay: their gradients come in the usual order, and DDP would copy them at each step.
    """
    network.to(device)
    instance_norms = any(isinstance(module, torch.nn.InstanceNorm3d) for module in network.modules())
    if device.type == "cuda" and instance_norms and not _doubtful(torch.backends.cudnn.version()):
        return torch.contiguous_format
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d) and max(module.kernel_size) > 1:
            module.to(memory_format=torch.channels_last_3d)
        if isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return torch.channels_last_3d


def doubts(device):
    """Messages about the libraries below torch."""
    version = torch.backends.cudnn.version() if device.type == "cuda" else None
    if _doubtful(version):
        yield (
            f"cuDNN {version}: its 3D convolutions in half precision are wrong in large volumes (pytorch#163539), and torch 2.9 and later "
            "leave most of them to code that is 4 times slower (pytorch#166122): pip install 'nvidia-cudnn-cu12>=9.15', or -cu13"
        )


def _doubtful(version):
    """cuDNN 9.8 to 9.14; torch uses their 3D convolutions of contiguous tensors before 2.9 only."""
    return version is not None and 90800 <= version < 91500


def frozen_prefixes(config, network, epoch):
    """Parameter prefixes that are not trained in an epoch (from 0)."""
    strategy = config.finetune.strategy
    if strategy == "gradual" and epoch + 1 < config.finetune.unfreeze_epoch:
        return tuple(network.encoder_prefixes)
    if strategy == "stagewise":
        late = epoch + 1 - config.finetune.unfreeze_epoch
        trained = 1 if late < 0 else 2 + late // config.finetune.unfreeze_every  # stages, from the head down
        return tuple(prefix for stage in network.stages[:-trained] for prefix in stage)
    if strategy == "head_only":
        head = tuple(network.head_prefixes)
        return tuple(prefix for stage in network.stages for prefix in stage if not prefix.startswith(head))
    return ()


def freeze(network, prefixes):
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))


def set_train_mode(network, frozen):
    """Training mode, except for what is frozen: its running statistics must not move, and it drops nothing."""
    network.train()
    for name, module in network.named_modules():
        if frozen and f"{name}.".startswith(frozen):
            module.eval()


def wrap(network, compiled, device):
    """The network as it is called in training; `network` itself keeps its parameter names free of prefixes."""
    forward = network
    if compiled:  # within DDP, whose own splitting of compiled graphs does not know checkpointed activations
        torch.compiler.reset()  # what other folds and other frozen parts have left counts against a limit, and then nothing is compiled
        forward = torch.compile(network)
    if dist.world_size() == 1:
        return forward
    from torch.nn.parallel import DistributedDataParallel

    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(forward, device_ids=ids, gradient_as_bucket_view=True, process_group=dist.group())


def current_lr(config, step, steps_per_epoch, history):
    """The learning rate of a step, before the stages' factors."""
    optim = config.optim
    lr = schedule.learning_rate(
        step,
        peak=optim.lr,
        total_steps=config.train.epochs * steps_per_epoch,
        warmup_steps=round(optim.warmup_epochs * steps_per_epoch),
        kind="cosine" if optim.schedule == "cosine" else "constant",
        stretch=optim.cosine_stretch,
        minimum=optim.min_lr,
    )
    if optim.schedule == "plateau":
        val_losses = [row["val_loss"] for row in history]
        factor = schedule.plateau_factor(
            val_losses, factor=optim.plateau_factor, patience=optim.plateau_patience, min_delta=config.train.min_delta
        )
        lr = max(lr * factor, optim.min_lr)
    return lr


def set_rates(optimizer, lr, weight_decay):
    """Give each group of build_optimizer() its share of the step's rates."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        group["weight_decay"] = weight_decay * group["decay_scale"]


def current_weight_decay(optim, step, last_step):
    """The weight decay of a step, of the parameters that are decayed."""
    if optim.weight_decay_end is None:
        return optim.weight_decay
    return schedule.half_cosine(step, optim.weight_decay, optim.weight_decay_end, last_step)
