"""The top of the page: the headline, what it means in one sentence, and what to know before the numbers."""

import math

from ..config import length
from ..pages import page
from ..pages.page import label, number, tag
from ..run_folder import LOG
from . import covers
from .search_page import tried

_MOST = 12  # messages of the log


def headline(run):
    if not run.metrics:
        several, one = "No fold is finished yet: there are no test results.", "Not finished: there are no results yet."
        return tag("div", tag("p", several if len(run.splits) > 1 else one), class_="hero")
    view = run.task.view
    found, low, high = run.with_interval(run.estimate)
    value = [tag("div", label(run.estimate) + view.unit(run), class_="label")]
    value.append(tag("div", number(found, 3), class_="value", id="headline", data_value=repr(found)))
    if not math.isnan(low):
        value.append(tag("div", f"95% interval {page.interval(low, high, 3)}", class_="label"))
    if run.estimate != run.headline:
        pooled, low, high = run.with_interval(run.headline)
        limits = f" ({page.interval(low, high, 3)})" if not math.isnan(low) else ""
        value.append(tag("div", f"over all pairs of cases: {number(pooled, 3)}{limits}", class_="label"))
    value += [tag("div", text, class_="label") for text in view.beside(run)]
    how = "All cases together, each predicted by a model that was not trained, and not selected, on its subject."
    if run.task.pretrains:
        how = "On the validation cases, which have also chosen the epoch: a little better than on new cases."
    elif not run.complete:
        how = f"Provisional: {len(run.finished)} of {len(run.splits)} folds. {how}"
    if any(not math.isnan(facts.get("pooled_low", math.nan)) for facts in run.metrics.values()):
        how += f" {covers.of_run(run)}"
    said = tag("div", [tag("p", tag("b", view.verdict(run))), tag("p", how, class_="note"), *_worst(run)], class_="say")
    return tag("div", [tag("div", value), said], class_="hero")


def _worst(run):
    """What images of another scanner cost most, by the stress test of the run; [] without one."""
    found = run.folder.stressed() if run.complete else None
    if found is None:
        return []
    said = []
    for row in found["worst"]:
        change = found["changes"][row["change"]]
        limits = "" if row["low"] is None else f", 95% interval {page.interval(row['low'], row['high'], 3)}"
        at = f"{change['title']} at {number(row['grade'], 3)} ({change['unit']})"
        said.append(f"{at}: {label(row['metric'])} {number(row['changed'], 3)} (drop {number(row['drop'], 3)}{limits})")
    if not said:
        return [tag("p", "Images of another scanner: no change of the stress test costs anything.")]
    link = tag("a", "Images of another scanner", href="stress/stress.html")
    return [tag("p", [link, f" cost most by: {'; '.join(said)}."])]


def alerts(run):
    """Folds that are open, warnings and errors of the log, and what the task has to say of its numbers."""
    messages = _logged([event for event in run.log if not _is_over(event, run)])
    more = [f"and {len(messages) - _MOST} more in {LOG}"] if len(messages) > _MOST else []
    notes = run.task.view.notes(run) if run.metrics else []
    notes += [tried(run.settings_tried, len(run.splits) == 1)] if run.settings_tried else []
    return page.alert(_open_folds(run) + messages[:_MOST] + more + notes)


def progress(run):
    """Of a run that is not finished: up to when the page knows it, and a button that loads the page again."""
    if run.complete:
        return None
    at = f"This page is from {run.log[-1]['time'].replace('T', ' ')}." if run.log else ""
    when = f"It is written again when a fold has ended, and by python tools/report.py {run.folder.path}:"
    how = f"In progress. {at} {when} "
    button = tag("button", "reload this page", type="button", class_="reload")
    return tag("p", [how, button], class_="progress")


def _open_folds(run):
    if run.complete:
        return []
    left = [n for n in range(1, len(run.splits) + 1) if n not in run.finished]
    epochs, most = {n: len(run.histories[n]) for n in left if n in run.histories}, length(run.config.train)
    begun = "; ".join(
        f"fold {n} after epoch {epoch} of {most.removesuffix('s').removesuffix(' epoch')}"
        for n, epoch in epochs.items()
    )
    which = f"fold {left[0]} is" if len(left) == 1 else f"folds {', '.join(map(str, left))} are"
    return [f"The run is not finished: {which} open{f' ({begun})' if begun else ''}."]


def _is_over(event, run):
    """Whether a warning of answers that hardly vary is of a fold whose answers came to vary later."""
    history = run.histories.get(int(event["fold"])) if "val_spread" in event and "fold" in event else None
    return event["level"] == "WARN" and bool(history) and float(history[-1].get("val_spread") or 0) >= run.task.flat


def _logged(log):
    found = []
    for event in log:
        if event["level"] != "INFO":
            pairs = [f"{key}={value}" for key, value in event.items() if key in ("fold", "case", "cases", "of", "keys")]
            found.append(event.get("message", event["event"]) + (f" ({' '.join(pairs)})" if pairs else ""))
    return list(dict.fromkeys(found))
