"""The parts of a run's page, from top to bottom, but for what its task shows of the cases."""

import math
import os

from .. import config as config_module
from .. import metrics
from ..pages import figures, page
from ..pages.figures.epochs import FOLDS, curves, fold_colour
from ..pages.page import label, number, tag
from ..run_folder import AGGREGATED, SUMMARY, TABLES
from . import head, shortcuts
from . import run as run_module
from .browser import browser
from .cohort import cohort

_COUNTS = ("tp", "fp", "fn", "tn", "empty_predictions")  # whose mean over folds says nothing
_LONGEST = 2000  # rows of a table that a browser still sorts at once


def of_run(run):
    """The page of a run."""
    view, show = run.task.view, figures.available()
    parts = [("results", "Results", results(run))] if run.metrics else []
    about_shortcuts = shortcuts.section(run)
    parts += [("shortcuts", "Shortcuts", about_shortcuts)] if about_shortcuts else []
    parts += [("training", "Training", training(run, show))] if run.histories else []
    if run.rows:
        body = view.pictures(run) if show else [page.note(figures.MISSING), *view.tables(run)]
        parts += [("pictures", view.title, body)] if body else []
        rest = sum(len(page.join(body).text) for _, _, body in parts)
        parts.append(("cases", "Cases", case_section(run, show, rest)))
    about_cases = cohort(run)
    parts += [("cohort", "Cohort", [about_cases])] if about_cases else []
    parts.append(("about", "What was run", about(run)))
    links = [tag("a", title, href=f"#{anchor}") for anchor, title, _ in parts]
    about_it = [tag("h1", run.config.name), tag("p", _subtitle(run), class_="sub"), tag("p", _what(run), class_="sub")]
    content = [tag("header", about_it), head.progress(run), head.headline(run), head.alerts(run)]
    content.append(tag("nav", links, aria_label="on this page"))
    content += [page.section(title, body, anchor) for anchor, title, body in parts]
    same = f"the same numbers are in {SUMMARY}, {AGGREGATED} and {TABLES['rows']}."
    content.append(tag("footer", f"Written by tools/report.py; {same}"))
    return page.document(f"{run.config.name}: {run.config.task.type}", content)


def _subtitle(run):
    one_split = len(run.splits) == 1
    folds = f"{len(run.finished)} of {len(run.splits)} folds finished"
    found = f"{run.config.task.type} · {('finished' if run.finished else 'not finished') if one_split else folds}"
    if not run.rows:
        return found
    cases = f"{len(run.rows)} {run.cases if one_split else 'cases'}"
    cases = f"{len(run.scans)} scans, {len(run.rows)} slices," if run.scans else cases
    return f"{found} · {cases} of {len({row['subject'] for row in run.rows})} subjects"


def _what(run):
    """The run in one line; all of it stands at the end of the page."""
    config, start = run.config, run.start
    parts = [config.model.name, os.path.basename(config.weights.path or "random weights")]
    parts += [] if run.task.pretrains else [config.finetune.strategy]
    parts.append(f"{config.data.source}: {', '.join(config.data.channels)}")
    if start:
        parts += [f"{start['ranks']}\u00a0×\u00a0{start['device']}", f"code\u00a0{start['code']}"]
    return " · ".join(parts + [_duration(run)] * bool(run.log))


def results(run):
    """The tables of the metrics: the main ones, the others, and those of each fold."""
    beside = {metric + ending for metric in run.metrics for ending in metrics.COUNTS}  # what the metric leaves out
    shown = [metric for metric in run.metrics if metric not in beside]
    main = [metric for metric in shown if run.task.view.main(metric)]
    others = [metric for metric in shown if metric not in main]
    left_out = any(_left_out(run, metric) for metric in shown)
    # a run that is not finished has no means
    over_folds = len(run.splits) > 1 and any("mean" in facts for facts in run.metrics.values())
    columns = ["metric", "all cases", "95% interval", *["cases left out"] * left_out]
    columns += ["mean of folds", "SD of folds"] * over_folds

    def line(metric):
        value, low, high = run.with_interval(metric)
        cells = [label(metric), value, page.interval_cell(low, high), *[_left_out(run, metric)] * left_out]
        return cells + (_over_folds(run, metric) if over_folds else [])

    caption = f"All {run.cases} together with the interval over subjects"
    caption += "; beside it the folds' mean and SD" if over_folds else ""
    classes = ["main" if metric == run.headline else None for metric in main]
    rest = page.table(columns, [*map(line, others)], f"Other metrics of all {run.cases} together")
    return [
        page.table(columns, [*map(line, main)], caption, row_classes=classes),
        *run.task.view.results(run),
        page.details(f"{len(others)} more metrics", rest) if others else None,
        page.details("Each fold", _folds(run)) if len(run.splits) > 1 else None,
    ]


def _over_folds(run, metric):
    """Mean and SD over the folds; empty cells for counts, whose mean says nothing, and for what needs several folds."""
    if metric in _COUNTS or metric.endswith((*metrics.COUNTS, metrics.WITHIN)):
        return [None] * 2
    return [run.metrics[metric][name] for name in ("mean", "std")]


def _folds(run):
    beside = [name for row in run.fold_scores for name in row if name not in ("fold", "cases")]  # as views_gain
    own = [name for name in dict.fromkeys([*run.metrics, *beside]) if not name.endswith(metrics.WITHIN)]
    rows = [[f"fold {row['fold']}", *(row.get(name, math.nan) for name in ("cases", *own))] for row in run.fold_scores]
    return page.table(["fold", "cases", *map(label, own)], rows, "Test metrics of each fold")


def _left_out(run, metric):
    """What a metric's mean over the cases leaves out: "2 infinite"."""
    endings = [ending for ending in metrics.COUNTS if metric + ending in run.metrics]
    return ", ".join(f"{number(run.value(metric + ending))} {ending[1:]}" for ending in endings)


def training(run, show):
    """show: whether curves can be drawn."""
    parts = _curves(run) if show else [page.note(figures.MISSING)]
    name, rows = f"val_{run.headline}", []
    for fold, history in run.histories.items():
        best, last, wait = run.best_row(fold) or {}, history[-1], run_module.data_wait(run.log, fold)
        selected = (best.get(column, math.nan) for column in ("epoch", name))
        waited = page.Cell("not logged" if math.isnan(wait) else f"{number(100 * wait, 2)} %", wait)
        rows.append([f"fold {fold}", len(history), *selected, last["train_loss"], last["val_loss"], waited])
    columns = ["fold", "epochs", "selected epoch", label(name), "last training loss", "last validation loss"]
    caption, lines = "Training of each fold", [[*columns, "waiting for data"], *rows]
    if len(run.splits) == 1:
        caption, lines = "Training", [line[1:] for line in lines]
    caption += "; waiting for data: share of the training steps' time"
    return [*parts, page.table(lines[0], lines[1:], caption)]


def _curves(run):
    finetune, histories, name = run.config.finetune, run.histories, f"val_{run.headline}"
    best = {fold: row["epoch"] for fold in histories if (row := run.best_row(fold))}
    begun = max(map(len, histories.values())) >= finetune.unfreeze_epoch
    unfreeze = (
        finetune.unfreeze_epoch if finetune.strategy in ("gradual", "decoder_first", "stagewise") and begun else None
    )
    options = {"best": best, "unfreeze": unfreeze}
    losses = curves(histories, [("train_loss", "--", "training"), ("val_loss", "-", "validation")], "loss", **options)
    shown, last_step = [page.figure(losses, "Loss.", "Dots: the selected epochs.")], "At each epoch's last step"
    if not run.task.pretrains:  # whose metric is the loss
        curve = curves(histories, [(name, "-", "")], label(name), **options, metric=run.headline)
        text = "On the inner validation cases, which select the epoch."
        shown.append(page.figure(curve, f"{page.capital(label(name))}.", text))
        last_step += ", of the head"
    rates = curves(histories, [("lr", "-", "")], "learning rate", best={}, small=True)
    shown += [
        *run.task.view.curves(run, options),
        page.figure(rates, "Learning rate.", f"{last_step}.", class_="small"),
    ]
    return [_fold_legend(histories) if len(run.splits) > 1 else None, page.grid(shown)]


def _fold_legend(histories):
    count = len(histories)
    if count > len(FOLDS):
        return page.note(f"Each line is one of {count} folds.")
    return page.legend([(f"fold {fold}", f"border-color:{fold_colour(i, count)}") for i, fold in enumerate(histories)])


def case_section(run, show, rest):
    """show: whether there can be pictures. rest: characters of the rest of the page."""
    columns, rows, warned = run.task.view.cases(run)
    rows, slices = browser(run, columns, rows, rest) if show else (rows, [])
    if len(run.splits) == 1:
        columns, *rows = (row[:-1] for row in [columns, *rows])  # the fold
    caption = ", ".join(filter(None, (f"Every {run.cases.removesuffix('s')}", run.task.view.order)))
    caption += "" if run.task.pretrains else f"; {len(warned)} of {len(rows)} with a warning"
    if len(rows) > _LONGEST:
        caption += f"; of them the first {_LONGEST}, all are in {TABLES['rows']}"
    table = page.table(columns, rows[:_LONGEST], caption, sortable=True)
    return [tag("div", table, id="the-cases"), tag("div", page.join(slices), class_="browse") if slices else None]


def about(run):
    config, data, start = run.config, run.config.data, run.start
    replaced = ", ".join(config.augment.parameters or ())  # transforms with other values than the preset's
    spacing = "each case's own" if data.spacing_mm is None else f"{' × '.join(f'{mm:g}' for mm in data.spacing_mm)} mm"
    pairs = [
        ("data", f"{data.source}, {data.root}" if data.root else data.source),
        ("channels", ", ".join(data.channels)),
        ("voxel size", spacing),
        ("patch", f"{' × '.join(map(str, data.patch))} voxels"),
        ("network", config.model.name + (f", width {config.model.width}" if config.model.width else "")),
        ("pretrained weights", config.weights.path or "none"),
        ("fine-tuning", None if run.task.pretrains else config.finetune.strategy),
        ("learning rate", f"{config_module.show(config.optim.lr)}, {config.optim.schedule}"),
        ("length", config_module.length(config.train) + _patience(config.train.patience)),
        ("batch", f"{config.train.batch_size}"),
        ("augmentation", config.augment.preset + (f", with {replaced}" if replaced else "")),
        ("settings tried", f"{run.settings_tried}, see search/search.html" if run.settings_tried else None),
        ("folds", f"{len(run.splits)}, {config.cv.kind}" if len(run.splits) > 1 else "one split"),
        ("seed", str(config.seed)),
        ("devices", f"{start['ranks']} × {start['device']}" if start else None),
        ("duration", _duration(run)),
        ("code", f"{start['code']}, torch {start['torch']}" if start else None),
        ("last started", start.get("time")),
    ]
    lines = "\n".join(f"{name}: {config_module.show(value)}" for name, _, value in config_module.fields(config))
    return [page.definitions(pairs), page.details("Every key of the config", tag("pre", lines, tabindex=0))]


def _patience(epochs):
    return "" if epochs is None else f" at most: {epochs} without a better loss end it"


def _duration(run):
    """How long the run has taken, in words; None where no log says it."""
    seconds = run_module.duration_s(run.log)
    if math.isnan(seconds):
        return None
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
