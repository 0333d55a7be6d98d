"""Student and teacher of DINO (Caron et al. 2021) around any whole-case network.

Each is backbone -> features (B, F) -> projection head -> (B, out_dim). The teacher is the student's moving average and
is never trained; the centre is the moving average of the teacher's outputs. One state dict holds them all, so that a
run continues exactly. One step is not in the paper: running statistics of the teacher's features standardise the
features in front of the head. Behind instance norms the mean over all voxels is nearly the same for all inputs, and so
would be the answers (teacher_std of UNet-B's first steps on phantoms: 0.05; with this step 0.97).
Source of head and update: github.com/facebookresearch/dino, vision_transformer.py (DINOHead) and main_dino.py.
"""

import copy

import torch
import torch.nn.functional as F
from torch import nn

_SMALL = 1e-3  # lowest standard deviation of a feature


class Dino(nn.Module):
    """[global views, local views], two batches of equal views or one -> (student, teacher, features, centre).

    backbone: a whole-case network whose last linear layer is its output; that is taken off, and it gives features.
    hidden, bottleneck, out_dim: sizes of the projection head.

    The global views are (G * B, C, X, Y, Z), with view v of sample b at v * B + b; local ones have another size.
    Returns the student's outputs (V * B, out_dim) for all views; the teacher's outputs (G * B, out_dim) and features
    (G * B, F), both without gradient; and the centre (out_dim,).
    """

    fixed_prefixes = ("teacher.",)
    late_prefixes = ("student.head.last.",)

    def __init__(self, backbone, out_dim, hidden=2048, bottleneck=256):
        super().__init__()
        kept = [stage for stage in backbone.stages if not set(stage) <= set(backbone.head_prefixes)]
        features = _take_head(backbone)
        self.student = nn.ModuleDict({"backbone": backbone, "head": Head(features, out_dim, hidden, bottleneck)})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(out_dim))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("feature_std", torch.ones(features))
        self.stem = f"student.backbone.{backbone.stem}"
        stages = [tuple(f"student.backbone.{prefix}" for prefix in stage) for stage in kept]
        readout = tuple(f"student.backbone.{prefix}" for prefix in backbone.head_prefixes)  # what 2D heads do before it
        self.stages = (*stages, ("student.head.", "teacher.", *readout))
        self.encoder_prefixes = ("student.backbone.",)
        self.head_prefixes = ("student.head.",)
        self.new_prefixes = self.unused_prefixes = ()

    @property
    def trunk(self):
        """The part that pretrained weights are loaded into; `follow(0)` then copies them to the teacher."""
        return self.student["backbone"]

    def forward(self, batches):
        student = torch.cat([self._project(self.student, self.student["backbone"](views)) for views in batches])
        with torch.no_grad():
            features = self.teacher["backbone"](batches[0])
            teacher = self._project(self.teacher, features)
        return student, teacher, features, self.centre.clone()

    def _project(self, network, features):
        return network["head"]((features - self.feature_mean) / self.feature_std)

    @torch.no_grad()
    def follow(self, momentum):
        """teacher = momentum * teacher + (1 - momentum) * student; 0 copies."""
        for theirs, own in zip(self.teacher.state_dict().values(), self.student.state_dict().values(), strict=True):
            if theirs.is_floating_point():
                theirs.lerp_(own.to(theirs.dtype), 1 - momentum)
            else:
                theirs.copy_(own)

    @torch.no_grad()
    def move_centre(self, mean, momentum):
        """mean: (out_dim,), of the teacher's outputs over a whole step, the same on all ranks."""
        self.centre.lerp_(mean.to(self.centre), 1 - momentum)

    @torch.no_grad()
    def move_statistics(self, mean, square, momentum):
        """mean, square: (F,) float64, means of the teacher's features and of their squares, as for `move_centre`."""
        std = (square - mean.square()).clamp(min=_SMALL**2).sqrt()
        self.feature_mean.lerp_(mean.to(self.feature_mean), 1 - momentum)
        self.feature_std.lerp_(std.to(self.feature_std), 1 - momentum)


class Head(nn.Module):
    """(B, F) -> (B, out_dim): three layers with GELU make a vector of length 1; returns its cosines with directions."""

    def __init__(self, features, out_dim, hidden, bottleneck):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(features, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last = nn.Linear(bottleneck, out_dim, bias=False)

    def forward(self, x):  # rows of length 1: weight normalisation with a fixed gain
        return F.linear(F.normalize(self.mlp(x), dim=-1), F.normalize(self.last.weight, dim=1))


def _take_head(network):
    """Replace the linear output layer of a whole-case network by the identity; returns the layer's number of inputs."""
    prefixes = tuple(network.head_prefixes)
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    found = [name for name in linear if f"{name}.".startswith(prefixes)]
    if not found:
        raise ValueError(f"backbone: got no linear layer below {', '.join(prefixes)}, wanted its output")
    parent, _, name = found[-1].rpartition(".")
    features = network.get_submodule(found[-1]).in_features
    setattr(network.get_submodule(parent), name, nn.Identity())
    return features
