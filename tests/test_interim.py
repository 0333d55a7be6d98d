"""The page of a run that goes on is written when a fold ends, and costs the run nothing."""

import pytest

from fomo import kinds, report
from fomo.runs import crossval, interim


@pytest.fixture
def run(tiny_config, monkeypatch):
    """Function that runs a tiny cross-validation, of folds that are long enough for a page; returns its config."""

    def run():
        monkeypatch.setattr(interim, "_SHARE", 1e9)
        config = kinds.load(tiny_config("regression", train={"epochs": 1, "steps_per_epoch": 1}))
        crossval.run(config)
        return config

    return run


def test_the_page_is_written_between_the_folds(run, monkeypatch, capsys):
    pages, write = [], report.write

    def kept(folder):
        path = write(folder)
        with open(path) as file:
            pages.append(file.read())
        return path

    monkeypatch.setattr(report, "write", kept)
    run()
    assert len(pages) == 2 and "1 of 2 folds finished" in pages[0] and "2 of 2 folds finished" in pages[1]
    assert "In progress." in pages[0] and "In progress." not in pages[1]
    lines = [line for line in capsys.readouterr().out.splitlines() if " report " in line]
    assert [line.endswith("finished=false") for line in lines] == [True, False]


def test_a_page_that_cannot_be_written_fails_no_run(run, monkeypatch, capsys):
    calls, write = [], report.write

    def broken(folder):
        calls.append(folder)
        if len(calls) == 1:
            raise MemoryError("none left")
        return write(folder)

    monkeypatch.setattr(report, "write", broken)
    run()
    assert "the page of the run so far cannot be written" in "".join(capsys.readouterr()) and len(calls) == 2


def test_short_folds_wait_for_no_page(monkeypatch):
    times, written = iter([0, 10, 100, 140, 600, 1600, 1610]), []
    monkeypatch.setattr(interim.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(report, "write", written.append)

    class Folder:
        path, is_open = "run", True

    pages = interim.Pages(Folder)
    pages.write(lambda *_, **__: None)  # after 10 s: the first page may take two
    assert not written
    pages.write(lambda *_, **__: None)  # after 100 s; it takes 40
    pages.write(lambda *_, **__: None)  # after 460 more: 40 are too many
    assert len(written) == 1
    pages.write(lambda *_, **__: None)
    assert len(written) == 2
