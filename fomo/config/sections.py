"""Every key of every section, with its default, its help and its limits in one place.

The choices of task, loss, source, network and preset are declared in their own rooms; kinds.py collects them.
"""

import dataclasses
import typing
from dataclasses import dataclass


def key(default, help, choices="", *, only="", low=None, high=None, above=None, path=False, identity=True):
    """A field of a section.

    choices: the allowed values (of each element of a tuple), as "softmax|sigmoid".
    only: what other keys must be for this one to be read, as "task.loss=focal cv.parallel=folds|auto" (all of these),
        "weights.path!=none" or "a=b or c=d"; "windows=several": a case must be larger than a window.
    low, high: inclusive limits; above: exclusive lower limit.
    path: relative values start from the file that names them.
    identity: whether the value changes what a run computes.
    """
    said = dict(help=help, only=only, choices=choices.split("|") if choices else None, path=path, identity=identity)
    return dataclasses.field(default=default, metadata=dict(said, low=low, high=high, above=above))


def free_key(*default_and_help, **more):
    """A `key` that does not change what a run computes: it may differ when the run is continued."""
    return key(*default_and_help, identity=False, **more)


@dataclass(frozen=True)
class Task:
    type: str = key("classification", "what is learned")
    targets: tuple[str, ...] = key((), "source=table, slices: the columns to learn (segmentation: data.mask_column)")
    classes: int = key(2, "number of classes, background included (segmentation; classification of one target)", low=2)
    class_names: tuple[str, ...] = key((), "segmentation: names of the classes above 0, in results (none: numbers)")
    parts: dict | None = key(
        None, "multitask: {name: {type, targets, weight and other keys of `task`}}, the main one first"
    )
    weighting: str = key(
        "fixed",
        "multitask: losses of the parts by their weights, or divided by variances that are learned as well",
        "fixed|uncertainty",
    )
    evidence: str = key(
        "none",
        "two classes, labels: learn from masks of what makes class 1, or of each label; auto: where cases have some",
        "mask|none|auto",
    )
    loss: str = key("auto", "auto: cross_entropy, bce (multilabel), dice_focal (masks) or huber, by task")
    focal_gamma: float = key(
        2.0,
        "focusing on unsure answers (0: cross entropy)",
        only="task.loss=focal|dice_focal or task.loss=auto task.type=segmentation or task.loss=auto task.evidence=mask",
        low=0,
    )
    focal_alpha: float = key(0.25, "weight of positives, 1 - alpha of negatives", only="task.loss=focal", low=0, high=1)
    gamma_neg: float = key(4.0, "focusing of the negatives", only="task.loss=asymmetric", low=0)
    gamma_pos: float = key(1.0, "focusing of the positives", only="task.loss=asymmetric", low=0)
    clip: float = key(0.05, "negatives below this probability cost 0", only="task.loss=asymmetric", low=0, high=0.5)
    tversky_alpha: float = key(0.3, "weight of false positives", only="task.loss=tversky", above=0, high=1)
    tversky_beta: float = key(0.7, "weight of false negatives", only="task.loss=tversky", above=0, high=1)
    label_smoothing: float = key(
        0.0, "classes, labels: training targets move this far towards equal chances", low=0, high=0.5
    )
    activation: str = key("softmax", "segmentation: softmax, or a sigmoid per foreground class", "softmax|sigmoid")
    class_weights: str = key(
        "none",
        "weights of classes in the loss, from training cases (multilabel: of positives)",
        "none|inverse_frequency",
    )
    label_scaling: str = key(
        "standard", "standard: the network learns (target - mean) / deviation of the training cases", "standard|none"
    )
    mask_ratio: float = key(0.6, "share of the cubes that are hidden", above=0, high=0.95)
    mask_cube: int = key(4, "edge of the cubes, in voxels", low=1)
    mask_value: float = key(0.0, "intensity in the hidden cubes")
    mae_loss: str = key("all", "squared error of all voxels, or of the hidden ones only", "all|masked")
    keep_epoch: str = key("last", "which epoch is best.pt: the last, or that of the smallest error", "last|best")
    mae_clamp: tuple[float, float] | None = key(None, "what is to be restored is clamped to these (none: as it is)")
    global_weight: float = key(
        0.0, "mae: of a term that two masked views of a scan shall look alike, and scans differ (0: one view)", low=0
    )
    global_size: tuple[int, int, int] = key((96, 96, 96), "voxels (x, y, z) of the two global views")
    global_scale: tuple[float, float] = key((0.4, 1.0), "share of the patch that a global view shows", above=0, high=1)
    local_views: int = key(6, "number of local views", low=0)
    local_size: tuple[int, int, int] = key((48, 48, 48), "voxels (x, y, z) of the local views")
    local_scale: tuple[float, float] = key((0.05, 0.4), "share of the patch that a local view shows", above=0, high=1)
    out_dim: int = key(4096, "outputs of the projection head", low=2)
    head_width: int = key(2048, "units of the two hidden layers of the projection head", low=1)
    teacher_temperature: tuple[float, float] = key((0.04, 0.07), "the teacher's, at first and after warm-up", above=0)
    teacher_warmup_epochs: float = key(30.0, "linear warm-up of the teacher's temperature", low=0)
    teacher_momentum: float = key(0.996, "the teacher's, from the first step on a half cosine to 1", low=0, high=1)
    centre_momentum: float = key(0.9, "momentum of the centre of the teacher's outputs", low=0, high=1)
    freeze_last_layer_epochs: int = key(1, "epochs before the projection head's last layer is trained", low=0)


@dataclass(frozen=True)
class Data:
    source: str = key("phantom", "where the cases come from")
    root: str | None = free_key(None, "folder of the data set (phantom: where it is generated)", path=True)
    csv: str | None = free_key(
        None, "source=table, slices: the table; volumes: text file of paths, one a line", path=True
    )
    labels_csv: str | None = free_key(
        None, "slices: table of labels, a line per VolumeName (none: in data.csv)", path=True
    )
    missing_labels: str = key("error", "slices without labels; drop: they are left out and counted", "error|drop")
    neighbours: int = key(0, "slices: how many slices on each side are channels too", low=0)
    id_column: str = key("id", "column of the case's id")
    subject_column: str | None = key("subject", "column of the subject, whom folds keep together (none: one per line)")
    mask_column: str = key(
        "mask", "column of the mask's path (task.evidence: blank where there is none; of labels mask_LABEL for each)"
    )
    fold_column: str | None = key(
        "fold", "column of the fold, if it exists (none: unused); slices: fold, or else split"
    )
    pattern: str = key("*", "only the paths below the root that match, for example *T1w.nii.gz")
    where: str | None = key(
        None, "only scans that mri_info.tsv or participants.tsv in the root says so of, as 'modality=t1w|t2w, sex=f'"
    )
    rescan: str = free_key(
        "auto", "look at all files at every start; auto: up to 2000 cases; never: only at new ones", "auto|always|never"
    )
    cache: str | None = free_key(None, "folder of the preprocessed cases (none: <output>/cache)", path=True)
    channels: tuple[str, ...] = key((), "channel names in network order; 'a|b': the one that the case has")
    optional_channels: tuple[str, ...] = key((), "those of data.channels that a case may lack: it is background then")
    patch: tuple[int, int, int] = key((96, 96, 96), "voxels (x, y, z) that the network sees at once")
    spacing_mm: tuple[float, float, float] | None = key(
        (1.0, 1.0, 1.0), "resample to this voxel size (none: keep each case's own)", above=0
    )
    crop: bool = key(True, "crop to the box of non-zero voxels")
    normalize: str = key(
        "zscore",
        "how intensities are scaled, per channel; zscore_nonzero: by the voxels that are not 0, as of a bare brain; "
        "auto: that for masks, or as weights.path was trained; slices: none, or imagenet for pretrained networks",
        "zscore|zscore_nonzero|auto|percentile|window|none|imagenet",
    )
    percentiles: tuple[float, float] = key(
        (0.5, 99.5),
        "the intensities at these percentiles map to 0 and 1",
        only="data.normalize=percentile",
        low=0,
        high=100,
    )
    window: tuple[float, float] = key(
        (-1000.0, 400.0), "these intensities map to 0 and 1 (CT: HU)", only="data.normalize=window"
    )
    cache_dtype: str = key(
        "float32", "number type of the cached images; float16: half the size, errors up to 0.05%", "float32|float16"
    )
    prepare_workers: int = free_key(2, "processes that preprocess (0: this one)", low=0)
    foreground_fraction: float = key(0.5, "share of training patches centred on foreground", low=0, high=1)
    crop_position: str = key("random", "where the training patch is taken", "random|center")
    phantom_layout: str = key(
        "fomo",
        "fomo: the FOMO25 task of task.type; table: heads with several targets",
        "fomo|table|fomo26_task1|fomo26_task2|fomo26_task3|fomo26_task4|fomo26_task5",
    )
    phantom_cases: int = key(60, "number of phantom cases", low=4)
    phantom_size: int = key(48, "voxels along the longest axis of a phantom", low=16)
    train_folds: tuple[str, ...] = key((), "values of the fold column to train on (empty: those of no other part)")
    val_folds: tuple[str, ...] = key((), "values of the fold column to select on (empty: cv.val_fraction is held back)")
    test_folds: tuple[str, ...] = key((), "values of the fold column to test on: one split instead of cv.folds")
    groups: str | None = key(
        None,
        "CSV with the columns subject,group: folds of cv.kind=leave_one_group_out; in the audit each group's score",
        path=True,
    )
    shuffle_labels: int = key(
        0,
        "seed by which subjects get the labels of others, to see what is found where there is nothing (0: off)",
        low=0,
    )


@dataclass(frozen=True)
class Model:
    name: str = key("unet_b", "network")
    width: int | None = key(None, "channels of the first level (none: the network's own, 32 or 64)", low=1)
    deep_supervision: bool | typing.Literal["auto"] = key(
        "auto", "learning from masks: losses on the coarser levels as well; auto: false, which learns more in few steps"
    )
    skips: bool = key(True, "resenc_unet pretraining: skip connections (false: as the FOMO26 baseline pretrains)")
    skip_pooling: str = key(
        "average",
        "resenc_unet: how halving blocks pool what they skip; maximum: for classifiers of the FOMO26 baseline",
        "average|maximum",
    )
    head: str = key(
        "auto",
        "one output per case: from the mean of the bottleneck (linear, mlp), or from statistics of all stages, and a "
        "ridge regression is its first answer (multistage); auto: multistage where the network has it",
        "auto|linear|mlp|multistage",
    )
    fusion: str = key(
        "auto",
        "late: each channel goes alone through an encoder of one channel, and the head reads all of them; auto: late "
        "where weights.path has one channel and the cases have several",
        "early|late|auto",
    )
    dropout: float = key(0.0, "dropout in front of the output layer of one output per case", low=0, high=0.9)
    channel_dropout: float = key(
        0.0, "U-Nets: share of whole feature maps dropped in the three coarsest levels", low=0, high=0.9
    )
    attention: str = key("none", "2D networks: attention on the feature maps, before pooling", "none|se|cbam")
    multiscale: bool = key(False, "2D networks: fuse the feature maps at 1/8, 1/16 and 1/32, not only read the last")
    pooling: str = key("mean", "2D networks: how a feature map becomes one vector", "mean|max|mean_max")


@dataclass(frozen=True)
class Weights:
    path: str | None = key(None, "pretrained checkpoint to start from (none: random)", path=True)
    stem: str = key(
        "repeat", "rule for a first layer with other input channels", "repeat|mean|reinit", only="weights.path!=none"
    )
    part: str | None = key(
        None,
        "prefix of the names to take, if the file has several networks (none: the teacher's)",
        only="weights.path!=none",
    )


@dataclass(frozen=True)
class Finetune:
    strategy: str = key(
        "full",
        "what is trained; decoder_first: as gradual, with a warm-up before the encoder is trained and one after it",
        "full|gradual|decoder_first|stagewise|frozen_encoder|head_only",
    )
    unfreeze_epoch: int = key(
        10,
        "first epoch (from 1) in which the encoder is trained; stagewise: the stage before the head",
        only="finetune.strategy=gradual|decoder_first|stagewise",
        low=1,
    )
    unfreeze_every: int = key(2, "epochs until one more stage is trained", only="finetune.strategy=stagewise", low=1)
    frozen_stages: int = key(
        0,
        "first stages of the encoder that are never trained, whatever else is",
        only="finetune.strategy=full|gradual|decoder_first|stagewise",
        low=0,
    )
    layer_decay: float = key(1.0, "learning-rate factor per stage away from the head", above=0, high=1)


@dataclass(frozen=True)
class Optim:
    name: str = key("adamw", "sgd: with Nesterov momentum, as nnU-Net", "adamw|sgd")
    lr: float | typing.Literal["auto"] = key(
        "auto", "peak learning rate; auto: what is recommended for the task, the optimizer and the start", above=0
    )
    weight_decay: float = key(3e-5, "weight decay (sgd: L2 penalty); not on norms and biases", low=0)
    weight_decay_end: float | None = key(
        None, "weight decay of the last step, on a half cosine (none: constant)", low=0
    )
    betas: tuple[float, float] = key((0.9, 0.999), "averaging factors", only="optim.name=adamw", low=0, high=1)
    momentum: float = key(0.99, "Nesterov momentum", only="optim.name=sgd", above=0, high=1)
    schedule: str = key("cosine", "learning rate over the steps", "cosine|plateau|constant")
    warmup_epochs: float = key(0.0, "linear warm-up", low=0)
    warmup_share: float = key(0.0, "linear warm-up, as a share of all steps instead", low=0, high=1)
    cosine_stretch: float = key(
        1.0, "the cosine reaches min_lr after this multiple of the epochs", only="optim.schedule=cosine", low=1
    )
    min_lr: float = key(
        1e-9, "lowest learning rate", only="optim.schedule=cosine|plateau or optim.warmup_epochs!=0", low=0
    )
    plateau_factor: float = key(
        0.5, "factor after plateau_patience epochs without improvement", only="optim.schedule=plateau", above=0, high=1
    )
    plateau_patience: int = key(5, "epochs to wait", only="optim.schedule=plateau", low=1)
    clip_norm: float | None = key(None, "largest gradient norm (none: no clipping)", above=0)


@dataclass(frozen=True)
class Train:
    mode: str = free_key("both", "train: to the best epoch, no test; evaluate: test only; both", "train|evaluate|both")
    checkpoint: str | None = key(None, "mode=evaluate: what is tested (none: the fold's own best.pt)", path=True)
    keep_best: int = key(1, "number of best epochs whose checkpoint is kept: best.pt (tested), best_2.pt, ...", low=1)
    name_best: bool = free_key(False, "also link to them by epoch and score, as epoch_012_val_mae_4.2000.pt")
    epochs: int = key(100, "epochs of steps_per_epoch steps", low=1)
    steps: int | None = key(None, "the length in optimizer steps, in place of epochs", low=1)
    budget_s: float | None = key(
        None, "seconds of each fold's training and validation, in place of epochs: the schedule fits in them", above=0
    )
    batch_size: int = key(2, "samples per optimizer step, over all ranks", low=1)
    micro_batch: int | None = free_key(None, "samples per forward pass of a rank (none: all); gradients add up", low=1)
    steps_per_epoch: int | None = key(None, "optimizer steps per epoch (none: as many as see every case once)", low=1)
    amp: str = key(
        "auto", "auto: bf16 where the hardware has it, else fp16 on a GPU, off on a CPU", "auto|bf16|fp16|off"
    )
    cuda_graph: bool = free_key(True, "one GPU, one micro-batch, nothing recomputed: start all kernels at once")
    checkpoint_activations: bool = free_key(False, "U-Nets: recompute activations: less memory, a third more time")
    workers: int = free_key(2, "loader processes per rank (0: the training process)", low=0)
    balanced: bool = key(False, "draw the classes (multilabel: the labels, and cases without any) equally often")
    ema: float = key(0.0, "decay of a moving average of the weights, used for evaluation (0: off)", low=0, high=1)
    patience: int | None = key(None, "stop after this many epochs without a better val_loss (none: never)", low=1)
    min_delta: float = key(
        0.001,
        "smallest improvement of val_loss that counts for patience",
        only="train.patience!=none or optim.schedule=plateau",
        low=0,
    )
    log_every: int = free_key(10, "steps between train lines", low=1)
    save_every_s: int = free_key(
        600,
        "seconds between saves: what a kill or a crash costs; the end and a stop by a signal are saved at once",
        low=0,
    )
    timeout_s: int = free_key(3600, "longest wait for another rank, as while rank 0 preprocesses", low=1)


@dataclass(frozen=True)
class Augment:
    preset: str = key("all", "augmentation of the training patches")
    parameters: dict | None = key(None, "values that replace the preset's, as augment.parameters.rotate.p=0.5")
    mix: str = key(
        "none", "cutmix: a box of another sample in each; mixup: the mean of both (classification)", "none|cutmix|mixup"
    )
    mix_p: float = key(0.5, "share of the samples that are mixed", only="augment.mix=cutmix|mixup", low=0, high=1)
    device: str = key("auto", "where patches are augmented; auto: on the GPU if there is one", "auto|cpu|gpu")


@dataclass(frozen=True)
class Cv:
    kind: str = key(
        "kfold",
        "k folds, one per group of data.groups, or the column's own",
        "kfold|leave_one_group_out|fold_column",
        only="data.test_folds=[]",
    )
    folds: int = key(5, "number of folds", only="cv.kind=kfold data.test_folds=[]", low=2)
    val_fraction: float = key(
        0.2,
        "share of each fold's training subjects held back to select on",
        only="data.val_folds=[]",
        above=0,
        high=0.9,
    )
    stratify: bool = key(
        True, "equal shares of each class (or of the range of the target) in all folds", only="data.val_folds=[]"
    )
    parallel: str = free_key(
        "ddp", "ddp: all ranks share each fold; folds: each has its own; auto: chosen and logged", "ddp|folds|auto"
    )
    ranks_per_fold: int = free_key(1, "neighbouring ranks that share a fold", only="cv.parallel=folds|auto", low=1)
    folds_to_run: tuple[int, ...] = free_key((), "folds (from 1) to run now (empty: all)", low=1)
    final: str = free_key(
        "none",
        "model for new cases, in <run>/final: all folds together, their mean weights, or one trained on all cases",
        "none|ensemble|soup|refit",
        only="train.mode=train|both",
    )


@dataclass(frozen=True)
class Eval:
    overlap: float = key(
        0.5,
        "overlap of neighbouring windows, when a case is larger than the patch",
        only="windows=several",
        low=0,
        high=0.95,
    )
    windows: int = free_key(2, "windows per forward pass (cases of one window: as in training, if more)", low=1)
    pool_windows: str = key("mean", "how the windows of one case are pooled", "mean|max", only="windows=several")
    threshold: str = key("youden", "decision threshold: 0.5, or the best on inner validation", "half|youden|f1")
    pool_slices: str = key(
        "auto", "how the slices of a scan are pooled; auto: by inner validation", "auto|mean|max|topk|noisy_or"
    )
    top_slices: int = key(3, "slices of the highest probability to average", only="eval.pool_slices=topk|auto", low=1)
    mirror_axes: tuple[int, ...] = key(
        (), "average the predictions over flips of these axes (0 x, 1 y, 2 z), after training", low=0, high=2
    )
    views: str = key(
        "none",
        "auto: each fold chooses flips of one or of all axes, a gamma, or none of them by inner validation",
        "none|auto",
    )
    calibrate: str = key(
        "none",
        "temperature (two classes): probabilities as sure as they are right on inner validation; half (two classes, "
        "labels): moved so that the chosen threshold is 0.5",
        "none|temperature|half",
    )
    postprocess: str = key(
        "none", "segmentation: auto chooses holes and component sizes by inner validation", "none|auto"
    )
    saliency: int = free_key(0, "classification: cases per fold with Grad-CAM (and CBAM) maps in the report", low=0)
    stress: bool = free_key(
        False, "volumes: at the end test what images of another scanner would cost, as tools/stress.py does"
    )
    radiological: bool = free_key(True, "pictures of the report: the patient's right is on their left side")
    bootstrap: int = key(1000, "resamples of the pooled intervals (0: none)", low=0)
    surface_tolerance_mm: float = key(1.0, "tolerance of the surface Dice", above=0)
    challenge: str = key("none", "score masks as this challenge does, too, in columns of their own", "none|fomo26")


@dataclass(frozen=True)
class Audit:
    rivals: bool = free_key(
        True, "what simple facts tell about the label: head size, voxels, intensities, files, site; on the same folds"
    )
    columns: tuple[str, ...] = free_key(
        (), "columns of data.csv that are rivals and groups, too (empty: site, scanner and the like, where they are)"
    )
    shuffled: int = free_key(
        0, "cross-validations of the same network on shuffled labels, below <run>/audit: as long as the run each", low=0
    )
    other_folds: bool = free_key(
        False, "also cross-validate by groups (data.groups, or the fold column); of a run by groups: by k folds"
    )


@dataclass(frozen=True)
class Config:
    name: str = key("run", "name of the run folder")
    output: str = free_key("runs", "folder of the run folders", path=True)
    seed: int = key(0, "seed of every random draw", low=0)
    tracker: str = free_key(
        "none",
        "who gets the numbers of the log, below fold_K and without a network (needs the package)",
        "none|tensorboard|wandb|mlflow|clearml",
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
    audit: Audit = Audit()


def fields(config, prefix=""):
    """Yield (dotted name, dataclass field, value) of every key of a config or section."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def check_declared(who, keys):
    """Raise ValueError unless `keys`, which `who` declares, are dotted names of keys."""
    unknown = set(keys) - {name for name, _, _ in fields(Config())}
    if unknown or isinstance(keys, str):
        raise ValueError(f"{who}: got the keys {keys!r}, wanted dotted names of fomo/config/sections.py")


def length(train):
    """How long a training is, in words; train: the section."""
    if train.budget_s is not None:
        return f"{train.budget_s:g} s"
    count, unit = (train.epochs, "epoch") if train.steps is None else (train.steps, "step")
    return f"{count} {unit}" if count == 1 else f"{count} {unit}s"


def show(value):
    """A value as it is written in YAML."""
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return "[" + ",".join(show(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
