"""The `data` line: what was found, by kind of target, and what the files do not say."""

import pytest

from fomo import config as config_module
from fomo import tasks
from fomo.data import listing
from fomo.data.cases import Case, Volume


class Log:
    def __init__(self):
        self.lines, self.warnings = [], []

    def __call__(self, event, **values):
        self.lines.append((event, values))

    def warn(self, message, **values):
        self.warnings.append((message, values))


def described(kind, targets, columns=(), labels=None, source="table", suffix=".nii.gz"):
    cases = [
        Case(f"c{i}", f"s{i // 2}", (Volume(f"c{i}{suffix}"),), None, target, None, labels=labels[i] if labels else ())
        for i, target in enumerate(targets)
    ]
    config = config_module.Config(
        data=config_module.Data(source=source), task=config_module.Task(type=kind, targets=columns)
    )
    log = Log()
    listing.describe(config, tasks.wanted(config), cases, log)
    [(event, values)] = log.lines
    assert event == "data" and values.pop("source") == source and values.pop("cases") == len(cases)
    assert values.pop("subjects") == (len(cases) + 1) // 2 and values.pop("example") == f"c0{suffix}"
    return values, log.warnings


@pytest.mark.parametrize(
    "kind, targets, columns, labels, found",
    [
        ("classification", [0.0, 1.0, 1.0], (), None, {"class_0": 1, "class_1": 2}),
        ("classification", [0.0, 1.0, None], ("sex",), [("f",), ("m",), ()], {"class_f": 1, "class_m": 1}),
        (
            "classification",
            [(1.0, 0.0), (0.0, 0.0)],
            ("grade II", "sex"),
            [("b", "f"), ("a", "f")],
            {"grade_II_a": 1, "grade_II_b": 1, "sex_f": 2},
        ),
        ("multilabel", [(1.0, 0.0), (1.0, 1.0)], ("Lung nodule", "Effusion"), None, {"Lung_nodule": 2, "Effusion": 1}),
        ("multilabel", [(1.0, 0.0, 1.0)], ("cases", "a b", "a_b"), None, {"cases_": 1, "a_b": 0, "a_b_": 1}),
        ("regression", [20.0, 50.0, 80.0], (), None, {"lowest": 20, "mean": 50, "highest": 80}),
        ("classification", [None, None], (), None, {"labelled": 0}),
    ],
)
def test_what_was_found(kind, targets, columns, labels, found):
    assert described(kind, targets, columns, labels) == (found, [])


def test_folds_of_a_table_that_are_not_used_are_said():
    def warned(folds=("a", "b", "a"), source="table", kind="kfold", task="regression", **data):
        cases = [Case(f"c{i}", f"c{i}", (Volume("c.nii"),), None, 1.0, None, fold) for i, fold in enumerate(folds)]
        config = config_module.Config(
            data=config_module.Data(source=source, **data),
            cv=config_module.Cv(kind=kind),
            task=config_module.Task(type=task),
        )
        log = Log()
        listing.describe(config, tasks.wanted(config), cases, log)
        return log.warnings

    ((message, values),) = warned(fold_column="site")
    assert values == {"column": "site", "folds": 2}
    assert "not used" in message and "cv.kind=fold_column" in message and "data.fold_column=none" in message
    assert not warned(folds=(None, None)) and not warned(folds=("a", None))
    assert (
        not warned(source="phantom")
        and not warned(kind="fold_column")
        and not warned(test_folds=("a",))
        and not warned(task="mae")
    )


def test_files_without_geometry_are_said_and_counted():
    _, [(message, values)] = described("regression", [1.0, 2.0, 3.0], suffix=".npy")
    assert "taken as RAS with 1 mm voxels" in message and values == {"cases": 3}
    assert described("regression", [1.0, 2.0, 3.0], source="slices", suffix=".npy")[1] == []


AGES = [20.0 + 3 * i for i in range(20)]


@pytest.mark.parametrize("codes", [[999.0], [-9.0], [-9.0, 999.0], [9999.0, 9999.0], [-1.0]])
def test_codes_for_a_missing_number_are_warned_of(codes):
    _, [(message, values)] = described("regression", AGES + codes)
    assert message.startswith("targets lie far from all others") and values["cases"] == len(codes)
    assert values["values"] == sorted(set(codes)) and values["example"] == "c20"


@pytest.mark.parametrize(
    "targets",
    [
        AGES,
        AGES + [95.0, 0.0],
        [0.0, 1.0, 2.0],
        [1.0] * 20 + [2.0],
        AGES[:6] + [999.0],
        [-x for x in AGES],
        AGES[:8] + [-5.0] * 8,
    ],
)
def test_numbers_that_may_be_as_they_are_are_not(targets):
    assert described("regression", targets)[1] == []


def test_numbers_that_look_like_classes_are_warned_of():
    _, [(message, values)] = described("regression", [0.0, 1.0, 1.0, 0.0])
    assert "all targets are 0 or 1, which look like classes" in message and values == {"cases": 4}
    _, [(message, values)] = described("regression", [(0.0, 20.5), (1.0, 30.0)], ("sex", "age"))
    assert "look like classes" in message and values == {"target": "sex", "cases": 2}
