"""The estimates by hand; and what a terminal shows of a run: every line of the log, and how long it still takes."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from conftest import ROOT

from fomo.runtime.log import Log
from fomo.runtime.progress import Progress, duration


def test_estimates_by_hand():
    progress = Progress()
    progress.folds_after = 2
    progress.begin_training(40, steps_per_epoch=10)
    progress.step_took(30.0)
    assert progress.fold_s(1) == 39 * 30
    for _ in range(5):
        progress.step_took(2.0)  # from the second step on the first, slow one is forgotten
    assert progress.fold_s(6) == 34 * 2 and progress.run_s(6) == 34 * 2 + 2 * 40 * 2
    progress.validate_s = 7.0
    assert progress.fold_s(10) == 30 * 2 + 4 * 7  # the validation after step 10 is still to come
    assert progress.fold_s(11) == 29 * 2 + 3 * 7
    progress.test_s = 5.0
    assert progress.run_s(11) == 29 * 2 + 3 * 7 + 2 * (40 * 2 + 4 * 7) + 3 * 5
    progress.folds_after = 0
    progress.begin_training(40, steps_per_epoch=10)
    progress.step_took(1.0)
    assert progress.run_s(40) == 7 + 5  # what is left after the last step: one validation, one test
    assert progress.line(3, 40) == "7 s left in fold 3, 12 s in all; epoch 4/4, step 40/40"


def test_durations():
    shown = {
        0.4: "0 s",
        89: "89 s",
        90: "2 min",
        3599: "1 h 00 min",
        3900: "1 h 05 min",
        86400 * 3 + 3600 * 4: "3 d 4 h",
    }
    assert {seconds: duration(seconds) for seconds in shown} == shown


class Terminal:
    """What a terminal shows that knows the carriage return and the line feed; every state of its last line."""

    def __init__(self, text):
        self.lines, self.states, column = [""], [], 0
        for character in text.replace("\r\n", "\n"):
            if character == "\n":
                self.lines.append("")
                column = 0
            elif character == "\r":
                self.states.append(self.lines[-1].rstrip())
                column = 0
            else:
                line = self.lines[-1]
                self.lines[-1] = line[:column] + character + line[column + 1 :]
                column += 1
        self.lines = [line.rstrip() for line in self.lines]


def on_a_terminal(command, columns=100):
    """(exit code, all that the command has written to a terminal of that width)."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's end of a terminal whose other side is closed
            break
        if not part:
            break
        written += part
    os.close(ours)
    return running.wait(), written.decode()


TWO_PROCESSES = """
import sys
sys.path.insert(0, {root!r})
from fomo.runtime.log import Log
main = Log({path!r}).bind(fold=1)
other = Log(active=False).bind({path!r}, active=True, fold=2)  # another rank and fold, the same terminal
main("train", step=1)
main.status("a status that is longer than the line after it " + "x" * 200)
other("train", step=1)
other.status("of another rank: not shown")
main.status(lambda: "short")
main("train", step=2)
main.warn("careful")
main.status(lambda: 1 / 0, every_s=60)
main.error("ended")
main.status("")
"""


def test_lines_of_several_processes_replace_the_status_line(tmp_path):
    path = str(tmp_path / "log.txt")
    code, text = on_a_terminal([sys.executable, "-c", TWO_PROCESSES.format(root=str(ROOT), path=path)], columns=60)
    terminal = Terminal(text)
    log = (tmp_path / "log.txt").read_text()
    assert code == 0 and terminal.lines == [*log.splitlines(), ""]
    assert re.findall(r"fold=(\d)", log) == ["1", "2", "1", "1", "1"] and "\r" not in log
    shown = [state for state in dict.fromkeys(terminal.states) if state]
    assert [state[:21] for state in shown] == [
        "a status that is long",
        "short",
    ]  # what came too early was not asked for
    assert max(map(len, shown)) == 59  # one column is left: a full line would wrap


def test_a_pipe_has_no_status_line(capsys):
    log = Log()
    log.status("not here")
    log.status(lambda: 1 / 0)  # is not called
    log("train", step=1)
    written = capsys.readouterr().out
    assert "not here" not in written and "\r" not in written


def test_a_run_on_a_terminal_keeps_its_log_and_shows_the_time_left(tiny_config, tmp_path):
    code, text = on_a_terminal([sys.executable, str(ROOT / "cv.py"), str(tiny_config("classification"))])
    log = (tmp_path / "runs" / "run" / "log.txt").read_text()
    terminal = Terminal(text)
    assert code == 0, text
    assert (
        [line for line in terminal.lines if line] == log.splitlines() and "\r" not in log and " left in fold" not in log
    )
    shown = "\n".join(terminal.states)
    for fold in (1, 2):
        assert re.search(rf"\d+ s left in fold {fold}, \d+ s in all; epoch \d/2, (step \d/6|validation)", shown)
        assert f"testing fold {fold}" in shown
    trained = re.findall(r" train fold=(\d) epoch=\d step=(\d) .*eta_s=(\S+) run_eta_s=(\S+)", log)
    assert [(fold, step) for fold, step, _, _ in trained] == [(f, str(s)) for f in "12" for s in range(1, 7)]
    assert all(float(run_eta) >= float(eta) > 0 for _, step, eta, run_eta in trained if step != "6")
