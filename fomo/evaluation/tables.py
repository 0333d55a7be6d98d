"""A table of predictions beside its references: of one target, of several classified targets, or of several labels."""

from .. import config, tasks
from ..config import UserError
from ..data import slice_files, spreadsheet
from ..tasks import categories
from . import places
from .targets import targets_of


def pair(table, request):
    """(the task's section of a config, rows, counts for the summary) of a Table of predictions."""
    decided = [name.removeprefix("decision_") for name in table.columns if name.startswith("decision_")]
    several = [name for name in decided if f"probability_{name}" not in table.columns]
    several = [name for name in several if categories.columns_of(name, table.columns)]
    numbers = [name.removeprefix("prediction_") for name in table.columns if name.startswith("prediction_")]
    name = _task_of(table, several, numbers, request.known)
    task = tasks.TASKS[name]
    first = task.scored[0] if task.scored else task.single
    if task.reads == "flags":
        return _pair_labels(name, table, request)
    if several and first not in table.columns:
        return _pair_classes(name, several, table, request)
    if len(numbers) > 1 and first not in table.columns:
        return _pair_numbers(name, numbers, table, request)
    return _pair_target(name, first, table, request)


def _task_of(table, several, numbers, known):
    """The task, known or by the columns.

    several: the targets that have decisions and probabilities of classes; numbers: those that have predicted numbers.
    """
    name = known.task if known.reads in ("class", "number", "flags") else first_scored(table)
    if name is not None:
        return name
    if several:
        return known.task_for("class")
    if len(numbers) > 1:
        return known.task_for("number")
    if any(column.startswith("probability_") for column in table.columns):
        return known.task_for("flags")
    firsts = dict.fromkeys(task.scored[0] for task in tasks.TASKS.values() if task.scored)
    table.refuse(f"wanted {', or '.join(f'id and {column}' for column in firsts)}")


def first_scored(table):
    """The first task whose main column the table has, or None."""
    return next((name for name, task in tasks.TASKS.items() if task.scored and task.scored[0] in table.columns), None)


def _at_half(count, of):
    """Of the summary: how many decisions were made here, at 0.5, because the table has none."""
    return {"decided_at_half": {"value": count, "n": of}} if count else {}


def _pair_target(name, first, table, request):
    """Of one number or class: `target`, and the columns that the task scores, of which `first` must be a number."""
    if first is not None and first not in table.columns:
        table.refuse(f"wanted id and {first}")
    task = tasks.TASKS[name]
    classes, columns = task.reads == "class", task.scored or _numbers(table)
    targets, of_references = targets_of(table.cells, request, classes)
    request.check_same_cases(table.cells, targets)
    rows, binary = request.begin_rows(sorted(table.cells), table.subjects(), of_references), task.binary
    if binary and not {targets[id] for id in table.cells} <= {0, 1}:
        raise UserError(f"{request.references}: got targets besides 0 and 1 for a table of probabilities")
    for row in rows:
        id = row["id"]
        row["target"] = int(targets[id]) if classes else targets[id]
        for column in columns:
            there = column in table.columns
            if binary and column == "decision":
                row[column] = table.zero_or_one(id, column) if there else int(row[first] >= 0.5)
            elif there:
                row[column] = table.number(id, column, undefined=column != first)
            if column == first and not classes:
                row["error"] = row[first] - row["target"]
    undecided = binary and "decision" in columns and "decision" not in table.columns
    return config.Task(type=name), rows, _at_half(len(rows) * undecided, len(rows))


def _numbers(table):
    """The columns of numbers, where a task does not say which of them it scores."""
    others = [name for name in table.columns if name not in ("id", "subject", "target", "missing")]
    texts = {name: {cells[name].lower() for cells in table.cells.values()} - {"", "nan"} for name in others}
    return [name for name in others if None not in map(spreadsheet.number, texts[name])]


def _pair_classes(name, targets, table, request):
    """Of one or several targets with a softmax each: its class, the decision and the probabilities of each target."""
    references = places.Table(request.references, (request.columns.id or "id",), flag="--id-column")
    request.check_same_cases(table.cells, references.cells)
    columns = _reference_columns(targets, references, request)
    classes = {target: categories.columns_of(target, table.columns) for target in targets}
    rows = request.begin_rows(sorted(table.cells), table.subjects(), references.subjects(request.columns.subject))
    for row in rows:
        id = row["id"]
        for target, column in columns.items():
            text, known = references.cells[id][column].replace(" ", "_"), classes[target]
            if text not in known:
                said = f"got {text[:80]!r}, wanted one of the classes {', '.join(known)}"
                raise UserError(f"{references.place}: case {id}: {column}: {said}")
            decision = table.number(id, f"decision_{target}")
            if decision not in range(len(known)):
                said = f"got {decision:g}, wanted the number of a class, below {len(known)}"
                raise UserError(f"{table.place}: case {id}: decision_{target}: {said}")
            row.update({f"target_{target}": known.index(text), f"decision_{target}": int(decision)})
            names = [f"probability_{target}_{one}" for one in known]
            row.update({name: table.number(id, name) for name in names})
    count = max(3, *map(len, classes.values()))  # 3: also one target of two classes has a softmax
    return config.Task(type=name, targets=tuple(targets), classes=count), rows, {}


def _pair_numbers(name, targets, table, request):
    """Of several numbers: the true and the predicted one of each target, and what else its columns say of it."""
    references = places.Table(request.references, (request.columns.id or "id",), flag="--id-column")
    request.check_same_cases(table.cells, references.cells)
    columns = _reference_columns(targets, references, request)
    rows = request.begin_rows(sorted(table.cells), table.subjects(), references.subjects(request.columns.subject))
    for row in rows:
        id = row["id"]
        for target, column in columns.items():
            row[f"target_{target}"] = references.number(id, column, label=f": {column}")
            row[f"prediction_{target}"] = table.number(id, f"prediction_{target}")
            for more in (f"{kind}_{target}" for kind in ("training_mean", "training_sd", "corrected")):
                if more in table.columns:
                    row[more] = table.number(id, more, undefined=True)
    return config.Task(type=name, targets=tuple(targets)), rows, {}


def _reference_columns(targets, references, request):
    asked, named = request.columns.target, {name.replace(" ", "_"): name for name in references.columns}
    if asked is not None:
        if len(targets) > 1 or asked not in references.columns:
            wanted = f"a column of {request.references} for the one target of {request.predictions}"
            raise UserError(f"--column: got {asked}, wanted {wanted}: {', '.join(targets)}")
        named = {targets[0]: asked}
    _check_lacking([name for name in targets if name not in named], references, request)
    return {target: named[target] for target in targets}


def _check_lacking(lacking, references, request):
    if lacking:
        references.refuse(f"and none for {', '.join(lacking)[:200]} of {request.predictions}")


def _pair_labels(name, table, request):
    """Of several labels of 0 and 1: truth, probability and decision of each. The references may have more cases."""
    asked = request.columns
    if asked.target is not None:
        raise UserError(f"--column: got {asked.target}, and {table.place} has several labels, each with its own column")
    keys = [asked.id] if asked.id else ("VolumeName", "id")
    references = places.Table(request.references, keys, slice_files.stem, "--id-column")
    named = {label: label.replace(" ", "_") for label in references.columns}
    labels = {label: one for label, one in named.items() if f"probability_{one}" in table.columns}
    found = {f"probability_{one}" for one in labels.values()}
    wanted = {column for column in table.columns if column.startswith("probability_")}
    _check_lacking(sorted(wanted - found), references, request)
    cases = len(references.cells)
    references.cells = _by_id(references, table)
    patients = {id: slice_files.patient_of(id) for id in table.cells}
    rows = request.begin_rows(list(table.cells), table.subjects(), references.subjects(asked.subject), patients)
    decided = {one: f"decision_{one}" in table.columns for one in labels.values()}
    for row in rows:
        id = row["id"]
        if "threshold" in table.columns:  # the one of all labels together: in the tables of a run
            row["threshold"] = table.number(id, "threshold")
        for label, one in labels.items():
            row[f"target_{one}"] = references.zero_or_one(id, label, f": {label}")
            p = row[f"probability_{one}"] = table.number(id, f"probability_{one}")
            decision = table.zero_or_one(id, f"decision_{one}", f": {label}") if decided[one] else int(p >= 0.5)
            row[f"decision_{one}"] = decision
    counts = {"not_predicted": {"value": cases - len(rows), "n": cases}}
    counts.update(_at_half((len(decided) - sum(decided.values())) * len(rows), len(labels) * len(rows)))
    return config.Task(type=name, targets=tuple(labels)), rows, counts


def _by_id(references, table):
    """{id: cells} of the references, which are by the volume's name without its suffix, for all ids of the table."""
    ids = {}
    for id in table.cells:
        first = ids.setdefault(slice_files.stem(id), id)
        if first != id:
            raise UserError(f"{table.place}: got {first} and {id}, which are one volume, wanted a line for each")
    unknown = [id for volume, id in ids.items() if volume not in references.cells]
    if unknown:
        more = f"(and for {len(unknown) - 1} more)"
        hint = spreadsheet.lost_zeros(unknown, references.cells)
        raise UserError(f"{references.place}: no line for {unknown[0]} of {table.place} {more}{hint}")
    return {id: references.cells[volume] for volume, id in ids.items()}
