"""Files that are replaced at once, also by two processes that write the same one."""

import csv
import multiprocessing
import os
import stat

import numpy as np
import pytest

from fomo.data import spreadsheet
from fomo.runtime import files


def write_many(path, first):
    for number in range(first, first + 300):
        files.write_csv(path, [{"id": "a", "value": number}, {"id": "b", "value": number}])


def test_two_writers_of_one_file_leave_a_whole_one(tmp_path):
    path = str(tmp_path / "t.csv")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        pool.starmap(write_many, [(path, 0), (path, 1000)])
    one, other = files.read_csv(path)
    assert one["value"] == other["value"] and os.listdir(tmp_path) == ["t.csv"]


def test_what_fails_leaves_what_was_there_and_the_usual_rights(tmp_path):
    path = tmp_path / "t.txt"
    files.write_text(str(path), "first")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~os.umask(os.umask(0o022))
    with pytest.raises(ZeroDivisionError), files.replacing(str(path)) as file:
        file.write("half" + str(1 / 0))
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["t.txt"]


def test_a_durable_file_is_on_the_disk_first_and_its_predecessor_is_kept(tmp_path, monkeypatch):
    path, previous, events = tmp_path / "t.bin", tmp_path / "old.bin", []
    true_sync, true_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), true_sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append(os.path.basename(names[1])), true_replace(*names)))
    (tmp_path / ".t.bin.tmp").write_bytes(b"what a kill left behind, which is longer")
    for content in (b"first", b"second"):
        with files.replacing(str(path), large=True, previous=str(previous)) as file:
            file.write(content)
    assert path.read_bytes() == b"second" and previous.read_bytes() == b"first"
    assert events == ["sync", "t.bin", "sync", "sync", "old.bin", "t.bin", "sync"]
    assert sorted(os.listdir(tmp_path)) == ["old.bin", "t.bin"]
    monkeypatch.chdir(tmp_path)
    with files.replacing("t.bin", large=True) as file:
        file.write(b"third")
    assert path.read_bytes() == b"third" and previous.read_bytes() == b"first"


def test_a_small_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    events, true_sync, true_replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), true_sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (events.append(os.path.basename(names[1])), true_replace(*names)))
    files.write_csv(str(tmp_path / "t.csv"), [{"id": "a"}])
    files.write_json(str(tmp_path / "t.json"), {})
    assert events == ["sync", "t.csv", "sync", "sync", "t.json", "sync"]


FORMULAS = ["=1+1", "+1+1", "-1+1|cmd", "@SUM(A1)", "\tx", "'=1", "''@x", "-"]
PLAIN = ["'quoted'", "a=b", "", "Lung nodule", "-1.5", "+2", "1e-05", "-inf", "-3e+10"]


def test_no_cell_is_a_formula_and_all_are_read_back(tmp_path):
    rows = [{"id": f"{place}", "text": text} for place, text in enumerate(FORMULAS + PLAIN)]
    rows += [{"id": "number", "text": -3}, {"id": "low", "text": float("-inf")}]
    path = str(tmp_path / "t.csv")
    files.write_csv(path, [{**row, "=head": ""} for row in rows])
    with open(path, newline="") as file:
        header, *cells = csv.reader(file)
    assert header == ["id", "text", "'=head"]
    assert [cell for _, cell, _ in cells] == ["'" + text for text in FORMULAS] + PLAIN + ["-3", "-inf"]
    for read in (files.read_csv(path), [cells for _, cells in spreadsheet.read_rows(path, {}, "table")]):
        got = {row["id"]: row["text"] for row in read}
        wanted = {row["id"]: str(row["text"]).strip() for row in rows}
        assert {id: text.strip() for id, text in got.items()} == wanted and "=head" in read[0]


def test_numbers_are_read_as_they_were_written(tmp_path):
    path = str(tmp_path / "t.csv")
    row = {"id": "01", "fold": 2, "p": 0.1 + 0.2, "dice": float("nan"), "distance": float("inf"), "count": -3}
    files.write_csv(path, [row, {"id": "02"}])
    first, second = files.read_numbers(path)
    assert {**first, "dice": 0} == {**row, "dice": 0} and np.isnan(first["dice"]) and isinstance(first["fold"], int)
    assert second["id"] == "02" and np.isnan(second["p"])
    for text, why in (
        ("", "it is empty"),
        ("id,p\n", "it has no lines below a header"),
        ("id,p\na,x\n", "could not convert"),
        ("id,p\na,1,2\n", "line 2 has 3 cells and the header 2"),
        ("id,p\na,1\nb\n", "line 3 has 1 cells and the header 2"),
        ("id,p\na,0.12", "it is cut at its end"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(files.Damaged, match=f"t.csv .{why}.*, wanted it as it was written: delete it"):
            files.read_numbers(path, remedy="delete it")
    with pytest.raises(files.Damaged, match="no column subject.*restore it"):
        (tmp_path / "t.csv").write_text("id,p\na,1\n")
        files.read_csv(path, "id", "subject")
    with pytest.raises(files.Damaged, match="No such file"):
        files.read_numbers(str(tmp_path / "none.csv"))
