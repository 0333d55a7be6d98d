"""HTML: escaped text, numbers, tables that sort, one style. No request leaves the page."""

import html
import math
import re
from typing import NamedTuple

from ..config import as_user_error
from ..runtime import files
from .style import SCRIPT, STYLE


class Html(NamedTuple):
    """Text that is HTML already."""

    text: str


class Cell(NamedTuple):
    """A table cell that shows one thing and sorts by another."""

    shown: object
    value: object


def escape(value):
    """The HTML of text, or of what is Html already."""
    return value.text if isinstance(value, Html) else html.escape(str(value))


def number(value, digits=4):
    """A number in print, with `digits` significant digits; NaN as "undefined".

    Whole numbers are shown in full, and those that rounding has moved off one, as it does the mean of 3, 3 and 3.
    """
    if math.isnan(value):
        return "undefined"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if float(value).is_integer() and abs(value) < 1e15:
        return str(int(value))
    if round(value) and abs(value - round(value)) < 1e-12 * abs(value):
        return str(round(value))
    text = f"{value:#.{digits}g}".rstrip(".")
    return f"{value:.0f}" if "e+" in text else text


def interval(low, high, digits=4):
    """The two limits in print; "" where they are undefined."""
    return "" if math.isnan(low) and math.isnan(high) else f"{number(low, digits)} to {number(high, digits)}"


def interval_cell(low, high, digits=4):
    """The cell of an interval, which sorts by its lower limit."""
    return Cell(interval(low, high, digits), low)


def tag(name, content="", **attributes):
    """The Html of an element. content: text, Html or a list of them; an attribute that is None is left out.

    `class_` becomes the attribute class, `data_value` data-value.
    """
    content = "".join(map(escape, content)) if isinstance(content, list) else escape(content)
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    pairs = "".join(f' {key}="{html.escape(str(value))}"' for key, value in given.items())
    return Html(f"<{name}{pairs}>{content}</{name}>")


def breakable(text):
    """The Html of a name or a path, which a narrow screen may break after its separators."""
    return text if isinstance(text, Html) else Html(re.sub("([_/])", r"\1<wbr>", escape(text)))


def join(parts):
    """The Html of several parts; those that are empty or None are left out."""
    return Html("".join(escape(part) for part in parts if part))


_AS_WRITTEN = (
    *("accuracy average_precision balanced_accuracy bias_slope empty_predictions lesion_sensitivity log_loss".split()),
    *("precision recall sensitivity specificity volume_similarity".split()),
)

# What the metrics are called in print; any other is shown as it is in the files.
LABELS = {
    "ap": "average precision",
    "hamming": "share of wrong decisions",
    "exact_match": "share without a wrong decision",
    "mcc": "Matthews correlation",
    "brier": "Brier score",
    "crg": "CRG score",
    "ece": "calibration error (ECE)",
    "hausdorff": "Hausdorff (mm)",
    "hd95": "HD95 (mm)",
    "average_surface_distance": "surface distance (mm)",
    "surface_dice": "surface Dice",
    "fomo26_dice": "FOMO26's Dice",
    "fomo26_nsd": "FOMO26's NSD",
    "lesions_false": "false lesions per case",
    "lesion_f1": "lesion F1",
    "tp": "true positives",
    "fp": "false positives",
    "fn": "false negatives",
    "tn": "true negatives",
    "r2": "R²",
    "pearson": "Pearson r",
    "spearman": "Spearman ρ",
    "ccc": "concordance (CCC)",
    "reconstruction_mse": "reconstruction error (MSE)",
    "dino_loss": "DINO loss",
    "teacher_entropy": "teacher's entropy",
    "teacher_std": "teacher's spread",
    "probe_auroc": "AUROC of a linear probe",
    "fairness_auroc": "fairness score by AUROC",
    "fairness_f1": "fairness score by F1",
    "knn_auroc": "AUROC of nearest neighbours",
    "mae_of_the_mean": "MAE of predicting the mean",
    "interval_coverage": "share of targets in their 90% prediction interval",
    "interval_width": "width of the 90% prediction interval",
    "views_gain": "gain by test-time views",
    "postprocess_gain": "Dice gained by post-processing",
    **{name: f"{name.replace('_', ' ')} per case" for name in ("lesions", "lesions_detected", "lesions_missed")},
    **{name: name.upper() for name in ("auroc", "f1", "mae", "mse", "rmse")},
    **{name: name.capitalize() for name in ("dice", "jaccard")},
    **{name: name.replace("_", " ") for name in _AS_WRITTEN},
}
_STARTS = {"corrected": "corrected {}", "val": "validation {}", "volume": "{}", "slice": "slices: {}"}
_ENDINGS = {
    "within": "within folds",
    "macro": "mean",
    "micro": "all together",
    "common": "at one threshold for all",
    "half": "at 0.5",
}


def label(metric):
    """The name of a metric in print: of corrected_mae "corrected MAE", dice_2 "Dice, class 2", dice_a "Dice, a"."""
    if metric in LABELS:
        return LABELS[metric]
    start, _, rest = metric.partition("_")
    own = any(metric.startswith(f"{base}_") for base in LABELS if base.startswith(f"{start}_"))  # volume_similarity
    if start in _STARTS and not own:
        return _STARTS[start].format(label(rest))
    base, _, ending = metric.rpartition("_")
    if ending.isdigit():
        return f"{label(base)}, class {ending}"
    if ending in _ENDINGS:
        return f"{label(base)}, {_ENDINGS[ending]}"
    target, found, of = metric.partition("_auroc_")
    if found:
        return f"{target.replace('_', ' ')}: AUROC of {of}"
    of_classes = [base for base in LABELS if metric.startswith(f"{base}_")]
    if base := max(of_classes, key=len, default=""):
        return f"{LABELS[base]}, {metric[len(base) + 1 :].replace('_', ' ')}"
    for place in re.finditer("_", metric):  # of one of several targets: sex_auroc is "sex: AUROC"
        rest = metric[place.end() :]
        if rest in LABELS or rest.startswith("corrected_"):
            return f"{metric[: place.start()].replace('_', ' ')}: {label(rest)}"
    return metric.replace("_", " ")


def section(title, parts, anchor):
    return tag("section", [tag("h2", title, id=anchor), join(parts)])


def note(text):
    return tag("p", text, class_="note")


def alert(texts):
    """A box with what the reader should know before the numbers; None without texts."""
    if not texts:
        return None
    items = [tag("li", text) for text in texts]
    return tag("div", [tag("b", "Please note"), tag("ul", items)], class_="alert", role="note")


def capital(text):
    """The text with a capital first letter, and the rest as it is."""
    return text[:1].upper() + text[1:]


def definitions(pairs):
    """A list of names and values, of those that have one; it folds to one column on a narrow screen."""
    shown = [(tag("dt", name), tag("dd", breakable(value))) for name, value in pairs if value not in (None, "")]
    return tag("dl", [tag("div", list(pair)) for pair in shown])


def details(summary, content):
    """Something that the reader opens by a click."""
    return tag("details", [tag("summary", summary), content])


def legend(lines, class_="legend"):
    """The legend of several pictures. lines: [(name, CSS of its line)]."""
    return tag("ul", [tag("li", [tag("i", style=style), name]) for name, style in lines], class_=class_)


def table(columns, rows, caption, sortable=False, row_classes=None):
    """A table in a region that scrolls, below its caption. A number's exact value is in data-value.

    columns: their titles.
    rows: lists of text, numbers, Html, Cell, or None for an empty cell.
    sortable: the titles become buttons once the page's script runs; until then the order is that of `rows`.
    row_classes: a CSS class, or None, for each row.
    """
    rows = [[content if isinstance(content, Cell) else Cell(content, content) for content in row] for row in rows]
    values = ([row[i].value for row in rows if row[i].value is not None] for i in range(len(columns)))
    classes = ["number" if all(map(_is_number, of_column)) else None for of_column in values]

    def cell(i, content):
        exact = repr(float(content.value)) if _is_number(content.value) else None
        element, scope = ("td", None) if i else ("th", "row")
        return tag(element, shown(content), scope=scope, class_=classes[i], data_value=exact)

    head = [tag("th", breakable(name), scope="col", class_=class_) for name, class_ in zip(columns, classes)]
    lines = [[cell(i, content) for i, content in enumerate(row)] for row in rows]
    body = [tag("tr", line, class_=class_) for line, class_ in zip(lines, row_classes or [None] * len(rows))]
    inner = [tag("thead", tag("tr", head)), tag("tbody", body)]
    inner = tag("table", inner, aria_label=caption, class_="sortable" if sortable else None)
    # the caption stands outside: a <caption> is as wide as the table and would scroll out of a narrow screen
    class_ = "scroll tall" if sortable else "scroll"
    more = tag("p", class_="more")  # the script says what there is more of
    return join([note(caption), more, tag("div", inner, class_=class_, tabindex=0, role="region", aria_label=caption)])


def shown(content):
    """What a cell of a table shows: text or Html."""
    content = content.shown if isinstance(content, Cell) else content
    return "" if content is None else number(content) if _is_number(content) else content


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def figure(picture, title, description, class_=None):
    """A picture (Html of an SVG or img) with its caption below; class_="small": of half the width."""
    return tag("figure", [picture, tag("figcaption", [tag("b", title), " ", description])], class_=class_)


def grid(figures, class_="grid"):
    return tag("div", list(figures), class_=class_)


def document(title, parts):
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'  # or the browser asks the server for one
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    body = f"<main>{join(parts).text}</main>\n<script>{SCRIPT}</script>"
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'


def save(path, text):
    """Write a page, and return its path. The file is replaced at once: a browser never reads half a page."""
    with as_user_error(f"cannot write {path}"):
        files.write_text(path, text)
    return path
