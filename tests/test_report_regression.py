"""The view of regression: verdict, cases."""

import math
import re

import numpy as np
from report_runs import make_run, needs_figures, shown, verdict

from fomo import metrics
from fomo.pages import case_table, page
from fomo.report import run
from fomo.run_folder import RunFolder
from fomo.runtime import files
from fomo.tasks import Results, views


def test_the_verdict(tmp_path):
    found = run.Run(make_run(tmp_path / "good", "regression", skill=5))
    assert re.match(r"Better than predicting the mean .*\(MAE 1\d\.\d\): the error is .* smaller", verdict(found))
    worse = [{**row, "prediction": row["target"] + 40 + index % 3} for index, row in enumerate(found.rows)]
    found.results = Results(worse)
    assert verdict(found).startswith("Worse than")
    same = [{**row, "prediction": row["training_mean"]} for row in found.rows]
    found.results = Results(same)
    assert verdict(found).startswith("Not shown")


def test_cases_come_worst_first_with_warnings():
    base = {"subject": "s", "fold": 1.0, "target": 10.0}
    columns, rows, _ = views.regression.cases([{**base, "id": str(e), "prediction": 10.0 + e} for e in (1, -2, 3, -30)])
    assert [(row[0], row[1].value) for row in rows] == [("-30", "outlier"), ("3", ""), ("-2", ""), ("1", "")]
    assert "corrected" not in columns


def test_outliers_by_tukeys_fence():
    # quartiles 2 and 4: the fence is at 4 + 1.5 * 2 = 7
    assert case_table.outliers([1, 2, 3, 4, 7.1]).tolist() == [False, False, False, False, True]
    assert case_table.outliers([1, 2, 3, 4, 6.9]).tolist() == [False] * 5
    assert case_table.outliers([1, 2, 3, 4, 7.1, math.inf, math.nan]).tolist() == [False] * 4 + [True, False, False]
    assert not case_table.outliers([2, 2, 2, 2, 9]).any()  # the quartiles are equal: no spread to judge by
    assert not case_table.outliers([math.nan]).any()


@needs_figures
def test_errors_over_coverage_are_drawn_where_intervals_differ_in_width(tmp_path):
    folder = make_run(tmp_path / "run", "regression")
    assert "Risk over coverage." not in shown(folder).text
    for fold in RunFolder(folder).folds():
        rows = [{**row, "low": row["prediction"] - fold.number, "high": row["prediction"] + fold.number}
                for row in fold.results().rows]  # fmt: skip
        files.write_csv(fold.rows_path, rows)
    found = run.Run(folder)
    errors, widths = np.array([[abs(row["prediction"] - row["target"]), row["fold"]] for row in found.rows]).T
    area = metrics.risk_coverage_area(errors, -widths)
    assert f"Area {page.number(area, 3)} (95% interval " in shown(folder).text.split("Risk over coverage.")[1]
