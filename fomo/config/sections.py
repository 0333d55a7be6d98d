"""Every key of every section, with its default, its help and its limits in one place.

What there is to choose from for task.type, task.loss, data.source, model.name and augment.preset, and which of them
reads which key, is said by the tasks, sources, networks and presets themselves: see kinds.py.
"""

import dataclasses
from dataclasses import dataclass


def key(default, help, *, only="", choices=None, low=None, high=None, above=None, path=False, identity=True):
    """A field of a section.

    only: what other keys must be for this one to be read, as "task.loss=focal cv.parallel=folds|auto".
    choices: the allowed values (of each element of a tuple).
    low, high: inclusive limits; above: exclusive lower limit.
    path: relative values start from the file that names them.
    identity: False if the value does not change what a run computes; it may differ when a run is continued.
    """
    metadata = dict(
        help=help, only=only, choices=choices, low=low, high=high, above=above, path=path, identity=identity
    )
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Task:
    type: str = key("classification", "what is learned")
    targets: tuple[str, ...] = key(
        (), "source=table and slices: columns of what is learned (segmentation has its mask column)"
    )
    classes: int = key(2, "number of classes, background included (segmentation; classification of one target)", low=2)
    loss: str = key("auto", "auto: cross_entropy, bce (multilabel), dice_ce or huber, by task")
    focal_gamma: float = key(
        2.0, "how much less a sure answer counts (0: cross entropy)", only="task.loss=focal", low=0.0
    )
    focal_alpha: float = key(
        0.25, "weight of the positives, 1 - alpha of the negatives", only="task.loss=focal", low=0.0, high=1.0
    )
    gamma_neg: float = key(4.0, "focusing of the negatives", only="task.loss=asymmetric", low=0.0)
    gamma_pos: float = key(1.0, "focusing of the positives", only="task.loss=asymmetric", low=0.0)
    clip: float = key(
        0.05, "negatives below this probability cost nothing", only="task.loss=asymmetric", low=0.0, high=0.5
    )
    label_smoothing: float = key(0.0, "multilabel: training targets move this far towards 1/2", low=0.0, high=0.5)
    activation: str = key(
        "softmax",
        "segmentation: softmax over the classes, or one independent output per foreground class",
        choices=("softmax", "sigmoid"),
    )
    class_weights: str = key(
        "none",
        "weights of the classes in the loss, from the training cases (multilabel: of each label's positives)",
        choices=("none", "inverse_frequency"),
    )
    label_scaling: str = key(
        "standard", "targets are standardised with the training fold's mean and deviation", choices=("standard", "none")
    )
    mask_ratio: float = key(0.6, "share of the cubes that are hidden", above=0.0, high=0.95)
    mask_cube: int = key(4, "edge of the cubes, in voxels", low=1)
    mask_value: float = key(0.0, "intensity in the hidden cubes")
    mae_loss: str = key("all", "squared error of all voxels, or of the hidden ones only", choices=("all", "masked"))
    global_size: tuple[int, int, int] = key((96, 96, 96), "voxels (x, y, z) of the two global views")
    global_scale: tuple[float, float] = key(
        (0.4, 1.0), "share of the patch that a global view shows", above=0.0, high=1.0
    )
    local_views: int = key(6, "number of local views", low=0)
    local_size: tuple[int, int, int] = key((48, 48, 48), "voxels (x, y, z) of the local views")
    local_scale: tuple[float, float] = key(
        (0.05, 0.4), "share of the patch that a local view shows", above=0.0, high=1.0
    )
    out_dim: int = key(4096, "outputs of the projection head", low=2)
    head_width: int = key(2048, "units of the two hidden layers of the projection head", low=1)
    teacher_temperature: tuple[float, float] = key((0.04, 0.07), "at first, and after the warm-up", above=0.0)
    teacher_warmup_epochs: float = key(30.0, "linear warm-up of the teacher's temperature", low=0.0)
    teacher_momentum: float = key(
        0.996, "of the teacher in the first step, on a half cosine to 1 in the last", low=0.0, high=1.0
    )
    centre_momentum: float = key(0.9, "of the centre of the teacher's outputs", low=0.0, high=1.0)
    freeze_last_layer_epochs: int = key(1, "epochs before the projection head's last layer is trained", low=0)


@dataclass(frozen=True)
class Data:
    source: str = key("phantom", "where the cases come from")
    root: str | None = key(None, "folder of the data set (phantom: where it is generated)", path=True)
    csv: str | None = key(
        None, "source=table, slices: the table; source=volumes: text file of paths, one a line", path=True
    )
    labels_csv: str | None = key(
        None, "slices: table of the labels, a line per VolumeName (none: the slices' table has them)", path=True
    )
    missing_labels: str = key(
        "error", "slices of volumes without labels; drop: leave them out and say how many", choices=("error", "drop")
    )
    neighbours: int = key(0, "slices: how many slices on each side are channels too", low=0)
    id_column: str = key("id", "column of the case's id")
    subject_column: str | None = key(
        "subject", "column of the subject, whom folds keep together (none: each line its own)"
    )
    mask_column: str = key("mask", "column of the mask's path")
    fold_column: str | None = key(
        "fold",
        "column of the fold, if the table has it (none: do not use one); of slices, if unset: fold, or else split",
    )
    pattern: str = key("*", "only the paths below the root that match, for example *T1w.nii.gz")
    rescan: str = key(
        "auto",
        "look at every source file on every start (never: only when it is first read; auto: always up to 2000 cases)",
        choices=("auto", "always", "never"),
        identity=False,
    )
    cache: str | None = key(None, "folder of the preprocessed cases (none: <output>/cache)", path=True, identity=False)
    channels: tuple[str, ...] = key((), "channel names in network order; 'a|b': the one that the case has")
    patch: tuple[int, int, int] = key((96, 96, 96), "voxels (x, y, z) that the network sees at once")
    spacing_mm: tuple[float, float, float] | None = key(
        (1.0, 1.0, 1.0), "resample to this voxel size (none: keep each case's own)", above=0.0
    )
    crop: bool = key(True, "crop to the box of non-zero voxels")
    normalize: str = key(
        "zscore",
        "intensities, per channel; slices, which are 0 to 1: none, or as pretrained 2D networks saw them (imagenet)",
        choices=("zscore", "percentile", "window", "none", "imagenet"),
    )
    percentiles: tuple[float, float] = key(
        (0.5, 99.5), "these map to 0 and 1", only="data.normalize=percentile", low=0.0, high=100.0
    )
    window: tuple[float, float] = key(
        (-1000.0, 400.0), "these intensities map to 0 and 1 (CT: HU)", only="data.normalize=window"
    )
    cache_dtype: str = key(
        "float32",
        "number type of the cached images; float16 halves disk and memory and moves values by at most 0.05%",
        choices=("float32", "float16"),
    )
    prepare_workers: int = key(2, "processes that preprocess (0: this one)", low=0, identity=False)
    foreground_fraction: float = key(0.5, "share of training patches centred on foreground", low=0.0, high=1.0)
    crop_position: str = key("random", "where the training patch is taken", choices=("random", "center"))
    phantom_layout: str = key(
        "fomo", "fomo: the layout of the task; table: a table of heads with several targets", choices=("fomo", "table")
    )
    phantom_cases: int = key(60, "number of phantom cases", low=4)
    phantom_size: int = key(48, "voxels along the longest axis of a phantom", low=16)
    train_folds: tuple[str, ...] = key((), "values of the fold column to train on (empty: those of no other part)")
    val_folds: tuple[str, ...] = key((), "values of the fold column to select on (empty: cv.val_fraction is held back)")
    test_folds: tuple[str, ...] = key((), "values of the fold column to test on: one split instead of cv.folds")
    groups: str | None = key(None, "CSV with the columns subject,group", only="cv.kind=leave_one_group_out", path=True)


@dataclass(frozen=True)
class Model:
    name: str = key("unet_b", "network")
    width: int | None = key(None, "channels of the first level (none: the network's own, 32 or 64)", low=1)
    deep_supervision: bool = key(False, "segmentation: losses on the coarser levels as well")
    dropout: float = key(0.0, "2D networks: dropout in front of the output layer", low=0.0, high=0.9)
    attention: str = key(
        "none", "2D networks: attention on the feature maps, before pooling", choices=("none", "se", "cbam")
    )
    multiscale: bool = key(
        False, "2D networks: fuse the feature maps at 1/8, 1/16 and 1/32 instead of reading the last one only"
    )
    pooling: str = key("mean", "2D networks: how a feature map becomes one vector", choices=("mean", "max", "mean_max"))


@dataclass(frozen=True)
class Weights:
    path: str | None = key(None, "pretrained checkpoint to start from (none: random)", path=True)
    stem: str = key("repeat", "rule for a first layer with other input channels", choices=("repeat", "mean", "reinit"))
    trust: bool = key(False, "unpickle a file that holds more than tensors and plain data; it can run code")


@dataclass(frozen=True)
class Finetune:
    strategy: str = key("full", "what is trained", choices=("full", "gradual", "stagewise", "head_only"))
    unfreeze_epoch: int = key(
        10,
        "gradual: first epoch (from 1) in which the encoder is trained; stagewise: the stage before the head",
        only="finetune.strategy=gradual|stagewise",
        low=1,
    )
    unfreeze_every: int = key(
        2, "epochs after which the stage before that is trained, too", only="finetune.strategy=stagewise", low=1
    )
    layer_decay: float = key(1.0, "learning-rate factor per stage away from the head", above=0.0, high=1.0)


@dataclass(frozen=True)
class Optim:
    lr: float = key(1e-4, "peak learning rate of AdamW", above=0.0)
    weight_decay: float = key(3e-5, "decoupled weight decay; not on norms and biases", low=0.0)
    weight_decay_end: float | None = key(
        None, "weight decay of the last step, on a half cosine (none: constant)", low=0.0
    )
    betas: tuple[float, float] = key((0.9, 0.999), "AdamW's averaging factors", low=0.0, high=1.0)
    schedule: str = key("cosine", "learning rate over the steps", choices=("cosine", "plateau", "constant"))
    warmup_epochs: float = key(0.0, "linear warm-up", low=0.0)
    cosine_stretch: float = key(
        1.15, "the cosine reaches min_lr after this multiple of the epochs", only="optim.schedule=cosine", low=1.0
    )
    min_lr: float = key(1e-9, "lowest learning rate", low=0.0)
    plateau_factor: float = key(
        0.5,
        "factor after plateau_patience epochs without a better val_loss",
        only="optim.schedule=plateau",
        above=0.0,
        high=1.0,
    )
    plateau_patience: int = key(5, "epochs to wait", only="optim.schedule=plateau", low=1)
    clip_norm: float | None = key(None, "largest gradient norm (none: no clipping)", above=0.0)


@dataclass(frozen=True)
class Train:
    mode: str = key(
        "both",
        "train: up to the best epoch, no test; evaluate: test only; both",
        choices=("train", "evaluate", "both"),
        identity=False,
    )
    checkpoint: str | None = key(None, "mode=evaluate: what is tested (none: the fold's own best.pt)", path=True)
    keep_best: int = key(
        1, "how many of the best epochs keep a checkpoint: best.pt, which is tested, best_2.pt, ...", low=1
    )
    epochs: int = key(100, "epochs of steps_per_epoch steps", low=1)
    batch_size: int = key(2, "samples per optimizer step, over all ranks", low=1)
    micro_batch: int | None = key(
        None, "samples per forward pass on one rank (none: all); less accumulates gradients", low=1, identity=False
    )
    steps_per_epoch: int | None = key(None, "optimizer steps per epoch (none: as many as see every case once)", low=1)
    amp: str = key(
        "auto", "auto: bf16 where the GPU has it, else fp16; off on the CPU", choices=("auto", "bf16", "fp16", "off")
    )
    compile: bool = key(False, "torch.compile the network")
    checkpoint_activations: bool = key(
        False,
        "U-Nets: recompute activations in the backward pass; less memory, about a third more time",
        identity=False,
    )
    workers: int = key(2, "loader processes per rank (0: the training process)", low=0, identity=False)
    balanced: bool = key(False, "classification: draw the classes equally often")
    ema: float = key(
        0.0, "decay of an exponential average of the weights, used for evaluation (0: off)", low=0.0, high=1.0
    )
    patience: int | None = key(10, "stop after this many epochs without a better val_loss (none: never)", low=1)
    min_delta: float = key(0.001, "smallest improvement of val_loss that counts for patience", low=0.0)
    log_every: int = key(10, "steps between train lines", low=1, identity=False)
    save_every_s: int = key(600, "seconds between saves within an epoch", low=1, identity=False)
    timeout_s: int = key(3600, "longest wait for another rank, as while rank 0 preprocesses", low=1, identity=False)


@dataclass(frozen=True)
class Augment:
    preset: str = key("all", "augmentation of the training patches")
    parameters: dict | None = key(
        None, "values that replace the preset's, {transform: {key: value}}, for example augment.parameters.rotate.p=0.5"
    )
    mix: str = key(
        "none",
        "(multilabel) classification: cutmix puts a box of another training sample into each, "
        "mixup takes the weighted mean of both",
        choices=("none", "cutmix", "mixup"),
    )
    mix_p: float = key(
        0.5,
        "share of the samples that are mixed with another of their batch",
        only="augment.mix=cutmix|mixup",
        low=0.0,
        high=1.0,
    )
    device: str = key(
        "auto", "where patches are augmented; auto: on the GPU where there is one", choices=("auto", "cpu", "gpu")
    )


@dataclass(frozen=True)
class Cv:
    kind: str = key(
        "kfold",
        "how the folds are made: kfold; one per group of data.groups; one per value of the fold column",
        choices=("kfold", "leave_one_group_out", "fold_column"),
    )
    folds: int = key(5, "number of folds (cv.kind=kfold)", low=2)
    val_fraction: float = key(0.2, "share of each fold's training subjects held back to select on", above=0.0, high=0.9)
    stratify: bool = key(True, "equal shares of each class (or of the range of the target) in all folds")
    parallel: str = key(
        "ddp",
        "ddp: all ranks on one fold; folds: each rank its own folds, with the whole batch; auto: chosen and logged",
        choices=("ddp", "folds", "auto"),
        identity=False,
    )
    ranks_per_fold: int = key(
        1, "neighbouring ranks that share each fold", only="cv.parallel=folds|auto", low=1, identity=False
    )
    folds_to_run: tuple[int, ...] = key((), "folds (from 1) to run now (empty: all)", low=1, identity=False)
    final: str = key(
        "none",
        "model for new cases, made in <run>/final once all folds are done: all folds together, their mean weights, "
        "or one trained on all cases",
        choices=("none", "ensemble", "soup", "refit"),
        identity=False,
    )


@dataclass(frozen=True)
class Eval:
    overlap: float = key(
        0.5, "overlap of neighbouring windows when a case is larger than the patch", low=0.0, high=0.95
    )
    windows: int = key(
        2,
        "windows per forward pass (cases of one window: as many as in training, if that is more)",
        low=1,
        identity=False,
    )
    pool_windows: str = key("mean", "how the windows of one case are pooled", choices=("mean", "max"))
    threshold: str = key(
        "youden",
        "decision threshold; half (0.5) or chosen on the inner validation cases",
        choices=("half", "youden", "f1"),
    )
    pool_slices: str = key(
        "auto",
        "how the probabilities of a scan's slices are pooled; auto: what is best on the inner validation cases",
        choices=("auto", "mean", "max", "topk", "noisy_or"),
    )
    top_slices: int = key(
        3, "how many slices with the highest probability are averaged", only="eval.pool_slices=topk|auto", low=1
    )
    mirror_axes: tuple[int, ...] = key(
        (), "average the predictions over flips of these axes (0 x, 1 y, 2 z), after training", low=0, high=2
    )
    postprocess: str = key(
        "none",
        "segmentation: auto chooses hole filling and component sizes on the inner validation cases",
        choices=("none", "auto"),
    )
    saliency: int = key(
        0,
        "(multilabel) classification: test cases of each fold whose Grad-CAM (and CBAM) maps the report shows",
        low=0,
        identity=False,
    )
    bootstrap: int = key(1000, "resamples of the pooled intervals (0: none)", low=0)
    surface_tolerance_mm: float = key(1.0, "tolerance of the surface Dice", above=0.0)


@dataclass(frozen=True)
class Config:
    name: str = key("run", "name of the run folder")
    output: str = key("runs", "folder of the run folders", path=True, identity=False)
    seed: int = key(0, "seed of every random draw", low=0)
    tensorboard: bool = key(
        False, "write event files in fold_K/tensorboard (needs the package tensorboard)", identity=False
    )
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
