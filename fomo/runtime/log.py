"""The plain-text log: one event a line, `time LEVEL event key=value ...`, made to be searched with grep.

Rank 0 writes to stdout and to a file, flushed line by line; other ranks are silent. On a terminal, but in no file, a
status line below the log says how far the run is.
"""

import copy
import datetime
import json
import os
import re
import sys
import time
import types


class Log:
    """log("epoch", fold=1, train_loss=.5) writes one line to stdout and to each of `paths`.

    Several processes may share a terminal. One of them, whose log was active from the start, has a status line; the
    lines of the others replace it.
    """

    def __init__(self, *paths, active=True):
        self._paths = paths
        self._active = active
        self._bound = {}
        self._sink = None
        self._status = types.SimpleNamespace(text="", drawn=-1e9) if active else None  # drawn: on the monotonic clock

    def bind(self, *more_paths, active=None, sink=None, **values):
        """A log that adds fixed values to every line, and writes to `more_paths` and to sink(event, values), too."""
        log = copy.copy(self)
        log._paths, log._bound = (*self._paths, *more_paths), {**self._bound, **values}
        log._active = self._active if active is None else active
        log._sink = sink or self._sink
        return log

    def status(self, text, every_s=0.0):
        """Replace the status line of a terminal, unless the last one was shown less than every_s ago.

        text: or a function that gives it, called only if the text is shown; "" for none.
        """
        if self._status is not None and _columns() and time.monotonic() - self._status.drawn >= every_s:
            self._status.text, self._status.drawn = text() if callable(text) else text, time.monotonic()
            _to_terminal("", self._status.text)

    def __call__(self, event, **values):
        self._write("INFO", event, values, sys.stdout)

    def warn(self, message, **values):
        self._write("WARN", "warn", {"message": message, **values}, sys.stdout)

    def error(self, message, **values):
        """The last line of a run that fails; it goes to stderr and to the files."""
        self._write("ERROR", "error", {"message": message, **values}, sys.stderr)

    def _write(self, level, event, values, stream):
        if not self._active:
            return
        values = {**self._bound, **values}
        now = datetime.datetime.now().isoformat(timespec="seconds")
        line = " ".join([now, level, event, *(f"{name}={format_value(value)}" for name, value in values.items())])
        if _columns():
            if stream is not sys.stdout:
                _to_terminal("", "")
                print(line, file=stream, flush=True)
            _to_terminal(line + "\n" if stream is sys.stdout else "", self._status.text if self._status else "")
        else:
            try:
                print(line, file=stream, flush=True)
            except BrokenPipeError:  # its reader has gone (`| head`); the run and its file go on
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        for path in self._paths:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        if self._sink is not None:
            self._sink(event, values)


def _columns():
    """Width of the terminal that stdout is; 0 where it is none."""
    return (os.get_terminal_size(sys.stdout.fileno()).columns or 80) if sys.stdout.isatty() else 0


def _to_terminal(lines, status):
    """Replace the status line, whoever drew it, by `lines` and a new one; one write, so that processes do not mix."""
    room = _columns() - 1  # a full line would wrap, and could not be taken back
    print(f"\r{' ' * room}\r{lines}{status[:room]}", end="", flush=True)


def format_value(value):
    """Floats as %.6g, lists joined by commas, text as it is or, where it could be misread, in quotes (as JSON)."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ",".join(format_value(item) for item in value) or "none"
    text = str(value)
    return text if re.fullmatch(r"[^\s\"=]+", text) else json.dumps(text, ensure_ascii=False)
