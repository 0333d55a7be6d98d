"""The page of a search: which settings were tried, how each did on inner validation cases, and what was chosen."""

import math
from typing import NamedTuple

from ..pages import figures, page
from ..pages.figures.rungs import over_rungs
from ..pages.page import label, number, tag

TRIED = (
    "The setting is the best of {} that were tried on inner validation cases (search/search.html){}. The interval does "
    "not know of this choice."
)
_SHARED = ", some of which are test cases of other folds: the value is a little better than on new cases"


class Search(NamedTuple):
    """What was searched: name of the run, its metric, the keys, the number of the chosen setting and its values."""

    name: str
    metric: str
    higher_is_better: bool
    keys: list
    chosen: object  # with `number` and `values` {key: text}
    one_split: bool


def tried(settings, one_split):
    """The sentence for the page of a run whose setting is the best of so many."""
    return TRIED.format(settings, "" if one_split else _SHARED)


def write_search(facts, rows, path):
    """Write the page; returns its path. facts: a Search; rows: those of search.csv, rung after rung, the best first."""
    return page.save(path, _document(facts, rows))


def _document(facts, rows):
    settings, rungs = len({row["setting"] for row in rows}), max(row["rung"] for row in rows)
    what = f"{settings} settings · rungs: {rungs} · trainings: {sum(row['folds'] for row in rows)}"
    parts = [
        tag("header", [tag("h1", f"Search of {facts.name}"), tag("p", what, class_="sub")]),
        _headline(facts, rows, settings),
        page.alert(_notes(rows)),
        page.section("Rungs", [_picture(facts, rows), *_tables(facts, rows, rungs)], "rungs"),
        page.section("Keys", [_of_values(facts, rows)], "keys"),
        tag("footer", "Written by tools/search.py; the same numbers are in search.csv."),
    ]
    return page.document(f"Search of {facts.name}", parts)


def _headline(facts, rows, settings):
    last = [row for row in rows if row["rung"] == max(row["rung"] for row in rows)]
    best = next(row for row in last if row["goes_on"])
    values = ", ".join(f"{key}={value}" for key, value in facts.chosen.values.items())
    said = f"Setting {facts.chosen.number} is chosen: {values}."
    score = f"{page.capital(label(facts.metric))} {number(best['score'], 3)} on inner validation cases"
    others = [row["score"] for row in last if row is not best and not math.isnan(row["score"])]
    if others:
        second = max(others) if facts.higher_is_better else min(others)
        score += f"; the next best has {number(second, 3)}"
        if not math.isnan(best["sd"]):
            score += f". Over the folds the chosen one has an SD of {number(best['sd'], 3)}"
    how = f"It is the best of {settings}, so the score is too good: the run beside this page has the honest one. "
    how += "No test case was read."
    texts = [tag("p", tag("b", said)), tag("p", f"{score}."), page.note(how)]
    return tag("div", tag("div", texts, class_="say"), class_="hero")


def _notes(rows):
    failed = {row["setting"]: row["error"] for row in rows if row["error"]}
    return [f"Setting {number} has failed, and comes last: {error}" for number, error in failed.items()]


def _picture(facts, rows):
    if not figures.available():
        return page.note(figures.MISSING)
    lines = {}
    for row in rows:
        if not math.isnan(row["score"]):
            lines.setdefault(row["setting"], []).append((row["rung"], row["score"]))
    lengths = [next(row["length"] for row in rows if row["rung"] == rung) for rung in sorted({r["rung"] for r in rows})]
    picture = over_rungs(lines, facts.chosen.number, lengths, label(facts.metric))
    return page.figure(picture, f"{page.capital(label(facts.metric))} of each setting.", "Inner validation cases.")


def _tables(facts, rows, rungs):
    columns = ["setting", *facts.keys, label(facts.metric), "SD of folds", "validation loss", "folds", "seconds"]
    for rung in range(1, rungs + 1):
        own = [row for row in rows if row["rung"] == rung]
        lines = [
            [row["setting"], *(row[key] for key in facts.keys), row["score"], row["sd"], row["loss"]]
            + [row["folds"], row["seconds"], "chosen" if row["goes_on"] and rung == rungs else _goes_on(row)]
            for row in own
        ]
        caption = f"Rung {rung}, trained for {own[0]['length']}: mean over the folds, the best first"
        classes = ["main" if row["goes_on"] else None for row in own]
        yield page.table([*columns, "then"], lines, caption, sortable=True, row_classes=classes)


def _goes_on(row):
    return "failed" if row["error"] else "goes on" if row["goes_on"] else ""


def _of_values(facts, rows):
    """A table of the mean score of each value in the first rung, where all settings take part."""
    lines, first = [], [row for row in rows if row["rung"] == 1 and not math.isnan(row["score"])]
    for key in facts.keys:
        for value in dict.fromkeys(row[key] for row in sorted(first, key=lambda row: row["setting"])):
            scores = [row["score"] for row in first if row[key] == value]
            lines.append([key, value, math.fsum(scores) / len(scores), len(scores)])
    caption = "Which key matters: mean over all settings of the first rung that have the value"
    return page.table(["key", "value", label(facts.metric), "settings"], lines, caption)
