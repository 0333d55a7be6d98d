"""What simple rivals reach on the folds of a run: the shortcut audit, as runs/audit.py has written it."""

import math

from ..config import listed
from ..pages import figures, page
from ..pages.figures.groups import by_group
from ..pages.page import label, number, tag

_ABOUT = (
    "A rival is a ridge regression that knows a few facts from outside the images: the size of the head, the voxels, "
    "the intensities of a channel, the files, where the subject is from. In each fold it learns from the cases that "
    "are not tested, and answers for those that are. A network that is not better may have learned such a fact, and "
    "will lose it on other data. Intensities may show the finding itself: there a good rival means an easy task."
)
_COVERS = (
    "The intervals are about the mean of these folds' models, the rivals' or the network's, on new cases of this "
    "population; that of the difference is about both on the same cases."
)
_RUNS = {"other_folds": "other folds: by groups where these are at random, or at random"}
_AS_MUCH, _LESS, _UNKNOWN = "as much as the network", "less than the network", "cannot be said"


def section(run):
    """Parts of the page; [] of a run that was not audited, or of which the audit is not of this state."""
    found = run.folder.audited() if run.complete else None
    if found is None:
        return []
    parts = []
    for one in found["audits"]:
        parts += [tag("h3", page.capital(one["part"]))] if one["part"] else []
        parts += _of_one(_with_nan(one))
    about = page.note(f"{_ABOUT} {_COVERS}") if any(one["rivals"] for one in found["audits"]) else None
    return [*parts, about, _attention(found)]


def _with_nan(content):
    """The same, of plain values, with NaN where it has none."""
    if isinstance(content, dict):
        return {name: _with_nan(value) for name, value in content.items()}
    if isinstance(content, list):
        return [_with_nan(value) for value in content]
    return math.nan if content is None else content


def _of_one(found):
    """Parts about the run, or about one of its parts."""
    rivals, parts = found["rivals"], [page.note(_verdict(found, found["rivals"]))]
    if rivals:
        parts += [_figure(found, rivals), _table(found, rivals), *_answers(found)]
    if constant := found["constant"]:
        parts.append(page.note(f"No rival is made of what is equal in all cases: {', '.join(constant)}."))
    return [*parts, _runs(found) if found["runs"] else None, *_groups(found)]


def _attention(found):
    """Whether the networks look where the finding is, by the stored Grad-CAM maps; None without maps or masks."""
    seen = found.get("attention")
    if seen is None:
        return None
    inside, chance = (f"{100 * seen[name]:.1f} %" for name in ("inside", "chance"))
    cases = "case" if seen["cases"] == 1 else "cases"
    where = f"Of the Grad-CAM maps of {seen['cases']} {cases} with a mask, {inside} lie inside the mask"
    return page.note(f"{where}, which takes {chance} of the head: about as much lies there if a map says nothing.")


def _verdict(found, rivals):
    """What the rivals say, in one sentence or, where only single answers show it, in two."""
    if not rivals:
        return "No rival: nothing that is known of the cases from outside the images differs between them."
    metric, alone = label(found["metric"]), rivals[:-1] if len(rivals) > 1 else rivals
    suspects = [rival for rival in alone if rival["finds"] == _AS_MUCH]
    told = [one for one in found["answers"] if one["finds"] == _AS_MUCH]
    names = (f"{one['name']} by {one['rival']} ({number(one['rival_value'], 3)})" for one in told)
    more = f" Told as well without looking: {listed(names)}." if told else ""
    if suspects:
        names = ", ".join(f"{rival['name']} ({number(rival['value'], 3)})" for rival in suspects)
        ours = f"the network reaches {number(found['value'], 3)} ({metric})"
        return f"Not shown to be better than what is known without looking: {names}; {ours}.{more}"
    if rivals[-1]["finds"] == _AS_MUCH:
        return f"Not shown to be better than all rivals together ({metric} {number(rivals[-1]['value'], 3)}).{more}"
    if all(rival["finds"] == _UNKNOWN for rival in rivals):
        return "It cannot be said what rivals tell: no fold tests cases of both kinds."
    some = [rival["name"] for rival in alone if rival["finds"] == _LESS]
    if some:
        return f"Better than every rival; of these, {', '.join(some)} tell something about the label.{more}"
    return more.strip() or "No rival tells anything about the label: no shortcut of these kinds was found."


def _table(found, rivals):
    metric = label(found["metric"])
    columns = ["rival", "facts", metric, "95% interval", "network is better by", "95% interval", "p", "it tells"]
    rows = []
    for rival in rivals:
        limits = page.interval_cell(rival["low"], rival["high"], 3)
        score = [rival["features"], rival["value"], limits, *_gain(rival)]
        rows.append([rival["name"], *score, rival["finds"]])
    caption = f"Rivals on the same folds and cases; the network has {number(found['value'], 3)}"
    limits = page.interval(found["low"], found["high"], 3)
    caption += f" ({limits})" if limits else ""
    return page.table(columns, rows, f"{caption}; p is corrected for the number of rivals (Holm)")


def _gain(row):
    """What the network is better by, its interval and p."""
    limits = page.interval_cell(row["gain_low"], row["gain_high"], 3)
    return [row["gain"], limits, page.Cell(number(row["p"], 3), row["p"])]


def _answers(found):
    """Of several answers the rival that tells most of each and, folded, what every rival reaches."""
    answers, rivals = found["answers"], found["rivals"]
    if not answers:
        return []
    metric = "AUROC" if found["higher_is_better"] else "MAE"
    ranked = sorted(answers, key=lambda one: (one["finds"] not in (_AS_MUCH, _LESS), one["p_chance"]))
    rows = [
        [one["name"], one["cases"], one["value"], one["rival"], one["rival_value"], *_gain(one), one["finds"]]
        for one in ranked
    ]
    columns = ["answer", "cases", f"network: {metric}", "rival", metric, "network is better by", "95% interval", "p"]
    caption = "Each answer, within folds, and the rival that tells most of it; p is corrected for the number of answers"
    every = [[one["name"], one["value"], *(rival["each"][k] for rival in rivals)] for k, one in enumerate(answers)]
    titles = ["answer", "network", *(rival["name"] for rival in rivals)]
    matrix = page.table(titles, every, f"{metric} of every rival, within folds", sortable=True)
    return [
        page.table([*columns, "it tells"], rows, caption, sortable=True),
        page.details(f"{metric} of {len(rivals)} rivals for each of {len(answers)} answers", matrix),
    ]


def _figure(found, rivals):
    if not figures.available() or any(math.isnan(rival["low"]) for rival in rivals):
        return None
    names, (values, lows, highs) = [rival["name"] for rival in rivals], _columns(rivals)
    picture = by_group(names, values, lows, highs, found["value"], label(found["metric"]), "network")
    return page.grid([page.figure(picture, "Rivals.", "With their 95% intervals; dashed: the network.")])


def _columns(rows):
    return [[row[name] for row in rows] for name in ("value", "low", "high")]


def _runs(found):
    rows = [["this run", found]] + [[_name(one["name"]), one] for one in found["runs"]]
    rows = [[name, one["value"], page.interval_cell(one["low"], one["high"], 3)] for name, one in rows]
    caption = "The same network, trained anew: on shuffled labels there is nothing to find"
    return page.table(["run", label(found["metric"]), "95% interval"], rows, caption)


def _name(run):
    kind, _, number_of = run.rpartition("_")
    return f"shuffled labels, {number_of}" if kind == "shuffled" else _RUNS.get(run, run)


def _groups(found):
    parts = []
    for column in dict.fromkeys(group["column"] for group in found["groups"]):
        own = [group for group in found["groups"] if group["column"] == column]
        rows = [
            [group["group"], group["cases"], group["value"], page.interval_cell(group["low"], group["high"])]
            for group in own
        ]
        columns = [column, "cases", label(found["metric"]), "95% interval"]
        parts.append(page.table(columns, rows, f"The network's score in each {column}"))
    return parts
