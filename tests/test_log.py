"""The log is an interface: one event a line, fixed form, quoted where it must be."""

import re
import shlex
import subprocess
import sys

from conftest import ROOT

from fomo.runtime.log import Log, format_value


def test_line_form(tmp_path, capsys):
    log = Log(tmp_path / "log.txt").bind(fold=1)
    log("epoch", epoch=3, train_loss=0.51234567, best=True, note="two words", ids=["a", "b"], nothing=None)
    line = capsys.readouterr().out
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d INFO epoch fold=1 epoch=3 train_loss=0.512346 best=true "
        r'note="two words" ids=a,b nothing=none\n',
        line,
    )
    assert (tmp_path / "log.txt").read_text() == line


def test_warnings_and_errors_have_their_level(tmp_path, capsys):
    log = Log(tmp_path / "log.txt")
    log.warn("careful", cases=2)
    log.error("stop")
    captured = capsys.readouterr()
    assert "WARN warn message=careful cases=2" in captured.out
    assert "ERROR error message=stop" in captured.err
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 2


def test_other_ranks_are_silent(tmp_path, capsys):
    Log(tmp_path / "log.txt", active=False)("run", a=1)
    assert capsys.readouterr().out == "" and not (tmp_path / "log.txt").exists()


def test_a_value_never_breaks_its_line():
    assert format_value('a "b"\nc=d') == '"a \\"b\\"\\nc=d"'
    assert format_value(1e-9) == "1e-09" and format_value(float("nan")) == "nan" and format_value(()) == "none"


def test_a_reader_that_has_gone_ends_nothing(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\nfrom fomo.runtime.log import Log\n"
    code += f"log = Log({str(tmp_path / 'log.txt')!r})\n"
    code += "for step in range(5000): log('train', step=step)"
    done = subprocess.run(
        f"{sys.executable} -c {shlex.quote(code)} | head -n 1", shell=True, capture_output=True, text=True
    )
    assert " train step=0" in done.stdout and done.stderr == ""
    assert (tmp_path / "log.txt").read_text().splitlines()[-1].endswith(" train step=4999")
