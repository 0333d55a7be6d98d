"""The index of the cache: a start from it looks at no file of a case, and what changed is noticed all the same."""

import builtins
import dataclasses
import multiprocessing
import os
import shutil

import numpy as np
import pytest
from conftest import wanted

from fomo import config, tasks
from fomo.data import cache, index, loader, sources
from fomo.data.cases import Case, Volume

TASK = wanted(type="mae")


class Log:
    def __init__(self):
        self.lines = []

    def __call__(self, event, **values):
        self.lines.append(values)

    def warn(self, message, **values):
        self.lines.append({"message": message})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A tree of 300 volumes of 60 subjects with its cache."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(300):
        path = folder / "data" / f"sub_{number // 5:02d}" / f"scan_{number % 5}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(number).normal(100, 10, (4, 4, 4)).astype(np.float32))
    data = config.Data(
        source="volumes",
        root=str(folder / "data"),
        cache=str(folder / "cache"),
        channels=("mri",),
        spacing_mm=None,
        crop=False,
    )
    start(data)
    return data


@pytest.fixture
def data(prepared, tmp_path):
    """A copy of its own of 15 of them, for tests that change files; with the index trusted."""
    for subject in ("sub_00", "sub_01", "sub_02"):
        shutil.copytree(os.path.join(prepared.root, subject), tmp_path / "data" / subject)
    data = dataclasses.replace(prepared, root=str(tmp_path / "data"), cache=str(tmp_path / "cache"), rescan="never")
    start(data)
    return data


def start(data, log=None):
    return cache.prepare(sources.list_cases(data, TASK), data, TASK, log, workers=0)


def test_a_start_from_the_index_touches_no_file_of_a_case(prepared, monkeypatch):
    looked = start(prepared)
    touched = []
    for place, name in ((os, "stat"), (os, "lstat"), (builtins, "open")):
        real = getattr(place, name)
        monkeypatch.setattr(
            place, name, lambda path, *rest, real=real, **options: touched.append(path) or real(path, *rest, **options)
        )
    log = Log()
    cases = start(dataclasses.replace(prepared, rescan="never"), log)
    monkeypatch.undo()
    assert len(touched) < 30 and log.lines[0]["unseen"] == log.lines[0]["cached"] == 300
    assert [dataclasses.replace(case, unseen=None) for case in cases] == looked and cases[0].unseen
    for case in cases[::50]:
        np.testing.assert_array_equal(case.image(), looked[cases.index(case)].image())
        assert case.geometry.shape == case.shape == (4, 4, 4) and case.background == (case.image().min(),)


def test_few_cases_are_looked_at_unless_told_otherwise(prepared, monkeypatch):
    assert {case.unseen for case in start(prepared)} == {None}
    monkeypatch.setattr("fomo.data.cases.MANY", 299)
    assert None not in {case.unseen for case in start(prepared)}
    assert {case.unseen for case in start(dataclasses.replace(prepared, rescan="always"))} == {None}


def test_new_and_removed_cases_and_entries_are_noticed(data):
    os.rename(os.path.join(data.root, "sub_00", "scan_0.npy"), os.path.join(data.root, "sub_00", "other.npy"))
    os.remove(os.path.join(data.root, "sub_01", "scan_4.npy"))
    shutil.rmtree(start(data)[-1].folder)
    log = Log()
    cases = start(data, log)
    assert [case.id for case in cases][:2] == ["sub_00_other", "sub_00_scan_1"] and len(cases) == 14
    assert log.lines[0]["cached"] == 13 and os.path.isdir(cases[-1].folder) and cases[0].image().shape == (1, 4, 4, 4)


def test_an_entry_that_is_gone_is_made_again_beside_a_new_case(data):
    shutil.rmtree(start(data)[-1].folder)
    os.rename(os.path.join(data.root, "sub_00", "scan_0.npy"), os.path.join(data.root, "sub_00", "other.npy"))
    cases = start(data)
    assert len(cases) == 15 and {case.image().shape for case in cases} == {(1, 4, 4, 4)}
    assert [case.folder for case in start(data)] == [case.folder for case in cases]


def test_a_file_that_changed_in_place_ends_the_run_when_it_is_read(data):
    path = os.path.join(data.root, "sub_01", "scan_2.npy")
    before = next(case for case in start(data) if case.id == "sub_01_scan_2").image()[:]
    np.save(path, np.random.default_rng(9).normal(0, 1, (4, 4, 4)).astype(np.float32))
    os.utime(path, (1, 1))
    case = next(case for case in start(data) if case.id == "sub_01_scan_2")
    with pytest.raises(config.UserError, match="sub_01_scan_2: .*scan_2.npy .*changed .*data.rescan=always"):
        case.image()
    again = dataclasses.replace(data, rescan="always")
    new = next(case for case in start(again) if case.id == "sub_01_scan_2")
    assert new.folder != case.folder and not np.array_equal(new.image(), before)
    assert np.array_equal(next(case for case in start(data) if case.folder == new.folder).image(), new.image()), (
        "and stays so"
    )
    os.remove(path)
    with pytest.raises(config.UserError, match="cannot read .*scan_2.npy"):
        case.image()


def test_a_case_under_another_id_has_an_entry_of_its_own(data):
    path = os.path.join(data.root, "sub_00", "scan_0.npy")
    for id in ("b", "b-c", "b"):
        case = Case(id, id, (Volume(path),), None, None, None)
        (cached,) = cache.prepare([case], data, TASK, workers=0)
        assert os.path.basename(cached.folder).rpartition("-")[0] == id and cached.image().shape == (1, 4, 4, 4)


def test_a_damaged_index_is_made_anew(data):
    (name,) = [name for name in os.listdir(data.cache) if name.startswith("index-")]
    path = os.path.join(data.cache, name)
    whole = index.read(path)
    for damage in (b"[1, 2]\n", b"\xff\n", b"{}\n"):
        with open(path, "ab") as file:
            file.write(damage)
        log = Log()
        assert len(start(data, log)) == 15
        assert path in log.lines[0]["message"] and "line 16" in log.lines[0]["message"] and index.read(path) == whole


def test_an_entry_that_is_gone_or_cut_is_one_line(data):
    cases = start(data)
    with open(os.path.join(cases[0].folder, "image.npy"), "r+b") as file:
        file.truncate(10)
    shutil.rmtree(cases[1].folder)
    for case in cases[:2]:
        with pytest.raises(config.UserError, match=f"case {case.id}: cannot read .*run again"):
            case.image()


def test_the_users_error_in_a_worker_is_the_line_that_it_is(data):
    settings = config.Config(
        data=dataclasses.replace(data, patch=(32, 16, 16)),
        task=config.Task(type="mae"),
        train=config.Train(workers=1, batch_size=1),
    )
    cases = start(data)
    for prepared in cases:
        os.utime(prepared.case.images[0].path, (1, 1))
    with pytest.raises(config.UserError, match="^case sub_0.*has changed.*rescan=always$") as error:
        next(loader.batches(settings, tasks.build(settings), cases, 1, loader.Plan(1, 0, 1, 1), 0, 4))
    assert not multiprocessing.active_children(), f"no worker is left, though {error} is held"


def test_any_file_of_a_folder_changes_its_entry(tmp_path):
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(b"one")
    case = Case("a", "a", (Volume(str(tmp_path)),), None, None, None)
    entries = {cache._entry(case, case.images, "")}
    os.utime(tmp_path / "2.dcm", (1, 1))
    entries.add(cache._entry(case, case.images, ""))
    (tmp_path / "3.dcm").write_bytes(b"")
    entries.add(cache._entry(case, case.images, ""))
    assert len(entries) == 3
