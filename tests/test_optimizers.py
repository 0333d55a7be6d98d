"""The optimizers against those of torch.optim, bit for bit, and their states in either direction."""

import copy
import io

import pytest
import torch

from fomo.training import optimizers

KINDS = {
    "adamw": ({"betas": (0.9, 0.98)}, optimizers.adamw, torch.optim.AdamW, {}),
    "sgd": ({"momentum": 0.99}, optimizers.sgd, torch.optim.SGD, {"nesterov": True}),
}


def network():
    """With channels last, biases, and a part that may be frozen."""
    torch.manual_seed(0)
    made = torch.nn.Sequential(torch.nn.Conv3d(2, 4, 3), torch.nn.InstanceNorm3d(4, affine=True), torch.nn.Linear(6, 3))
    return made.to(memory_format=torch.channels_last_3d)


def groups(module):
    every = list(module.parameters())
    decayed, rest = [p for p in every if p.ndim > 1], [p for p in every if p.ndim <= 1]
    return [{"params": decayed, "weight_decay": 0.1, "lr_scale": 0.5}, {"params": rest, "weight_decay": 0.0}]


def ours(kind, module):
    options, make, _, _ = KINDS[kind]
    return make(groups(module), lr=1e-2, **options)


def theirs(kind, module):
    options, _, make, more = KINDS[kind]
    return make(groups(module), lr=1e-2, **options, **more, fused=False)


def go(module, optimizer, steps):
    """Steps of changing rates; the convolution is frozen at first, and its gradient is None."""
    for step in steps:
        module[0].requires_grad_(step > 1)
        for group in optimizer.param_groups:
            group.update(lr=1e-2 / (1 + step) * group.get("lr_scale", 1))
        image = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        module(image).square().mean().backward()
        optimizer.step()


def assert_same(one, other):
    for pair in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(*(tensor.detach().contiguous().view(torch.int32) for tensor in pair))


def saved(optimizer):
    """Its state as it comes back from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_torchs_to_the_bit(kind):
    one = network()
    other = copy.deepcopy(one)
    pairs = (one, ours(kind, one)), (other, theirs(kind, other))
    for step in range(12):
        for module, optimizer in pairs:
            go(module, optimizer, [step])
        assert_same(one, other)
    states = [optimizer.state_dict()["state"] for _, optimizer in pairs]
    assert states[0].keys() == states[1].keys()
    for number, state in states[1].items():
        assert states[0][number].keys() == state.keys()
        for name, tensor in state.items():
            own = states[0][number][name]
            assert torch.equal(own, tensor) and own.dtype == tensor.dtype and own.stride() == tensor.stride()


@pytest.mark.parametrize("first, then", [(ours, ours), (theirs, ours), (ours, theirs)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_to_the_bit_also_in_the_other_optimizer(kind, first, then):
    whole, part = network(), network()
    go(whole, theirs(kind, whole), range(8))
    optimizer = first(kind, part)
    go(part, optimizer, range(4))
    resumed = copy.deepcopy(part)
    optimizer_after = then(kind, resumed)
    optimizer_after.load_state_dict(saved(optimizer))
    go(resumed, optimizer_after, range(4, 8))
    assert_same(whole, resumed)


def test_a_state_of_other_groups_is_refused():
    module = network()
    with pytest.raises(ValueError, match=r"got groups of \[2\] parameters, wanted \[2, 4\]"):
        one = torch.optim.AdamW(groups(module)[:1])
        ours("adamw", module).load_state_dict(one.state_dict())
