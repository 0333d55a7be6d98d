"""The top of the page: the headline, what it means in one sentence, and what to know before the numbers."""

import math

import numpy as np

from .. import metrics
from . import page, pictures
from .page import label, number, tag


def headline(run):
    if not run.metrics:
        return page.tag("div", tag("p", "No fold is finished yet: there are no test results."), class_="hero")
    facts = run.metrics[run.headline]
    low, high = facts.get("pooled_low", math.nan), facts.get("pooled_high", math.nan)
    unit = " (years)" if run.config.task.type == "regression" and "years" in pictures.target_name(run) else ""
    value = [
        tag("div", label(run.headline) + unit, class_="label"),
        tag("div", number(facts["pooled"], 3), class_="value", id="headline", data_value=repr(facts["pooled"])),
    ]
    if not math.isnan(low):
        value.append(tag("div", f"95% interval {page.interval(low, high, 3)}", class_="label"))
    how = "All cases together, each predicted by a model that was not trained, and not selected, on its subject."
    if not run.complete:
        how = f"Provisional: {len(run.finished)} of {len(run.splits)} folds. {how}"
    return tag(
        "div",
        [tag("div", value), tag("div", [tag("p", tag("b", verdict(run))), tag("p", how, class_="note")], class_="say")],
        class_="hero",
    )


def verdict(run):
    """One plain sentence: the headline against chance, predicting the mean, or predicting nothing."""
    return {"classification": _against_chance, "regression": _against_the_mean, "segmentation": _against_nothing}[
        run.config.task.type
    ](run)


def _against_chance(run):
    facts = run.metrics["auroc"]
    low, high = facts.get("pooled_low", math.nan), facts.get("pooled_high", math.nan)
    if math.isnan(facts["pooled"]):
        return "The AUROC is undefined: the finished folds have cases of one class only."
    if math.isnan(low):
        return "Chance is 0.5; without an interval it cannot be said whether this differs from it."
    if low > 0.5:
        return "Better than chance (0.5): the whole interval lies above it."
    if high < 0.5:
        return "Worse than chance (0.5): the whole interval lies below it; check the labels."
    return "Not shown to be better than chance: the interval contains 0.5."


def _against_the_mean(run):
    targets, predictions, means = (
        np.array([row[name] for row in run.rows]) for name in ("target", "prediction", "training_mean")
    )
    of_the_mean = run.metrics["mae_of_the_mean"]["pooled"]
    baseline = f"predicting the mean of the training cases for everyone (MAE {number(of_the_mean, 3)})"
    gain = np.abs(means - targets) - np.abs(predictions - targets)
    if not run.config.eval.bootstrap or len(run.rows) < 2:
        change = f"{number(abs(gain.mean()), 3)} {'smaller' if gain.mean() > 0 else 'larger'}"
        return f"Against {baseline} the error is {change}; no interval was computed."
    subjects = [row["subject"] for row in run.rows]
    found = metrics.bootstrap_ci(
        np.mean, gain, resamples=run.config.eval.bootstrap, seed=run.config.seed, groups=subjects
    )
    if found.low > 0:
        limits = page.interval(found.low, found.high, 3)
        return f"Better than {baseline}: the error is {number(found.value, 3)} smaller (95% interval {limits})."
    if found.high < 0:
        limits = page.interval(-found.high, -found.low, 3)
        return f"Worse than {baseline}: the error is {number(-found.value, 3)} larger (95% interval {limits})."
    return f"Not shown to be better than {baseline}: the difference may be 0."


def _against_nothing(run):
    lesions = [row for row in run.rows if row["reference_voxels"] > 0]
    missed = sum(row["dice"] == 0 for row in lesions)
    low = run.metrics["dice"].get("pooled_low", math.nan)
    shown = "Better than" if low > 0 else "Not shown to be better than"
    found = f"{missed or 'none'} {'is' if missed == 1 else 'are'} missed altogether"
    return f"{shown} an empty mask, which scores 0; of the {len(lesions)} cases with something to find, {found}."


def alerts(run):
    """What the reader should know before the numbers: folds that are open, warnings and errors of the log."""
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
    for name, why in (
        ("hd95_infinite", "one mask is empty, so the distance is infinite"),
        ("dice_undefined", "both masks are empty, so the overlap is undefined"),
    ):
        if name in run.metrics:
            metric, cases = label(name.rpartition("_")[0]), number(run.metrics[name]["pooled"])
            found.append(f"{metric} leaves out {cases} of {len(run.rows)} cases: {why}.")
    if not found:
        return None
    return tag(
        "div", [tag("b", "Please note"), tag("ul", [tag("li", text) for text in found])], class_="alert", role="note"
    )
