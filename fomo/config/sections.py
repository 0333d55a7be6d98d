"""Every key of every section, with its default, its help and its limits in one place.

`--help`, the README's list and the checks are all generated from these fields.
"""

import dataclasses
from dataclasses import dataclass


def key(default, help, *, choices=None, low=None, high=None, above=None, path=False, identity=True):
    """A field of a section.

    choices: the allowed values (of each element, for a tuple). low, high: inclusive limits; above: exclusive lower
    limit. path: relative values resolve against the file that names them. identity=False: the value does not change
    what a run computes, so it may differ when an existing run folder is continued.
    """
    metadata = dict(
        help=help, choices=choices, low=low, high=high, above=above, path=path, identity=identity
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Task:
    type: str = key("classification", "what is learned", choices=("classification", "segmentation", "regression"))
    classes: int = key(2, "number of classes, background included (classification, segmentation)", low=2)
    loss: str = key(
        "auto",
        "auto: cross_entropy, dice_ce or huber, by task",
        choices=("auto", "cross_entropy", "focal", "dice_ce", "huber", "mse"),
    )
    class_weights: str = key(
        "none", "weights of the classes in the loss, from the training cases", choices=("none", "inverse_frequency")
    )
    label_scaling: str = key(
        "standard", "regression targets are standardised with the training fold's mean and deviation", choices=("standard", "none")
    )


@dataclass(frozen=True)
class Data:
    source: str = key("phantom", "where the cases come from", choices=("fomo1", "fomo2", "fomo3", "phantom"))
    root: str | None = key(None, "folder of the data set (phantom: where it is generated)", path=True)
    cache: str | None = key(None, "folder of the preprocessed cases (none: <output>/cache)", path=True, identity=False)
    channels: tuple[str, ...] = key((), "channel names in network order; 'a|b': the one that the case has")
    patch: tuple[int, int, int] = key((96, 96, 96), "voxels (x, y, z) that the network sees at once")
    spacing_mm: tuple[float, float, float] | None = key(
        (1.0, 1.0, 1.0), "resample to this voxel size (none: keep each case's own)", above=0.0
    )
    crop: bool = key(True, "crop to the box of non-zero voxels")
    normalize: str = key("zscore", "intensities, per channel", choices=("zscore", "percentile", "window", "none"))
    percentiles: tuple[float, float] = key((0.5, 99.5), "normalize=percentile: these map to 0 and 1", low=0.0, high=100.0)
    window: tuple[float, float] = key((-1000.0, 400.0), "normalize=window: these intensities map to 0 and 1 (CT: HU)")
    cache_dtype: str = key(
        "float32",
        "number type of the cached images; float16 halves disk and memory and moves values by at most 0.05%",
        choices=("float32", "float16"),
    )
    prepare_workers: int = key(2, "processes that preprocess (0: this one)", low=0, identity=False)
    foreground_fraction: float = key(0.5, "share of training patches centred on foreground (segmentation)", low=0.0, high=1.0)
    crop_position: str = key("random", "training patch of a whole-case task", choices=("random", "center"))
    phantom_cases: int = key(60, "number of phantom cases", low=4)
    phantom_size: int = key(48, "phantom volume: voxels along the longest axis", low=16)
    groups: str | None = key(None, "CSV with the columns subject,group (cv.kind=leave_one_group_out)", path=True)


@dataclass(frozen=True)
class Model:
    name: str = key("unet_b", "network", choices=("unet_b", "unet_xl", "unet_b_lw_dec", "unet_xl_lw_dec"))
    width: int | None = key(None, "channels of the first level (none: the network's own, 32 or 64)", low=1)
    deep_supervision: bool = key(False, "segmentation: losses on the coarser levels as well")


@dataclass(frozen=True)
class Weights:
    path: str | None = key(None, "pretrained checkpoint to start from (none: random)", path=True)
    stem: str = key("repeat", "rule for a first layer with other input channels", choices=("repeat", "mean", "reinit"))
    trust: bool = key(False, "unpickle a file that holds more than tensors and plain data; it can run code")


@dataclass(frozen=True)
class Finetune:
    strategy: str = key("full", "what is trained", choices=("full", "gradual", "head_only"))
    unfreeze_epoch: int = key(10, "gradual: first epoch (from 1) in which the encoder is trained", low=1)
    layer_decay: float = key(1.0, "learning-rate factor per stage away from the head", above=0.0, high=1.0)


@dataclass(frozen=True)
class Optim:
    lr: float = key(1e-4, "peak learning rate of AdamW", above=0.0)
    weight_decay: float = key(3e-5, "decoupled weight decay; not on norms and biases", low=0.0)
    betas: tuple[float, float] = key((0.9, 0.999), "AdamW's averaging factors", low=0.0, high=1.0)
    schedule: str = key("cosine", "learning rate over the steps", choices=("cosine", "plateau", "constant"))
    warmup_epochs: float = key(0.0, "linear warm-up", low=0.0)
    cosine_stretch: float = key(1.15, "the cosine reaches min_lr after this multiple of the epochs", low=1.0)
    min_lr: float = key(1e-9, "lowest learning rate", low=0.0)
    plateau_factor: float = key(0.5, "plateau: factor after plateau_patience epochs without a better val_loss", above=0.0, high=1.0)
    plateau_patience: int = key(5, "plateau: epochs to wait", low=1)
    clip_norm: float | None = key(None, "largest gradient norm (none: no clipping)", above=0.0)


@dataclass(frozen=True)
class Train:
    epochs: int = key(100, "epochs of steps_per_epoch steps", low=1)
    batch_size: int = key(2, "samples per optimizer step, over all ranks", low=1)
    micro_batch: int | None = key(None, "samples per forward pass on one rank (none: all); less accumulates gradients", low=1)
    steps_per_epoch: int | None = key(None, "optimizer steps per epoch (none: as many as see every case once)", low=1)
    amp: str = key(
        "auto", "auto: bf16 where the GPU has it, else fp16; off on the CPU", choices=("auto", "bf16", "fp16", "off")
    )
    compile: bool = key(False, "torch.compile the network")
    workers: int = key(2, "loader processes per rank (0: the training process)", low=0, identity=False)
    balanced: bool = key(False, "classification: draw the classes equally often")
    ema: float = key(0.0, "decay of an exponential average of the weights, used for evaluation (0: off)", low=0.0, high=1.0)
    patience: int | None = key(10, "stop after this many epochs without a better val_loss (none: never)", low=1)
    min_delta: float = key(0.001, "smallest improvement of val_loss that counts for patience", low=0.0)
    log_every: int = key(10, "steps between train lines", low=1, identity=False)
    save_every_s: int = key(600, "seconds between saves within an epoch", low=1, identity=False)
    timeout_s: int = key(3600, "longest wait for another rank, as while rank 0 preprocesses", low=1, identity=False)


@dataclass(frozen=True)
class Augment:
    preset: str = key("all", "augmentation of the training patches", choices=("none", "basic", "all", "strong"))
    parameters: dict | None = key(
        None, "values that replace the preset's, {transform: {key: value}}, for example augment.parameters.rotate.p=0.5"
    )
    device: str = key("auto", "where patches are augmented; auto: on the GPU where there is one", choices=("auto", "cpu", "gpu"))


@dataclass(frozen=True)
class Cv:
    kind: str = key("kfold", "how the folds are made", choices=("kfold", "leave_one_group_out"))
    folds: int = key(5, "number of folds (leave_one_group_out: one per group)", low=2)
    val_fraction: float = key(0.2, "share of each fold's training subjects held back to select on", above=0.0, high=0.9)
    stratify: bool = key(True, "equal shares of each class (or of the range of the target) in all folds")
    parallel: str = key(
        "ddp",
        "ddp: all ranks on one fold; folds: each rank its own folds, with the whole batch; auto: chosen and logged",
        choices=("ddp", "folds", "auto"),
        identity=False,
    )
    folds_to_run: tuple[int, ...] = key((), "folds (from 1) to run now (empty: all)", low=1, identity=False)
    final: str = key(
        "none",
        "model for new cases, made in <run>/final once all folds are done: all folds together, their mean weights, or one trained on all cases",
        choices=("none", "ensemble", "soup", "refit"),
        identity=False,
    )


@dataclass(frozen=True)
class Eval:
    overlap: float = key(0.5, "overlap of neighbouring windows when a case is larger than the patch", low=0.0, high=0.95)
    windows: int = key(2, "windows per forward pass", low=1, identity=False)
    pool_windows: str = key(
        "mean", "whole-case tasks: how the windows of one case are pooled", choices=("mean", "max")
    )
    threshold: str = key(
        "youden",
        "classification: decision threshold; half (0.5) or chosen on the inner validation cases",
        choices=("half", "youden", "f1"),
    )
    mirror_axes: tuple[int, ...] = key((), "average the predictions over flips of these axes (0 x, 1 y, 2 z), after training", low=0, high=2)
    postprocess: str = key(
        "none", "segmentation: auto chooses hole filling and component sizes on the inner validation cases", choices=("none", "auto")
    )
    bootstrap: int = key(1000, "resamples of the pooled intervals (0: none)", low=0)
    surface_tolerance_mm: float = key(1.0, "tolerance of the surface Dice", above=0.0)


@dataclass(frozen=True)
class Config:
    name: str = key("run", "name of the run folder")
    output: str = key("runs", "folder of the run folders", path=True, identity=False)
    seed: int = key(0, "seed of every random draw", low=0)
    task: Task = Task()
    data: Data = Data()
    model: Model = Model()
    weights: Weights = Weights()
    finetune: Finetune = Finetune()
    optim: Optim = Optim()
    train: Train = Train()
    augment: Augment = Augment()
    cv: Cv = Cv()
    eval: Eval = Eval()


def fields(config, prefix=""):
    """Yield (dotted name, dataclass field, value) of every key of a config or section."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def show(value):
    """A value as it is written in YAML."""
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(show(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
