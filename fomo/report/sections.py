"""The parts of report.html, from top to bottom, but for what each task shows of its cases."""

import math
import os

from .. import config as config_module
from .. import metrics
from ..pages import figures, page
from ..pages.figures.training import FOLDS, curves, fold_colour
from ..pages.page import label, number, tag
from ..tasks import views
from . import head
from . import run as run_module


def of_run(run, listed=None):
    """The page of a run; listed: its sources.Case list, if at hand."""
    view, show = views.of(run), figures.available()
    parts = [("results", "Results", results(run))] if run.metrics else []
    parts += [("training", "Training", training(run, show))] if run.histories else []
    if run.rows:
        body = view.pictures(run, listed) if show else [page.note(figures.MISSING), *view.tables(run)]
        parts += [("pictures", view.title, body)] if body else []
        parts.append(("cases", "Cases", case_table(run)))
    parts.append(("about", "What was run", about(run)))
    links = [tag("a", title, href=f"#{anchor}") for anchor, title, _ in parts]
    about_it = [tag("h1", run.config.name), tag("p", _subtitle(run), class_="sub"), tag("p", _what(run), class_="sub")]
    content = [
        tag("header", about_it),
        head.headline(run),
        head.alerts(run),
        tag("nav", links, aria_label="on this page"),
        *(page.section(title, body, anchor) for anchor, title, body in parts),
        _footer(),
    ]
    return page.document(f"{run.config.name}: {run.config.task.type}", content)


def _subtitle(run):
    subjects = len({row["subject"] for row in run.rows})
    folds = f"{len(run.finished)} of {len(run.splits)} folds finished"
    one_split = "finished" if run.finished else "not finished"
    found = f"{run.config.task.type} · {folds if len(run.splits) > 1 else one_split}"
    cases = run.cases if len(run.splits) == 1 else "cases"
    count = f"{len(run.volumes)} scans, {len(run.rows)} slices," if run.volumes else f"{len(run.rows)} {cases}"
    return found + (f" · {count} of {subjects} subjects" if run.rows else "")


def _what(run):
    """The run in one line; all of it stands at the end of the page."""
    config, start, seconds = run.config, run_module.started(run.log), run_module.duration_s(run.log)
    weights = os.path.basename(config.weights.path) if config.weights.path else "random weights"
    parts = [
        config.model.name,
        weights,
        *([] if run.pretrains else [config.finetune.strategy]),
        f"{config.data.source}: {', '.join(config.data.channels)}",
    ]
    parts += [f"{start['ranks']}\u00a0×\u00a0{start['device']}", f"code\u00a0{start['code']}"] if start else []
    return " · ".join(parts + ([] if math.isnan(seconds) else [_duration(seconds)]))


def _footer():
    return tag(
        "footer",
        "Written by tools/report.py; the same numbers are in summary.json, aggregated_results.csv and predictions.csv.",
    )


# ---------------------------------------------------------------------------------------- results


def results(run):
    shown = [metric for metric in run.metrics if not _beside(run, metric)]
    left_out = any(_left_out(run, metric) for metric in shown)
    over_folds = len(run.splits) > 1 and any(
        "mean" in facts for facts in run.metrics.values()
    )  # not in provisional ones
    columns = ["metric", "all cases", "95% interval", *(["cases left out"] if left_out else [])]
    columns += ["mean of folds", "SD of folds", "95% interval of the mean"] if over_folds else []

    def line(metric):
        value, low, high = run.with_interval(metric)
        cells = [label(metric), value, page.interval_cell(low, high), *([_left_out(run, metric)] if left_out else [])]
        return cells + (_over_folds(run, metric) if over_folds else [])

    is_main = views.of(run).main
    main, others = (
        [metric for metric in shown if is_main(metric)],
        [line(metric) for metric in shown if not is_main(metric)],
    )
    caption = f"All {run.cases} together with the bootstrap interval over subjects"
    caption += "; beside it the folds' mean, SD and t-interval" if over_folds else ""
    classes = ["main" if metric == run.headline else "" for metric in main]
    rest = page.table(columns, others, f"Other metrics of all {run.cases} together")
    return [
        page.table(columns, [line(metric) for metric in main], caption, row_classes=classes),
        tag("details", [tag("summary", f"{len(others)} more metrics"), rest]) if others else None,
        tag("details", [tag("summary", "Each fold"), _folds(run)]) if len(run.splits) > 1 else None,
    ]


def _over_folds(run, metric):
    """Mean, SD and interval of the mean over the folds; empty cells for counts, whose mean says nothing."""
    if metric in _COUNTS or metric.endswith(metrics.COUNTS):
        return [None] * 3
    facts = run.metrics[metric]
    return [facts["mean"], facts["std"], page.interval_cell(facts["ci_low"], facts["ci_high"])]


def _folds(run):
    names = ("cases", *run.metrics)
    rows = [[f"fold {row['fold']}", *(row.get(name, math.nan) for name in names)] for row in run.fold_scores]
    return page.table(["fold", "cases", *map(label, run.metrics)], rows, "Test metrics of each fold")


def _beside(run, metric):
    """Whether it counts what another metric leaves out, and stands beside that."""
    return metric.endswith(metrics.COUNTS) and metric.rpartition("_")[0] in run.metrics


_COUNTS = ("tp", "fp", "fn", "tn", "empty_predictions")  # whose mean over folds says nothing


def _left_out(run, metric):
    """Of a metric's mean over cases: "2 infinite"."""
    counts = [
        (ending[1:], run.metrics[metric + ending]["pooled"])
        for ending in metrics.COUNTS
        if metric + ending in run.metrics
    ]
    return ", ".join(f"{number(count)} {why}" for why, count in counts)


def training(run, show):
    parts = _curves(run) if show else [page.note(figures.MISSING)]
    name = f"val_{run.headline}"
    rows = []
    for fold, history in run.histories.items():
        best, last, wait = run.best_row(fold) or {}, history[-1], run_module.data_wait(run.log, fold)
        selected = [best.get("epoch", math.nan), best.get(name, math.nan)]
        waited = page.Cell("not logged" if math.isnan(wait) else f"{number(100 * wait, 2)} %", wait)
        rows.append([f"fold {fold}", len(history), *selected, last["train_loss"], last["val_loss"], waited])
    columns = [
        "fold",
        "epochs",
        "selected epoch",
        label(name),
        "last training loss",
        "last validation loss",
        "waiting for data",
    ]
    what = "Training of each fold"
    if len(run.splits) == 1:
        what, columns, rows = "Training", columns[1:], [row[1:] for row in rows]
    return [*parts, page.table(columns, rows, f"{what}; waiting for data: share of the training steps' time")]


def _curves(run):
    finetune, histories, name = run.config.finetune, run.histories, f"val_{run.headline}"
    best = {fold: row["epoch"] for fold in histories if (row := run.best_row(fold))}
    begun = max(map(len, histories.values())) >= finetune.unfreeze_epoch
    unfreeze = finetune.unfreeze_epoch if finetune.strategy in ("gradual", "stagewise") and begun else None
    options = {"best": best, "unfreeze": unfreeze}
    losses = curves(histories, [("train_loss", "--", "training"), ("val_loss", "-", "validation")], "loss", **options)
    rates = curves(histories, [("lr", "-", "")], "learning rate", best={}, unfreeze=unfreeze)
    last_step = "At each epoch's last step" + ("." if run.pretrains else ", of the head.")
    shown = [page.figure(losses, "Loss.", "Dots: the selected epochs.")]
    if not run.pretrains:  # whose metric is the loss
        curve = curves(histories, [(name, "-", "")], label(name), **options)
        text = "On the inner validation cases, which select the epoch."
        shown.append(page.figure(curve, f"{page.capital(label(name))}.", text))
    shown += [page.figure(rates, "Learning rate.", last_step), *views.of(run).curves(run, options)]
    return [_fold_legend(histories) if len(run.splits) > 1 else None, page.grid(shown)]


def _fold_legend(histories):
    if len(histories) > len(FOLDS):
        return page.note(f"Each line is one of {len(histories)} folds.")
    items = []
    for index, fold in enumerate(histories):
        swatch = tag("i", style=f"border-color:{fold_colour(index, len(histories))}")
        items.append(tag("li", [swatch, f"fold {fold}"]))
    return tag("ul", items, class_="legend")


def case_table(run):
    columns, rows, warned = views.of(run).cases(run)
    if len(run.splits) == 1:
        columns, *rows = (row[:-1] for row in [columns, *rows])  # the fold
    caption = f"Every {run.cases.removesuffix('s')}, worst first"
    caption += "" if run.pretrains else f"; {len(warned)} of {len(rows)} with a warning"
    if len(rows) > _LONGEST:
        caption += f"; of them the first {_LONGEST}, all are in predictions.csv"
    return [page.table(columns, rows[:_LONGEST], caption, sortable=True)]


_LONGEST = 2000  # rows of a table that a browser still sorts at once


# ------------------------------------------------------------------------------------------- about


def about(run):
    config, data = run.config, run.config.data
    start = run_module.started(run.log)
    seconds = run_module.duration_s(run.log)
    pairs = [
        ("data", f"{data.source}, {data.root}" if data.root else data.source),
        ("channels", ", ".join(data.channels)),
        (
            "voxel size",
            "each case's own" if data.spacing_mm is None else f"{' × '.join(f'{mm:g}' for mm in data.spacing_mm)} mm",
        ),
        ("patch", f"{' × '.join(map(str, data.patch))} voxels"),
        ("network", config.model.name + (f", width {config.model.width}" if config.model.width else "")),
        ("pretrained weights", config.weights.path or "none"),
        ("fine-tuning", None if run.pretrains else config.finetune.strategy),
        ("learning rate", f"{config.optim.lr:g}, {config.optim.schedule}"),
        ("epochs", f"at most {config.train.epochs}, patience {config_module.show(config.train.patience).lower()}"),
        ("batch", f"{config.train.batch_size}"),
        ("augmentation", config.augment.preset),
        ("folds", f"{len(run.splits)}, {config.cv.kind}" if len(run.splits) > 1 else "one split"),
        ("seed", str(config.seed)),
        ("devices", f"{start['ranks']} × {start['device']}" if start else None),
        ("duration", None if math.isnan(seconds) else _duration(seconds)),
        ("code", f"{start['code']}, torch {start['torch']}" if start else None),
        ("last started", start.get("time")),
    ]
    lines = "\n".join(f"{name}: {config_module.show(value)}" for name, _, value in config_module.fields(config))
    return [
        page.definitions(pairs),
        tag("details", [tag("summary", "Every key of the config"), tag("pre", lines, tabindex=0)]),
    ]


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
