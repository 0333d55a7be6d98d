"""What a run folder says of its training: the log, the selected epoch."""

import math

import pytest
from report_runs import LOG, make_run

from fomo.report import run
from fomo.runtime import files


def test_what_the_log_says(tmp_path):
    # odd bytes, a broken time, a broken value, and the line that is being written
    lines = [b"\0\0\xff", b"2026-01-0", b'2026-01-01T12:00:20 INFO train message="\\x"', b"2026-01-01T12:00:30 IN"]
    (tmp_path / "log.txt").write_bytes(LOG.encode() + b"\n".join(lines))
    log = run.read_log(tmp_path / "log.txt")
    assert log[-1]["message"] == 'case "x" <odd>'
    assert run.duration_s(log) == 60 + 30  # two sessions; the time between them does not count
    # a line stands for the steps since the one before
    assert run.data_wait(log, 1) == pytest.approx((2 * 0.1 + 0.8) / 3)
    assert run.data_wait(log, 2) == 0
    assert math.isnan(run.data_wait(log, 3))
    assert run.started(log)["code"] == "abc124"
    assert run.read_log(tmp_path / "none") == []


def test_the_selected_epoch(tmp_path):
    found = run.Run(make_run(tmp_path / "run", "classification"))
    assert found.best_row(1)["epoch"] == 3
    epochs = ((1, math.nan, 0), (2, 0.7, 3.0), (3, 0.7, 2.0), (4, 0.7, 2.0))
    rows = [dict(zip(("epoch", "val_auroc", "val_loss"), values)) for values in epochs]
    found.histories = {1: rows}
    assert found.best_row(1)["epoch"] == 3  # the lower loss, then the earlier one
    found.histories = {1: rows[:1]}
    assert found.best_row(1) is None


def test_a_damaged_file_is_named(tmp_path):
    folder = tmp_path / "run"
    make_run(folder, "regression")
    for name, content in (
        ("splits.json", '{"fo'),
        ("splits.json", "{}"),
        ("summary.json", ""),
        ("fold_1/history.csv", ""),
        ("fold_2/predictions.csv", "id,target\na,x\n"),
        ("fold_2/predictions.csv", None),
    ):
        kept = (folder / name).read_text()
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_text(content)
        with pytest.raises(files.Damaged, match=f"cannot read .*/{name} .*restore it"):
            run.Run(str(folder))
        (folder / name).write_text(kept)
    assert run.Run(str(folder)).complete
