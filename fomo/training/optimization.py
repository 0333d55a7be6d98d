"""What a step is made with: precision, memory layout, optimizer, average; what is frozen; the rates of a step."""

import copy
import functools

import torch
from torch import nn

from .. import nets, schedule
from ..config import UserError
from ..nets import norm
from ..runtime import dist
from . import graphs, optimizers

_BF16_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}  # as Linux calls them


def build_optimizer(config, network, device):
    """AdamW or SGD with two groups per stage: norms and biases are not decayed; earlier stages have lower rates."""
    optim, stages, members, groups = config.optim, network.stages, {}, []
    for name, parameter in network.named_parameters():
        depth = next(i for i, prefixes in enumerate(stages) if name.startswith(prefixes))
        members.setdefault((depth, parameter.ndim > 1), []).append(parameter)
    for (depth, decayed), parameters in sorted(members.items()):
        lr_scale, decay = config.finetune.layer_decay ** (len(stages) - 1 - depth), optim.weight_decay * decayed
        scales = {"lr_scale": lr_scale, "decay_scale": float(decayed)}
        groups.append({"params": parameters, **scales, "weight_decay": decay})
    options = {"momentum": optim.momentum} if optim.name == "sgd" else {"betas": optim.betas}
    if device.type == "cuda":
        kind = functools.partial(torch.optim.SGD, nesterov=True) if optim.name == "sgd" else torch.optim.AdamW
        return kind(groups, lr=optim.lr, fused=True, **options)
    return (optimizers.sgd if optim.name == "sgd" else optimizers.adamw)(groups, lr=optim.lr, **options)


class Average:
    """`module` is the exponential moving average of a network's weights and buffers; the first update copies them.

    The AveragedModel of torch has its count in a tensor, so that each step would wait for the GPU.
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
    """The meaning of `train.amp` on a device: off, bf16 or fp16."""
    if amp != "auto":
        return amp
    if device.type == "cpu":
        return "bf16" if _cpu_multiplies_bf16() else "off"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@functools.cache
def _cpu_multiplies_bf16():
    """Whether the CPU has instructions for bfloat16, and a convolution with them is right: steps take half the time.

    Without the instructions torch emulates them, many times slower than float32.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:  # not Linux
        return False
    return not _BF16_INSTRUCTIONS.isdisjoint(flags) and _convolves_alike(torch.bfloat16)


def _convolves_alike(dtype):
    """Whether output and gradients of a convolution in `dtype` are within 2% of those in float32."""
    generator, found = torch.Generator().manual_seed(0), []
    image, kernel = (torch.randn(size, generator=generator) for size in ((2, 8, 8, 8, 8), (8, 8, 3, 3, 3)))
    for kind in (torch.float32, dtype):
        inputs = [tensor.to(kind, copy=True).requires_grad_() for tensor in (image, kernel)]
        output = torch.nn.functional.conv3d(*inputs, padding=1)
        gradients = torch.autograd.grad(output.float().square().sum(), inputs)
        found.append([tensor.detach().float() for tensor in (output, *gradients)])
    return all((own - other).norm() < 0.02 * own.norm() for own, other in zip(*found))


def precision(amp, device):
    """(autocast context, gradient scaler) of `train.amp` on a device; the scaler does nothing unless it is fp16.

    Where amp is off, a GPU convolves in float32, which torch would round to 10 bits (TF32).
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
    """Move a network to a device, its convolutions in the fastest memory format; returns that format, for images.

    It is channels last, except on a GPU for instance norms of torch's own: their outputs are contiguous, and each next
    convolution would convert them back and forth (a quarter more time in all: pytorch#59168). 3D kernels of one voxel
    stay as they are: their gradients come in the usual order, and DDP would copy them at each step.
    """
    network.to(device)
    if device.type == "cuda" and _has_instance_norms(network) and norm.problem(device) is not None:
        if not _doubtful(torch.backends.cudnn.version()):
            return torch.contiguous_format
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)) and max(module.kernel_size) > 1:
            module.to(memory_format=torch.channels_last_3d)
        if isinstance(module, nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    return torch.channels_last_3d


def _has_instance_norms(network):
    return any(isinstance(module, nn.InstanceNorm3d) for module in network.modules())


def doubts(device, *networks):
    """Messages about the libraries below torch, and about how the ranks were started; networks: names of those used."""
    if dist.shares_gpu():
        wanted = (
            "start one process per GPU (torchrun --nproc_per_node), unless cv.parallel=folds gives each its own work"
        )
        yield f"ranks share a GPU: they do not get faster by that, and gradients go over the CPU (gloo); {wanted}"
    normed = any(nets.NETWORKS[name].instance_norms for name in networks)
    if device.type == "cuda" and normed and (why := norm.problem(device)) is not None:
        yield f"instance norms are torch's own, and steps take half as long again: Triton does not run here ({why})"
    version = torch.backends.cudnn.version()
    if device.type == "cuda" and _doubtful(version):
        slow = "torch 2.9 and later leave most of them to code that is 4 times slower (pytorch#166122)"
        wrong = f"cuDNN {version}: its 3D convolutions in half precision are wrong in large volumes (pytorch#163539)"
        yield f"{wrong}, and {slow}: pip install 'nvidia-cudnn-cu12>=9.15', or -cu13"


def _doubtful(version):
    """cuDNN 9.8 to 9.14; only a torch before 2.9 uses their 3D convolutions of contiguous tensors."""
    return version is not None and 90800 <= version < 91500


def frozen_prefixes(config, network, epoch):
    """Prefixes of the parameters that are not trained in an epoch, from 0."""
    frozen, always = _frozen_by_strategy(config, network, epoch), always_frozen(config, network)
    return (*frozen, *(prefix for prefix in always if not prefix.startswith(frozen)))


def always_frozen(config, network):
    """Prefixes of the first finetune.frozen_stages of the encoder; UserError where it has fewer stages."""
    wanted, prefixes = config.finetune.frozen_stages, tuple(network.encoder_prefixes)
    stages = [stage for stage in network.stages if all(prefix.startswith(prefixes) for prefix in stage)]
    if wanted > len(stages):
        has = f"at most {len(stages)}, the encoder stages of model.name={config.model.name}"
        raise UserError(f"finetune.frozen_stages: got {wanted}, wanted {has}")
    return tuple(prefix for stage in stages[:wanted] for prefix in stage)


def _frozen_by_strategy(config, network, epoch):
    finetune, stages = config.finetune, network.stages
    late = finetune.strategy in ("gradual", "decoder_first") and epoch + 1 < finetune.unfreeze_epoch
    if late or finetune.strategy == "frozen_encoder":
        return tuple(network.encoder_prefixes)
    if finetune.strategy == "stagewise":
        late = epoch + 1 - finetune.unfreeze_epoch
        trained = 1 if late < 0 else 2 + late // finetune.unfreeze_every  # stages, from the head down
        return tuple(prefix for stage in stages[:-trained] for prefix in stage)
    if finetune.strategy == "head_only":
        head = tuple(network.head_prefixes)
        return tuple(prefix for stage in stages for prefix in stage if not prefix.startswith(head))
    return ()


def freeze(network, prefixes):
    """Set training mode, and freeze these parts: no gradients, no dropout, and running statistics do not move."""
    network.train()
    for name, module in network.named_modules():
        if f"{name}.".startswith(prefixes):
            module.eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))


def wrap(network, train, plan, device):
    """The network as training calls it; the parameters of `network` itself keep their names.

    train: the section of the config. plan: the loader.Plan.
    """
    if train.cuda_graph and device.type == "cuda" and dist.world_size() == 1:
        # a graph writes each pass's gradients to the same place; checkpoints read the state of random numbers
        if plan.micro_batches == 1 and not train.checkpoint_activations:
            return graphs.Graphed(network)
    if dist.world_size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True, process_group=dist.group())


def current_lr(config, step, clock, history):
    """The learning rate of a step, before the factors of the stages; clock: a Clock that was read at this step.

    decoder_first: while the encoder is frozen one warm-up; then a schedule of its own, with the second one.
    """
    optim, min_delta = config.optim, config.train.min_delta
    steps = {"total_steps": clock.steps(step), "warmup_steps": clock.warmup(step)}
    if config.finetune.strategy == "decoder_first":
        alone = clock.steps_of_epochs(config.finetune.unfreeze_epoch - 1)
        if step < alone:
            shape = {"peak": optim.lr, "minimum": optim.min_lr}
            return schedule.learning_rate(step, **shape, total_steps=alone, warmup_steps=alone)
        step, steps["total_steps"] = step - alone, max(1, steps["total_steps"] - alone)
    shape = {"kind": "cosine" if optim.schedule == "cosine" else "constant", "stretch": optim.cosine_stretch}
    lr = schedule.learning_rate(step, peak=optim.lr, minimum=optim.min_lr, **steps, **shape)
    if optim.schedule == "plateau":
        losses = [row["val_loss"] for row in history]
        factor = schedule.plateau_factor(losses, optim.plateau_factor, optim.plateau_patience, min_delta=min_delta)
        lr = max(lr * factor, optim.min_lr)
    return lr


def current_weight_decay(optim, step, last_step):
    """The weight decay of a step, for the parameters that are decayed."""
    if optim.weight_decay_end is None:
        return optim.weight_decay
    return schedule.half_cosine(step, optim.weight_decay, optim.weight_decay_end, last_step)


def set_rates(optimizer, optim, lr, step, last_step):
    """Give each group of build_optimizer() its share of the learning rate and the weight decay of a step."""
    weight_decay = current_weight_decay(optim, step, last_step)
    for group in optimizer.param_groups:
        group.update(lr=lr * group["lr_scale"], weight_decay=weight_decay * group["decay_scale"])
