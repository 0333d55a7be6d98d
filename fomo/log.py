"""The plain-text log: one event a line, `time LEVEL event key=value ...`, made to be grepped.

Rank 0 writes to stdout and appends to a file, flushed line by line; other ranks are silent.
"""

import datetime
import json
import re
import sys


class Log:
    """log("epoch", fold=1, train_loss=.5) writes one line to stdout and to each of `paths`.

    `bind` returns a log that adds fixed values to every line, and may write to more files.
    """

    def __init__(self, *paths, active=True, **bound):
        self._paths = paths
        self._active = active
        self._bound = bound

    def bind(self, *more_paths, active=None, **values):
        active = self._active if active is None else active
        return Log(*self._paths, *more_paths, active=active, **{**self._bound, **values})

    def __call__(self, event, **values):
        self._write("INFO", event, values, sys.stdout)

    def warn(self, message, **values):
        self._write("WARN", "warn", {"message": message, **values}, sys.stdout)

    def error(self, message, **values):
        """The last line of a run that fails; it goes to stderr and to the file."""
        self._write("ERROR", "error", {"message": message, **values}, sys.stderr)

    def _write(self, level, event, values, stream):
        if not self._active:
            return
        line = format_line(level, event, {**self._bound, **values})
        print(line, file=stream, flush=True)
        for path in self._paths:
            with open(path, "a", encoding="utf-8") as file:
                file.write(line + "\n")


def format_line(level, event, values):
    time = datetime.datetime.now().isoformat(timespec="seconds")
    return " ".join([time, level, event, *(f"{name}={format_value(value)}" for name, value in values.items())])


def format_value(value):
    """%.6g for floats, lists joined by commas, text quoted (as JSON) only where it has to be."""
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
