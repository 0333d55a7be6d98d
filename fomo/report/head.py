"""The top of the page: the headline, what it means in one sentence, and what to know before the numbers."""

import math

from ..pages import page
from ..pages.page import label, number, tag
from ..tasks import views


def headline(run):
    if not run.metrics:
        several, one = "No fold is finished yet: there are no test results.", "Not finished: there are no results yet."
        return tag("div", tag("p", several if len(run.splits) > 1 else one), class_="hero")
    view = views.of(run)
    found, low, high = run.with_interval(run.headline)
    value = [
        tag("div", label(run.headline) + view.unit(run), class_="label"),
        tag("div", number(found, 3), class_="value", id="headline", data_value=repr(found)),
    ]
    if not math.isnan(low):
        value.append(tag("div", f"95% interval {page.interval(low, high, 3)}", class_="label"))
    how = "All cases together, each predicted by a model that was not trained, and not selected, on its subject."
    if run.pretrains:
        how = "On the validation cases, which have also chosen the epoch: a little better than on new cases."
    elif not run.complete:
        how = f"Provisional: {len(run.finished)} of {len(run.splits)} folds. {how}"
    return tag(
        "div",
        [
            tag("div", value),
            tag("div", [tag("p", tag("b", view.verdict(run))), tag("p", how, class_="note")], class_="say"),
        ],
        class_="hero",
    )


def alerts(run):
    """Folds that are open, warnings and errors of the log, and what the task has to say of its numbers."""
    found = []
    if not run.complete:
        open_folds = [n for n in range(1, len(run.splits) + 1) if n not in run.finished]
        begun = [
            f"fold {n} after epoch {len(run.histories[n])} of {run.config.train.epochs}"
            for n in open_folds
            if n in run.histories
        ]
        which = f"fold {open_folds[0]} is" if len(open_folds) == 1 else f"folds {', '.join(map(str, open_folds))} are"
        found.append(f"The run is not finished: {which} open" + (f" ({'; '.join(begun)})." if begun else "."))
    seen = {}
    for event in run.log:
        if event["level"] != "INFO":
            details = " ".join(
                f"{key}={value}" for key, value in event.items() if key in ("fold", "case", "cases", "of")
            )
            seen[f"{event.get('message', event['event'])}{f' ({details})' if details else ''}"] = None
    found += list(seen)[:12] + ([f"and {len(seen) - 12} more in log.txt"] if len(seen) > 12 else [])
    return page.alert(found + (views.of(run).notes(run) if run.metrics else []))
