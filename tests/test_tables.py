"""Files that are replaced at once, also by two processes that write the same one."""

import multiprocessing
import os
import stat

import numpy as np
import pytest

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
        with files.replacing(str(path), durable=True, previous=str(previous)) as file:
            file.write(content)
    assert path.read_bytes() == b"second" and previous.read_bytes() == b"first"
    assert events == ["sync", "t.bin", "sync", "sync", "old.bin", "t.bin", "sync"]
    assert sorted(os.listdir(tmp_path)) == ["old.bin", "t.bin"]
    monkeypatch.chdir(tmp_path)
    with files.replacing("t.bin", durable=True) as file:
        file.write(b"third")
    assert path.read_bytes() == b"third" and previous.read_bytes() == b"first"


def test_numbers_are_read_as_they_were_written(tmp_path):
    path = str(tmp_path / "t.csv")
    row = {"id": "01", "fold": 2, "p": 0.1 + 0.2, "dice": float("nan"), "distance": float("inf"), "count": -3}
    files.write_csv(path, [row, {"id": "02"}])
    first, second = files.read_numbers(path)
    assert {**first, "dice": 0} == {**row, "dice": 0} and np.isnan(first["dice"]) and isinstance(first["fold"], int)
    assert second["id"] == "02" and np.isnan(second["p"])
    for text in ("id,p\n", "id,p\na,x\n", "id,p\na,1,2\n", "id,p\na\n"):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(files.Damaged, match="t.csv .*, wanted it as it was written: restore it"):
            files.read_numbers(path)
    with pytest.raises(files.Damaged, match="No such file"):
        files.read_numbers(str(tmp_path / "none.csv"))
