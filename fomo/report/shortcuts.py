"""What simple rivals reach on the folds of a run: the shortcut audit, as runs/audit.py has written it."""

import math

from ..pages import figures, page
from ..pages.figures.groups import by_group
from ..pages.page import label, number

_ABOUT = (
    "A rival is a ridge regression that knows a few facts from outside the images: the size of the head, the voxels, "
    "the intensities of a channel, the files, where the subject is from. In each fold it learns from the cases that "
    "are not tested, and answers for those that are. A network that is not better may have learned such a fact, and "
    "will lose it on other data. Intensities may show the finding itself: there a good rival means an easy task."
)
_RUNS = {"other_folds": "other folds: by groups where these are at random, or at random"}


def section(run):
    """Parts of the page; [] of a run that was not audited, or of which the audit is not of this state."""
    found = run.folder.audited() if run.complete else None
    if found is None:
        return []
    rivals = [{name: math.nan if value is None else value for name, value in row.items()} for row in found["rivals"]]
    parts = [page.note(_verdict(found, rivals))]
    if rivals:
        parts += [_figure(found, rivals), _table(found, rivals), page.note(_ABOUT)]
    if constant := found.get("constant"):
        parts.append(page.note(f"No rival is made of what is equal in all cases: {', '.join(constant)}."))
    parts.append(_runs(found) if found["runs"] else None)
    return [*parts, _attention(found), *_groups(found)]


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
    """What the rivals say, in one sentence."""
    if not rivals:
        return "No rival: nothing that is known of the cases from outside the images differs between them."
    metric, alone = label(found["metric"]), rivals[:-1] if len(rivals) > 1 else rivals
    suspects = [rival for rival in alone if rival["finds"] == "as much as the network"]
    if suspects:
        names = ", ".join(f"{rival['name']} ({number(rival['value'], 3)})" for rival in suspects)
        ours = f"the network reaches {number(found['value'], 3)} ({metric})"
        return f"Not shown to be better than what is known without looking: {names}; {ours}."
    if rivals[-1]["finds"] == "as much as the network":
        return f"Not shown to be better than all rivals together ({metric} {number(rivals[-1]['value'], 3)})."
    some = [rival["name"] for rival in alone if rival["finds"] != "nothing"]
    if some:
        return f"Better than every rival; of these, {', '.join(some)} tell something about the label."
    return "No rival tells anything about the label: no shortcut of these kinds was found."


def _table(found, rivals):
    metric = label(found["metric"])
    columns = ["rival", "facts", metric, "95% interval", "network is better by", "95% interval", "p", "it tells"]
    rows = []
    for rival in rivals:
        limits = page.interval_cell(rival["low"], rival["high"], 3)
        gain = page.interval_cell(rival["gain_low"], rival["gain_high"], 3)
        score = [rival["features"], rival["value"], limits, rival["gain"], gain, rival["p"]]
        rows.append([rival["name"], *score, rival["finds"]])
    caption = f"Rivals on the same folds and cases; the network has {number(_of(found, 'value'), 3)}"
    limits = page.interval(_of(found, "low"), _of(found, "high"), 3)
    caption += f" ({limits})" if limits else ""
    return page.table(columns, rows, f"{caption}; p is corrected for the number of rivals (Holm)")


def _figure(found, rivals):
    if not figures.available() or any(math.isnan(rival["low"]) for rival in rivals):
        return None
    names, (values, lows, highs) = [rival["name"] for rival in rivals], _columns(rivals)
    picture = by_group(names, values, lows, highs, found["value"], label(found["metric"]), "network")
    return page.grid([page.figure(picture, "Rivals.", "With their 95% intervals; dashed: the network.")])


def _columns(rows):
    return [[row[name] for row in rows] for name in ("value", "low", "high")]


def _of(row, name):
    return math.nan if row[name] is None else row[name]


def _runs(found):
    rows = [["this run", found]] + [[_name(one["name"]), one] for one in found["runs"]]
    rows = [[name, _of(one, "value"), page.interval_cell(_of(one, "low"), _of(one, "high"), 3)] for name, one in rows]
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
            [
                group["group"],
                group["cases"],
                _of(group, "value"),
                page.interval_cell(_of(group, "low"), _of(group, "high")),
            ]
            for group in own
        ]
        columns = [column, "cases", label(found["metric"]), "95% interval"]
        parts.append(page.table(columns, rows, f"The network's score in each {column}"))
    return parts
