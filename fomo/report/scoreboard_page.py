"""The page of a scoreboard: which checkpoint is best at what, and whether that is more than chance."""

import math

from ..pages import figures, page
from ..pages.figures import groups as groups_figure
from ..pages.page import breakable, interval, interval_cell, label, number, tag
from . import covers

_MOST = 5  # differences that a sentence names


def write_scoreboard(board, path):
    """Write the page of a runs.board.Board; returns its path."""
    return page.save(path, _document(board))


def _document(board):
    first = board.ranking[0] if board.ranking else None
    tasks = "1 task" if len(board.weights) == 1 else f"{len(board.weights)} tasks"
    what = f"{len(board.names)} starts · {tasks}"
    parts = [
        tag("header", [tag("h1", "Scoreboard"), tag("p", what, class_="sub")]),
        tag("div", tag("div", _verdict(board, first), class_="say"), class_="hero"),
        page.alert(_notes(board)),
        page.section("Ranks", [_ranks(board)], "ranks"),
        page.section("Scores", [_pictures(board), *_scores(board)], "scores"),
        page.section("Differences", _differences(board), "differences"),
        tag("footer", "Written by tools/scoreboard.py; the same numbers are in scoreboard.json and its tables."),
    ]
    return page.document("Scoreboard", parts)


def _verdict(board, first):
    if first is None or math.isnan(first["overall"]):
        return [tag("p", tag("b", "Nothing is ranked yet."))]
    if len(board.names) < 2:
        return [tag("p", tag("b", f"{first['checkpoint']} stands alone: there is nothing to rank it with."))]
    best = [row["checkpoint"] for row in board.ranking if math.isclose(row["overall"], first["overall"])]
    text = f" {'has' if len(best) == 1 else 'share'} the best mean rank, {number(first['overall'], 3)}"
    text += f" (1: best in all, {len(board.names)}: last in all)."
    return [tag("p", [tag("b", " and ".join(best)), text]), page.note(_shown(board.differences))]


def _shown(differences):
    """Which differences are more than chance, in a sentence."""
    if not differences:
        return "No two of them were compared, so nothing says whether this is more than chance."
    shown = [row for row in differences if row["better"]]
    count = f"{len(shown) or 'None'} of {len(differences)} differences {'is' if len(shown) < 2 else 'are'}"
    named = [f"{row['task']} by {label(row['metric'])} ({row['better']} is better)" for row in shown[:_MOST]]
    more = [f"{len(shown) - _MOST} more"] if len(shown) > _MOST else []
    listed = f": {', '.join([*named, *more])}" if shown else ""
    return f"{count} more than chance after Holm's correction{listed}."


def _notes(board):
    missing = [
        f"{task} of {name} is missing, and has the last rank: {why}" for (name, task), why in board.failed.items()
    ]
    unasked = []
    if board.unasked:
        tasks = ", ".join(map(str, board.unasked))
        unasked = [f"Tasks of FOMO26 that were not asked for, which there count as the last place: {tasks}"]
    return [f"{text}." for text in (*missing, *unasked, *board.notes)]


def _ranks(board):
    tasks = list(board.weights)
    total = math.fsum(board.weights.values())
    file = {name: breakable(path) if path else "none: random weights" for name, path in board.paths.items()}
    titles = ["checkpoint", "mean rank", *(f"{task} ({board.weights[task] / total:.0%})" for task in tasks), "file"]
    rows = [
        [row["checkpoint"], row["overall"], *(row["tasks"][task] for task in tasks), file.get(row["checkpoint"], "")]
        for row in board.ranking
    ]
    caption = "Ranks of FOMO26: a task's is the mean over its metrics, the mean over tasks is weighted (in brackets)"
    metrics = [f"{task} by {' and '.join(label(metric) for metric in names)}" for task, names in board.metrics.items()]
    text = f"Ranked: {'; '.join(metrics)}."
    if any("fomo26_dice" in names for names in board.metrics.values()):
        text += (
            " FOMO26's Dice and NSD (surface elements within 1 mm) count rightly empty masks as 1 and 0. Nothing is "
            "ranked by Dice and surface Dice, which leave these out; the tolerance is that of the task's config."
        )
    return page.join([page.table(titles, rows, caption, sortable=True), page.note(text)])


def _by_metric(board):
    """[(task, metric, its rows)] in order."""
    found = {}
    for row in board.scores:
        found.setdefault((row["task"], row["metric"]), []).append(row)
    return [(*key, rows) for key, rows in found.items()]


def _pictures(board):
    if not figures.available():
        return page.note(figures.MISSING)
    drawn = []
    for task, metric, rows in _by_metric(board):
        rows = [row for row in rows if not math.isnan(row["value"])]
        if rows:
            names = [row["checkpoint"] for row in rows]
            values, lows, highs = ([row[key] for row in rows] for key in ("value", "low", "high"))
            picture = groups_figure.by_group(names, values, lows, highs, None, label(metric))
            drawn.append(page.figure(picture, f"{task}: {label(metric)}.", "Bars: 95% intervals over subjects."))
    return page.grid(drawn)


def _scores(board):
    titles = ["task", "metric", "checkpoint", "value", "95% interval", "rank", "cases"]
    rows = [
        [task, label(metric), row["checkpoint"], row["value"], interval_cell(row["low"], row["high"])]
        + ["not ranked" if math.isnan(row["rank"]) else row["rank"], row["cases"]]
        for task, metric, rows in _by_metric(board)
        for row in rows
    ]
    about = (
        "The 95% intervals are about the trained models of a checkpoint (the mean over folds; of tasks 6 and 7 the "
        "fitted heads) on new cases of the population, not about what would be trained on other cases."
    )
    caption = "Pooled over the test cases of all folds; tasks 6 and 7: over those of the first split"
    return [page.note(about), page.table(titles, rows, caption, sortable=True)]


def _differences(board):
    if not board.differences:
        return [page.note("Nothing can be compared: fewer than two checkpoints have finished a task.")]
    text = (
        "Second minus first, on the same cases; where the first is random, this is what pretraining gains (of MAE less "
        "is better). p: DeLong's test for AUROCs of two classes, permutation of whole subjects for the rest; corrected "
        f"by Holm's method over all {len(board.differences)} tests. {covers.OF_DIFFERENCES}"
    )
    compared = {(row["task"], row["metric"]) for row in board.differences}
    ranked = ((task, metric) for task, names in board.metrics.items() for metric in names)
    if untested := [f"{label(metric)} of {task}" for task, metric in ranked if (task, metric) not in compared]:
        text += f" Ranked, and not compared: {', '.join(untested)}."
    titles = ["task", "metric", "first", "second", "difference", "95% interval", "p", "p (Holm)", "better", "cases"]
    rows = [
        [row["task"], label(row["metric"]), row["first"], row["second"], row["difference"]]
        + [page.Cell(interval(row["low"], row["high"]), row["low"])]
        + [page.Cell(number(row[key], 3), row[key]) for key in ("p", "p_holm")]
        + [row["better"] or "not shown", row["cases"]]
        for row in board.differences
    ]
    return [page.note(text), page.table(titles, rows, "Differences between checkpoints", sortable=True)]
