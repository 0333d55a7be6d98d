"""One process at a time, and no other cases, folds or images than those that the run began with."""

import json
import pathlib
import subprocess
import sys
import types

import pytest
from conftest import ROOT

from fomo import kinds, tasks
from fomo.config import UserError
from fomo.data.cases import Case, Volume
from fomo.run_folder import RunFolder
from fomo.runs import splits as splits_module
from fomo.runtime.log import Log


def warnings(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if " WARN " in line]


def opened(folder, **data):
    content = {"data": {"root": str(folder), "channels": ["dwi_b1000"], **data}}
    return RunFolder(folder).claim(kinds.from_dict(content, "here"), Log())


def test_a_second_process_is_refused_while_the_first_one_lives(tmp_path, capsys):
    tests = pathlib.Path(__file__).parent
    paths = [str(ROOT), str(tests)]
    script = f"import sys; sys.path[:0] = {paths!r}; import test_run_folder as t; t.opened({str(tmp_path)!r})"
    file = opened(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode and f"{tmp_path}: another process is training into it" in done.stderr
    file.close()
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
    assert not warnings(capsys)


def test_a_folder_belongs_to_the_config_that_has_made_splits_in_it(tmp_path):
    opened(tmp_path, pattern="typo").close()
    opened(tmp_path).close()  # nothing was begun
    assert "typo" not in (tmp_path / "config.yaml").read_text()
    (tmp_path / "splits.json").write_text("{}")
    opened(tmp_path).close()
    with pytest.raises(UserError, match="holds a run of another config"):
        opened(tmp_path, pattern="other")


def test_replaced_images_are_warned_of(tmp_path, capsys):
    path = tmp_path / "splits.json"
    path.write_text('{"cases": {}, "folds": []}')
    for images, changed in (({"a": "1", "b": "2"}, 0), ({"a": "1", "b": "2"}, 0), ({"a": "3", "b": "2"}, 1)):
        cases = [types.SimpleNamespace(id=id, checksums=(voxels,)) for id, voxels in images.items()]
        splits_module.warn_of_changed_images(RunFolder(tmp_path), cases, Log())
        lines = warnings(capsys)
        assert len(lines) == changed and all("cases=1 example=a" in line for line in lines)
    assert set(json.loads(path.read_text())["images"]) == {"a", "b"}


def test_splits_are_not_reused_for_classes_of_other_names(tmp_path):
    config = kinds.from_dict(
        {
            "data": {"source": "table", "csv": "t.csv", "channels": ["t1"]},
            "task": {"targets": ["y"]},
            "cv": {"folds": 3},
        },
        "here",
    )
    task, path = tasks.build(config), tmp_path / "splits.json"

    def splits(*names):
        cases = [
            Case(f"c{n}", f"c{n}", (Volume(f"{n}.nii"),), None, n % 2, None, labels=(names[n % 2],)) for n in range(24)
        ]
        return splits_module.read_or_make_splits(config, task, cases, RunFolder(tmp_path))

    first = splits("healthy", "ill")
    assert splits("healthy", "ill") == first
    with pytest.raises(UserError, match=r"made for other cases \(12 differ: c1, "):
        splits("healthy", "mild")  # sorted, it has the same number
    saved = json.loads(path.read_text())
    for case in saved["cases"].values():
        assert case.pop("labels") in (["healthy"], ["ill"])
    path.write_text(json.dumps(saved))
    assert splits("healthy", "ill") == first, "begun before the names were kept"


@pytest.mark.parametrize("kind, column", [("fold_column", "fold"), ("leave_one_group_out", "group"), ("kfold", None)])
def test_splits_are_not_reused_for_other_folds_or_groups(tmp_path, kind, column):
    config = kinds.from_dict(
        {
            "data": {"source": "table", "csv": "t.csv", "channels": ["t1"], "groups": "g.csv"},
            "task": {"targets": ["y"]},
            "cv": {"kind": kind, "folds": 3},
        },
        "here",
    )
    task, folder = tasks.build(config), RunFolder(tmp_path)

    def cases(moved):
        names = [(f"{place}{n}", place if f"{place}{n}" != moved else "y", n) for place in "xyz" for n in range(8)]
        return [Case(i, i, (Volume(pathlib.Path(i)),), None, n % 2, group=place, fold=place) for i, place, n in names]

    first = splits_module.read_or_make_splits(config, task, cases(None), folder)
    assert splits_module.read_or_make_splits(config, task, cases(None), folder) == first
    if column is None:
        assert splits_module.read_or_make_splits(config, task, cases("x0"), folder) == first
    else:
        with pytest.raises(UserError, match=r"made for other cases \(1 differ: x0\)"):
            splits_module.read_or_make_splits(config, task, cases("x0"), folder)


def test_a_held_folder_is_known_before_anything_waits(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.check_free()
    assert not (tmp_path / "run").exists(), "looking makes nothing"
    file = opened(tmp_path)
    script = f"import sys; sys.path[:0] = {[str(ROOT)]!r}\n"
    script += f"from fomo.run_folder import RunFolder; RunFolder({str(tmp_path)!r}).check_free()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode and "another process is training into it" in done.stderr
    file.close()
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_the_splits_of_a_fold_that_has_begun_stay(tmp_path):
    config = kinds.from_dict({"data": {"root": "here", "channels": ["t1"]}, "cv": {"folds": 2}}, "here")
    cases = [Case(f"c{i}", f"s{i}", (Volume(f"{i}.nii"),), None, float(i % 2)) for i in range(12)]
    folder, task = RunFolder(tmp_path), tasks.build(config)
    splits = splits_module.read_or_make_splits(config, task, cases, folder)
    folder.fold(2).start(splits[1])
    recorded = json.loads((tmp_path / "splits.json").read_text())

    def edit(fold):
        """Exchange a training and a validation case of the same class."""
        edited = json.loads(json.dumps(recorded))
        train, val = edited["folds"][fold]["train"], edited["folds"][fold]["val"]
        place = next(i for i, id in enumerate(train) if (int(id[1:]) - int(val[0][1:])) % 2 == 0)
        train[place], val[0] = val[0], train[place]
        (tmp_path / "splits.json").write_text(json.dumps(edited))

    edit(0)
    assert splits_module.read_or_make_splits(config, task, cases, folder) != splits, "its fold has not begun"
    edit(1)
    with pytest.raises(UserError, match="splits.json: fold 2 has begun with other cases in train and val: restore"):
        splits_module.read_or_make_splits(config, task, cases, folder)
    (tmp_path / "fold_2" / "split.json").unlink()
    splits_module.read_or_make_splits(config, task, cases, folder)
    folder.fold(2).start(splits[1])
    (tmp_path / "splits.json").write_text(json.dumps(recorded))
    assert splits_module.read_or_make_splits(config, task, cases, folder) == splits


def test_another_version_of_the_code_is_a_warning(tmp_path, capsys):
    folder = RunFolder(tmp_path)
    folder.record(cases={}, folds=[])
    for code, begun, warned in (("a", False, 0), ("b", False, 0), ("a", True, 0), ("b", True, 1)):
        if begun:
            folder.fold(1).make()
        splits_module.warn_of_changed_code(folder, code, Log())
        found = warnings(capsys)
        assert len(found) == warned and all("then=a now=b" in line for line in found)
