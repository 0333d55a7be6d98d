"""What the rest of the house must know of a network before it is built. Nothing here imports torch."""

import importlib
from dataclasses import dataclass, field

from . import checks
from .checks import MODES, WHOLE_CASE

# the value of each option of `build` that leaves a network as it is
PLAIN = dict(
    deep_supervision=False,
    skips=True,
    skip_pooling="average",
    dropout=0.0,
    channel_dropout=0.0,
    attention="none",
    multiscale=False,
    pooling="mean",
    head="linear",
    fusion="early",
)
_PREFIXES = ("head_prefixes", "encoder_prefixes", "new_prefixes", "unused_prefixes")
_ATTRIBUTES = ("stem", *_PREFIXES, "stages", "saliency_layer")
_HALVED = {2: "once", 4: "two times", 8: "three times", 16: "four times", 32: "five times"}


@dataclass(frozen=True)
class Network:
    """What a network declares. A declaration that is missing or makes no sense is an error here, never a guess.

    The methods `..._problem` return what is wanted instead, as text for a config error, or None where all is well.
    networks: {name: Network} of all, for what another one would do.
    """

    source: tuple[str, str] | type  # a file of this folder and a class in it, imported when first built; or the class
    sees: str  # "volume" or "slice"
    stride: int  # voxels of the input per voxel of the bottleneck, along each axis
    modes: tuple[str, ...]  # of those of `build`
    head: str | None  # its linear output layer in the modes with one output per case; None if it has none of these
    one_voxel: bool  # whether the bottleneck may be a single voxel
    mixes_batch: bool  # whether an output depends on the other samples of the forward pass, in evaluation too
    options: tuple[str, ...] = ()  # of those of `build`
    best_head: str = "linear"  # the one that model.head=auto is
    recomputes: bool = False  # whether it has `checkpoint_activations`
    even_width: bool = False  # whether its width must be even
    instance_norms: bool = False  # whether it has some, which are slow on a GPU without Triton
    arguments: dict = field(default_factory=dict)  # further ones of the class
    lacks: str = "it has no such output"  # why it has not all modes, for errors

    def __post_init__(self):
        checks.choice("sees", self.sees, ("volume", "slice"))
        checks.counts(stride=self.stride)
        for mode in self.modes:
            checks.choice("modes", mode, MODES)
        for option in self.options:
            checks.choice("options", option, PLAIN)
        if (self.head is None) != set(self.modes).isdisjoint(WHOLE_CASE):
            wanted = "the name of the linear output layer, or None without a mode of one output per case"
            raise ValueError(f"head: got {self.head!r} for modes {', '.join(self.modes)}, wanted {wanted}")

    def build(self, in_channels, out_channels, mode, **options):
        """The network. Raises ValueError where it is not as declared, here and by its attributes, see `nets`."""
        source = self.source
        if not isinstance(source, type):
            source = getattr(importlib.import_module(f".{source[0]}", __package__), source[1])
        network = source(in_channels, out_channels, mode=mode, **self.arguments | options)
        for problem in self._problems(network, out_channels, mode):
            raise ValueError(f"{source.__name__} is not as it declares: {problem}; see fomo/nets/__init__.py")
        return network

    def _problems(self, network, out_channels, mode):
        lacking = [name for name in _ATTRIBUTES if not hasattr(network, name)]
        if lacking:
            yield f"it has no {', '.join(lacking)}"
            return
        tuples = {name: getattr(network, name) for name in _PREFIXES}
        tuples |= {f"stages[{i}]": stage for i, stage in enumerate(network.stages)}
        for name in (name for name, value in tuples.items() if not isinstance(value, tuple)):
            yield f"{name}: got {tuples[name]!r}, wanted a tuple of prefixes"
            return
        names = [name for name, _ in network.named_parameters()]
        yield from _misplaced(network, names)
        if mode in WHOLE_CASE:
            yield from self._head_problems(network, out_channels)
        if network.stem not in names:
            yield f"stem: got {network.stem!r}, wanted the name of a parameter"
        if network.saliency_layer not in dict(network.named_modules()):
            yield f"saliency_layer: got {network.saliency_layer!r}, wanted the name of a module"
        if self.instance_norms != any(type(module).__name__ == "InstanceNorm3d" for module in network.modules()):
            yield f"instance_norms: got {self.instance_norms}, and it has {'none' if self.instance_norms else 'some'}"
        if self.recomputes and not hasattr(network, "checkpoint_activations"):
            yield "it recomputes, and has no checkpoint_activations"

    def _head_problems(self, network, out_channels):
        weight = dict(network.named_parameters()).get(f"{self.head}.weight")
        if weight is None or len(weight) != out_channels or not f"{self.head}.".startswith(network.head_prefixes):
            wanted = f"a layer in head_prefixes whose weight has {out_channels} rows, one per output"
            yield f"head: got {self.head!r}, wanted {wanted}"
        if not hasattr(network, "features"):
            yield "it has no method `features`"

    def siblings(self, mode, networks):
        """Names of the networks of the same class that have `mode`."""
        return [name for name, other in networks.items() if other.source == self.source and mode in other.modes]

    def mode_problem(self, mode, asked, networks):
        """asked: what asks for the mode, for example "task.type=regression"."""
        if mode in self.modes:
            return None
        if self.sees == "slice" and mode == "segmentation":
            return f"a U-Net for {asked}: a 2D network has one output per slice"
        return f"{' or '.join(self.siblings(mode, networks)) or 'another network'} for {asked} ({self.lacks})"

    def patch_problem(self, name, patch):
        smallest = self.stride if self.one_voxel else 2 * self.stride
        if self.sees == "slice":
            if patch[2] == 1 and min(patch[:2]) >= smallest:
                return None
            return f"[x, y, 1] with x and y of at least {smallest} for model.name={name}: it sees slices"
        if any(size < self.stride or size % self.stride for size in patch):
            return f"multiples of {self.stride} for model.name={name} (it {self.narrows})"
        if max(patch) < smallest:
            return f"at least one axis of {smallest}: one voxel at the bottleneck cannot be normalised"
        return None

    def halved(self, patch):
        """A patch that it takes, too, with about half the length along each axis that is not short already."""
        unit = max(16, self.stride) if self.sees == "volume" else 16
        return tuple(size if size < 4 * unit else size // (2 * unit) * unit for size in patch)

    def no_larger(self, patch, shape):
        """The patch, along no axis longer than it takes to hold `shape`; it stays as it is where slices are seen."""
        if self.sees == "slice":
            return patch
        smallest = self.stride if self.one_voxel else 2 * self.stride
        sizes = tuple(min(size, -(-length // self.stride) * self.stride) for size, length in zip(patch, shape))
        return sizes if max(sizes) >= smallest else tuple(min(size, smallest) for size in patch)

    def holding(self, shape):
        """The smallest patch that it takes and that holds volumes of this shape; (x, y, 1) where it sees slices."""
        axes = tuple(range(3 - len(self.flat_axes)))
        sizes = [-(-length // self.stride) * self.stride if axis in axes else 1 for axis, length in enumerate(shape)]
        if not self.one_voxel and max(sizes) < 2 * self.stride:
            longest = max(axes, key=lambda axis: shape[axis])
            sizes[longest] = 2 * self.stride
        return tuple(sizes)

    @property
    def flat_axes(self):
        """Axes of the input along which it sees one voxel."""
        return (2,) if self.sees == "slice" else ()

    @property
    def narrows(self):
        """How it comes from the input to the bottleneck, in words."""
        times = _HALVED.get(self.stride)
        return f"halves each axis {times}" if times else f"divides each axis by {self.stride}"

    def width_problem(self, name, width):
        """width: None for the network's own."""
        return f"an even number for model.name={name}" if self.even_width and (width or 0) % 2 else None

    def windows_problem(self, name, windows):
        """windows: how many go through the network in one forward pass of an evaluation."""
        if self.mixes_batch and windows != 1:
            return f"1 for model.name={name}: it normalises by all windows of a pass together"
        return None

    def refuses(self, option, value):
        """Whether it does not take this value of an option."""
        return value != PLAIN[option] and option not in self.options

    def option_problems(self, name, values, networks):
        """(option, what is wanted) for each of `values`, {option: value}, that this network does not take."""
        for option, value in values.items():
            if self.refuses(option, value):
                plain = str(PLAIN[option]).lower().removesuffix(".0")  # as YAML writes it
                others = ", ".join(other for other, network in networks.items() if option in network.options)
                yield option, f"{plain} for model.name={name}: of {others} only"


def _misplaced(network, names):
    for kind, prefix in [("head", network.head_prefixes), *(("encoder", p) for p in network.encoder_prefixes)]:
        if not any(name.startswith(prefix) for name in names):
            yield f"{kind}_prefixes: no parameter begins with {prefix!r}"
    for name in names:
        stages = sum(name.startswith(stage) for stage in network.stages)
        if stages != 1:
            yield f"stages: {name} is in {stages} of them, wanted one"
    for name in names:
        if name.startswith(network.head_prefixes) != name.startswith(network.stages[-1]):
            yield f"head_prefixes, stages: {name} is in one of head and last stage, wanted the head as last stage"
