"""What a run of several tasks shows: of each part what its own view shows, under its name."""

import functools

from ...pages import page
from ...pages.figures.epochs import curves
from ...pages.page import label, tag
from ..results import Results
from .view import View


def row_of(name, row):
    """A row as the task of a part knows it."""
    shared = {key: row[key] for key in ("id", "subject", "fold", "missing") if key in row}
    start = f"{name}_"
    return {**shared, **{key.removeprefix(start): value for key, value in row.items() if key.startswith(start)}}


class PartOfRun:
    """The report's Run as the view of a part reads it."""

    def __init__(self, run, part, task):
        self._run, self.task, self.config = run, task, task.config
        start = f"{part.name}_"
        self.metrics = {key.removeprefix(start): one for key, one in run.metrics.items() if key.startswith(start)}
        self.rows = [row_of(part.name, row) for row in run.rows]
        self.results, self.scans, self.units = Results(self.rows), [], self.rows
        self.headline = self.estimate = task.select
        self.classes = task.class_names(part.recorded(run.recorded["cases"]))

    def __getattr__(self, name):
        return getattr(self._run, name)

    def value(self, metric):
        return self.metrics[metric]["pooled"]

    def with_interval(self, metric):
        limits = (self.metrics[metric].get(f"pooled_{end}", float("nan")) for end in ("low", "high"))
        return self.value(metric), *limits


def of_parts(multitask):
    """The View of a Multitask."""
    pairs = [(part, multitask.tasks[part.name]) for part in multitask.parts]

    def each(run):
        return [(part.name, task.view, PartOfRun(run, part, task)) for part, task in pairs]

    def results(run):
        return _headed((name, view.results(own)) for name, view, own in each(run))

    def pictures(run):
        return _headed((f"{name}: {view.title.lower()}", view.pictures(own)) for name, view, own in each(run))

    def tables(run):
        return _headed((name, view.tables(own)) for name, view, own in each(run))

    def notes(run):
        return [f"{name}: {text}" for name, view, own in each(run) for text in view.notes(own)]

    def verdict(run):
        return " ".join(f"{page.capital(name)}: {view.verdict(own)}" for name, view, own in each(run))

    def beside(run):
        return [f"{name}: {text}" for name, view, own in each(run) for text in view.beside(own)]

    def of_epochs(run, options):
        for part, task in pairs[1:]:
            metric = f"{part.name}_{task.select}"
            drawn = curves(run.histories, [(f"val_{metric}", "-", "")], label(metric), **options, metric=metric)
            yield page.figure(drawn, f"{page.capital(part.name)}.", "On the inner validation cases.")

    def ranked(run):
        found = {}
        for name, view, own in each(run):
            found |= {f"{name}_{metric}": one for metric, one in view.ranked(own).items()}
        return found

    return View(
        title="The parts",
        verdict=verdict,
        unit=lambda run: pairs[0][1].view.unit(each(run)[0][2]),
        beside=beside,
        results=results,
        main=lambda metric: any(_is_main(part, task, metric) for part, task in pairs),
        notes=notes,
        curves=lambda run, options: list(of_epochs(run, options)),
        tables=tables,
        pictures=pictures,
        truth=lambda row: [task.view.truth(row_of(part.name, row)) for part, task in pairs],
        per_case=_per_case(pairs),
        ranked=ranked,
    )


def _headed(found):
    """Parts of the page, each below the name of what it is of; those that are empty are left out."""
    parts = []
    for title, body in found:
        parts += [tag("h3", page.capital(title)), *body] if body else []
    return parts


def _is_main(part, task, metric):
    start = f"{part.name}_"
    return metric.startswith(start) and task.view.main(metric.removeprefix(start))


def _per_case(pairs):
    found = {}
    for part, task in pairs:
        for metric, (value_of, higher, words) in task.view.per_case.items():
            of_row = functools.partial(_of_row, value_of, part.name)
            found[f"{part.name}_{metric}"] = (of_row, higher, f"{part.name}: {words}")
    return found


def _of_row(value_of, name, row):
    return value_of(row_of(name, row))
