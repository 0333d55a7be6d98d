"""Rules that concern more than one key."""

import re

from .errors import UserError
from .sections import fields, show

_SLICES = ("resnet50", "resnet101", "efficientnet_b0")  # the 2D networks
_SUPREM = "suprem_unet3d"


def check(config, where):
    """Raise UserError for a combination of keys that cannot work; where: what the config is from, for errors."""

    def refuse(name, got, wanted):
        raise UserError(f"{where}: {name}: got {show(got)[:300]}, wanted {wanted}")

    if not re.fullmatch(r"[\w.+-]+", config.name) or set(config.name) <= {"."}:
        refuse("name", config.name, "letters, digits and . _ + - only: it names a folder")
    _check_source(config.data, config.task, refuse)
    _check_data(config.data, refuse)
    _check_network(config, refuse)
    _check_task(config.task, config.data, refuse)
    _check_training(config, refuse)
    _check_folds(config, refuse)
    _check_evaluation(config.eval, config.task, refuse)
    if config.task.pretrains:
        _check_pretraining(config, refuse)
    if config.task.type == "dino":
        _check_dino(config, refuse)


def unread(config):
    """Names of the keys that are not as by default, and that nothing reads, since other keys are not what they are for."""
    values = {name: value for name, _, value in fields(config)}
    for name, field, value in fields(config):
        if value != field.default and not all(
            _holds(condition, values) for condition in field.metadata["only"].split()
        ):
            yield name


def _holds(condition, values):
    """condition: key=a|b, or key!=a."""
    name, _, wanted = condition.partition("=")
    return (values[name.rstrip("!")] in wanted.split("|")) != name.endswith("!")


def _check_data(data, refuse):
    if not data.channels:
        refuse("data.channels", (), "the channel names in network order, for example [dwi_b1000, flair]")
    if len(set(data.channels)) != len(data.channels):
        refuse("data.channels", data.channels, "each channel once")
    if data.percentiles[0] >= data.percentiles[1]:
        refuse("data.percentiles", data.percentiles, "the lower one first")
    if data.window[0] >= data.window[1]:
        refuse("data.window", data.window, "the lower one first")


def _check_network(config, refuse):
    data, task, model, train = config.data, config.task, config.model, config.train
    if model.name in _SLICES:
        if data.patch[2] != 1 or min(data.patch[:2]) < 64:
            refuse(
                "data.patch",
                data.patch,
                f"[x, y, 1] with x and y of at least 64 for model.name={model.name}: it sees slices",
            )
    else:
        stride, halved = (8, "three") if model.name == _SUPREM else (16, "four")
        if any(size < stride or size % stride for size in data.patch):
            refuse(
                "data.patch",
                data.patch,
                f"multiples of {stride} for model.name={model.name} (it halves each axis {halved} times)",
            )
        if set(data.patch) == {stride}:
            refuse(
                "data.patch",
                data.patch,
                f"at least one axis of {2 * stride}: one voxel at the bottleneck cannot be normalised",
            )
    if model.name == _SUPREM and config.eval.windows != 1:
        refuse(
            "eval.windows",
            config.eval.windows,
            f"1 for model.name={_SUPREM}: it normalises by all windows of a pass together",
        )
    if model.name == _SUPREM and model.width is not None and model.width % 2:
        refuse("model.width", model.width, f"an even number for model.name={_SUPREM}")
    if model.name in _SLICES and (task.type == "segmentation" or task.pretrains):
        refuse("model.name", model.name, f"a U-Net for task.type={task.type}: a 2D network has one output per slice")
    if model.name not in _SLICES:
        for name, value, plain in (
            ("model.dropout", model.dropout, 0.0),
            ("model.attention", model.attention, "none"),
            ("model.multiscale", model.multiscale, False),
            ("model.pooling", model.pooling, "mean"),
        ):
            if value != plain:
                refuse(name, value, f"{show(plain)} for model.name={model.name}: of {', '.join(_SLICES)} only")
    if model.name.endswith("lw_dec") and task.type not in ("segmentation", "mae"):
        refuse("model.name", model.name, f"unet_b or unet_xl for task.type={task.type} (the light decoder has no head)")
    if model.deep_supervision and task.type != "segmentation":
        refuse("model.deep_supervision", True, f"false for task.type={task.type}")
    if train.checkpoint_activations and (not config.model.name.startswith("unet") or task.type == "dino"):
        refuse("train.checkpoint_activations", True, f"false for model.name={config.model.name}, task.type={task.type}")


def _check_task(task, data, refuse):
    losses = {
        "classification": ("auto", "cross_entropy", "focal"),
        "multilabel": ("auto", "bce", "focal", "asymmetric"),
        "segmentation": ("auto", "dice_ce", "generalized_dice", "cross_entropy"),
        "regression": ("auto", "huber", "mse"),
        "mae": ("auto",),
        "dino": ("auto",),
    }[task.type]
    if task.loss not in losses:
        refuse("task.loss", task.loss, f"one of {', '.join(losses)} for task.type={task.type}")
    if task.class_weights != "none" and (task.type == "regression" or task.pretrains):
        refuse("task.class_weights", task.class_weights, f"none for task.type={task.type}")
    if task.activation != "softmax" and task.type != "segmentation":
        refuse("task.activation", task.activation, f"softmax for task.type={task.type}")
    if task.class_weights != "none" and (task.activation == "sigmoid" or task.loss == "generalized_dice"):
        refuse(
            "task.class_weights",
            task.class_weights,
            "none for task.activation=sigmoid and for task.loss=generalized_dice",
        )
    if task.classes != 2 and (
        task.type != "segmentation" and (task.type != "classification" or len(task.targets) != 1)
    ):
        refuse(
            "task.classes",
            task.classes,
            "2 (the default): other numbers are for segmentation and for classification of one of task.targets",
        )
    if task.type == "multilabel" and not task.targets:
        refuse("task.targets", task.targets, "at least one label for task.type=multilabel")
    if task.class_weights != "none" and task.loss == "asymmetric":
        refuse(
            "task.class_weights",
            task.class_weights,
            "none for task.loss=asymmetric, which weighs positives and negatives itself",
        )
    if task.label_smoothing and task.type != "multilabel":
        refuse("task.label_smoothing", task.label_smoothing, f"0 for task.type={task.type}")
    if task.type == "mae" and 2 * task.mask_cube > min(data.patch):
        refuse("task.mask_cube", task.mask_cube, f"at most half of the shortest axis of data.patch={show(data.patch)}")


def _check_training(config, refuse):
    task, train, optim = config.task, config.train, config.optim
    if config.finetune.strategy in ("gradual", "stagewise") and config.finetune.unfreeze_epoch > train.epochs:
        refuse("finetune.unfreeze_epoch", config.finetune.unfreeze_epoch, f"at most train.epochs={train.epochs}")
    if config.finetune.strategy == "head_only" and config.weights.path is None:
        refuse(
            "finetune.strategy",
            "head_only",
            "full or gradual while weights.path is none: a random encoder would stay random",
        )
    if train.balanced and task.type != "classification":
        refuse("train.balanced", train.balanced, f"false for task.type={task.type}")
    if train.balanced and len(task.targets) > 1:
        refuse(
            "train.balanced",
            train.balanced,
            "false with several task.targets: their classes cannot all be drawn equally often",
        )
    if train.ema >= 1:
        refuse("train.ema", train.ema, "less than 1")
    if max(optim.betas) >= 1:
        refuse("optim.betas", optim.betas, "numbers less than 1")
    if optim.min_lr > optim.lr:
        refuse("optim.min_lr", optim.min_lr, f"at most optim.lr={show(optim.lr)}")
    if optim.warmup_epochs > train.epochs:
        refuse("optim.warmup_epochs", optim.warmup_epochs, f"at most train.epochs={train.epochs}")
    if train.micro_batch and train.batch_size % train.micro_batch:
        refuse("train.micro_batch", train.micro_batch, f"a divisor of train.batch_size={train.batch_size}")
    if config.augment.mix != "none" and task.type not in ("classification", "multilabel"):
        refuse("augment.mix", config.augment.mix, f"none for task.type={task.type}")
    if config.augment.mix != "none" and train.batch_size < 2:
        refuse(
            "train.batch_size",
            train.batch_size,
            f"at least 2 for augment.mix={config.augment.mix}: a sample is mixed with another of its batch",
        )
    if train.checkpoint is not None and train.mode != "evaluate":
        refuse(
            "train.checkpoint",
            train.checkpoint,
            f"none for train.mode={train.mode}: weights.path is what training starts from",
        )
    if train.checkpoint is not None and config.weights.path is not None:
        refuse("weights.path", config.weights.path, "none beside train.checkpoint: one of them is what is evaluated")


def _check_folds(config, refuse):
    data, task, train, cv = config.data, config.task, config.train, config.cv
    if len(set(cv.folds_to_run)) != len(cv.folds_to_run):
        refuse("cv.folds_to_run", cv.folds_to_run, "each fold once")
    if cv.kind == "kfold" and any(fold > cv.folds for fold in cv.folds_to_run):
        refuse("cv.folds_to_run", cv.folds_to_run, f"folds from 1 to cv.folds={cv.folds}")
    if data.train_folds or data.val_folds:
        if not data.test_folds and not task.pretrains:
            refuse("data.test_folds", (), "the folds to test on, beside data.train_folds and data.val_folds")
    parts = [fold for part in (data.train_folds, data.val_folds, data.test_folds) for fold in part]
    if len(set(parts)) != len(parts):
        refuse("data.{train,val,test}_folds", tuple(parts), "each fold in one part")
    if cv.kind == "leave_one_group_out" and data.groups is None:
        refuse("data.groups", None, "a CSV with the columns subject,group for cv.kind=leave_one_group_out")
    if cv.final == "soup" and config.weights.path is None:
        refuse(
            "cv.final",
            "soup",
            "ensemble or refit while weights.path is none: networks without a common start cannot be averaged",
        )
    if cv.final != "none" and train.mode == "evaluate":
        refuse("cv.final", cv.final, "none for train.mode=evaluate, which makes no model")


def _check_evaluation(evaluation, task, refuse):
    if len(set(evaluation.mirror_axes)) != len(evaluation.mirror_axes):
        refuse("eval.mirror_axes", evaluation.mirror_axes, "each axis once")
    if evaluation.postprocess != "none" and task.type != "segmentation":
        refuse("eval.postprocess", evaluation.postprocess, f"none for task.type={task.type}")
    if evaluation.saliency and task.type not in ("classification", "multilabel"):
        refuse("eval.saliency", evaluation.saliency, f"0 for task.type={task.type}")


def _check_pretraining(config, refuse):
    for name, value, wanted in (
        ("data.test_folds", config.data.test_folds, ()),
        ("eval.mirror_axes", config.eval.mirror_axes, ()),
        ("cv.final", config.cv.final, "none"),
    ):
        if value != wanted:
            refuse(name, value, f"{show(wanted)} for task.type={config.task.type}: pretraining tests nothing")


def _check_dino(config, refuse):
    task = config.task
    for name, size in (("task.global_size", task.global_size), ("task.local_size", task.local_size)):
        if any(n < 16 or n % 16 for n in size) or set(size) == {16}:
            refuse(name, size, "multiples of 16, at least one of them 32 (the network halves each axis four times)")
    for name, scale in (("task.global_scale", task.global_scale), ("task.local_scale", task.local_scale)):
        if scale[0] > scale[1]:
            refuse(name, scale, "the lower one first")
    if config.finetune.strategy != "full":
        refuse("finetune.strategy", config.finetune.strategy, "full for task.type=dino: nothing is fine-tuned")
    if config.train.ema:
        refuse("train.ema", config.train.ema, "0 for task.type=dino: the teacher is the average")
    if config.train.patience is not None:
        refuse("train.patience", config.train.patience, "none for task.type=dino: a lower loss is not a better network")


def _check_source(data, task, refuse):
    if data.source == "table" and data.csv is None:
        refuse("data.csv", None, "the table of the cases, for example data.csv=/data/table.csv")
    if data.source == "volumes" and data.csv is None and data.root is None:
        refuse("data.root", None, "the folder of the scans, or their list as data.csv")
    if data.source == "slices":
        _check_slices(data, task, refuse)
    for name, value, plain in (
        ("data.labels_csv", data.labels_csv, None),
        ("data.missing_labels", data.missing_labels, "error"),
        ("data.neighbours", data.neighbours, 0),
    ):
        if value != plain and data.source != "slices":
            refuse(name, value, f"another value for data.source={data.source}: it is for slices")
    if data.normalize == "imagenet" and data.source != "slices":
        refuse("data.normalize", "imagenet", f"another value for data.source={data.source}: it is for slices")
    if data.source.startswith("fomo") and data.root is None:
        refuse(
            "data.root", None, f"the folder of the {data.source} data set, for example data.root=/data/{data.source}"
        )
    if data.source not in ("table", "volumes", "slices") and data.csv is not None:
        refuse("data.csv", data.csv, f"none for data.source={data.source}")
    if data.source == "volumes" and len(data.channels) != 1:
        refuse(
            "data.channels", data.channels, "one name for data.source=volumes, for example [mri]: each scan is a case"
        )
    if data.source == "volumes" and not task.pretrains:
        refuse("data.source", "volumes", f"a source with labels for task.type={task.type}, for example table")
    if data.source == "table" or (data.source == "phantom" and data.phantom_layout == "table"):
        wanted = {
            "classification": ("at least one column", len(task.targets) > 0),
            "multilabel": ("at least one column", len(task.targets) > 0),
            "regression": ("one column", len(task.targets) == 1),
            "segmentation": ("none: the mask is learned", not task.targets),
            "mae": ("none: no labels are used", not task.targets),
            "dino": ("at most one column, for the probe", len(task.targets) < 2),
        }
        text, met = wanted[task.type]
        if not met:
            refuse("task.targets", task.targets, f"{text} (task.type={task.type}, columns of the table)")
    elif task.targets and data.source != "slices":
        refuse("task.targets", task.targets, f"none for data.source={data.source}: its layout says what is learned")
    if len({name.replace(" ", "_") for name in task.targets}) != len(task.targets):
        refuse(
            "task.targets",
            task.targets,
            "each column once, of a name of its own ('_' is like a blank: results are named by it)",
        )


def _check_slices(data, task, refuse):
    count = len(data.channels)
    if data.csv is None:
        refuse("data.csv", None, "the table of the slices, for example data.csv=slices/splits/train_slices.csv")
    if task.type != "multilabel":
        refuse("task.type", task.type, "multilabel for data.source=slices")
    if not task.targets:
        refuse("task.targets", (), "the columns of the labels that are learned, for example [Cardiomegaly, Emphysema]")
    if data.normalize not in ("none", "imagenet"):
        refuse(
            "data.normalize",
            data.normalize,
            "none or imagenet for data.source=slices: they were windowed when they were extracted",
        )
    if data.patch[2] != 1:
        refuse("data.patch", data.patch, "[x, y, 1], the pixels of a slice, for data.source=slices")
    if data.neighbours and count != 2 * data.neighbours + 1:
        refuse(
            "data.channels",
            data.channels,
            f"{2 * data.neighbours + 1} names for data.neighbours={data.neighbours}, from below to above",
        )
    if not data.neighbours and count not in (1, 3):
        refuse("data.channels", data.channels, "one name, or three (the slice three times), for data.neighbours=0")
