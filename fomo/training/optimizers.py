"""AdamW, and SGD with Nesterov's momentum, to the bit as torch.optim moves parameters on a CPU, with the same states.

The optimizers of torch import torch._dynamo when they are made, which takes longer than all else before a first step.
On a GPU it is theirs that are used: they have a kernel for all parameters together.
"""

import torch


class Optimizer:
    """Moves the parameters of `groups`, [{"params": parameters, option: value}], by their gradients.

    move: function (parameter, gradient, its state, options of its group), below. options: those that a group lacks.
    """

    def __init__(self, groups, move, **options):
        self.param_groups, self.move = [{**options, **group} for group in groups], move
        self.state = {}  # {parameter: {name: tensor}}, of those that have been moved

    def zero_grad(self, set_to_none=True):
        """Forget the gradients; set_to_none: there is no other way, and GradScaler and others say it."""
        for parameter in self._parameters():
            parameter.grad = None

    @torch.no_grad()
    def step(self):
        """Move each parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.move(parameter, parameter.grad, self.state.setdefault(parameter, {}), group)

    def state_dict(self):
        """As torch.optim's: parameters are numbers, in the order of the groups."""
        numbers = {parameter: number for number, parameter in enumerate(self._parameters())}
        groups = [{**group, "params": [numbers[one] for one in group["params"]]} for group in self.param_groups]
        return {"state": {numbers[one]: state for one, state in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, saved):
        """Go on from a state_dict, also from one of torch.optim's."""
        sizes, wanted = ([len(group["params"]) for group in own] for own in (saved["param_groups"], self.param_groups))
        if sizes != wanted:
            raise ValueError(f"param_groups: got groups of {sizes} parameters, wanted {wanted}")
        for group, old in zip(self.param_groups, saved["param_groups"]):
            group.update(old, params=group["params"])
        parameters = self._parameters()
        self.state = {parameters[number]: dict(state) for number, state in saved["state"].items()}

    def _parameters(self):
        return [parameter for group in self.param_groups for parameter in group["params"]]


def adamw(groups, lr, betas):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019)."""
    return Optimizer(groups, _adamw, lr=lr, betas=betas, eps=1e-8)


def sgd(groups, lr, momentum):
    """SGD with Nesterov's momentum; the decay is part of the gradient."""
    return Optimizer(groups, _nesterov, lr=lr, momentum=momentum, dampening=0, nesterov=True)


def _adamw(parameter, gradient, state, group):
    if not state:
        state.update({name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}, step=torch.tensor(0.0))
    (beta1, beta2), lr, mean, square = group["betas"], group["lr"], state["exp_avg"], state["exp_avg_sq"]
    state["step"] += 1
    step = state["step"].item()
    parameter.mul_(1 - lr * group["weight_decay"])
    mean.lerp_(gradient, 1 - beta1)
    square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    deviation = (square.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    parameter.addcdiv_(mean, deviation, value=-(lr / (1 - beta1**step)))


def _nesterov(parameter, gradient, state, group):
    if group["weight_decay"]:
        gradient = gradient.add(parameter, alpha=group["weight_decay"])
    if state:
        state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
    else:
        state["momentum_buffer"] = gradient.clone()
    parameter.add_(gradient.add(state["momentum_buffer"], alpha=group["momentum"]), alpha=-group["lr"])
