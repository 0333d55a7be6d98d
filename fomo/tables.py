"""CSV, JSON and text files, replaced at once: a reader never sees half a file, and a full disk leaves none behind."""

import contextlib
import csv
import json
import math
import os


def write_csv(path, rows):
    """Rows (dicts) under all their keys, in order of appearance; missing values stay empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with _replacing(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """Rows as dicts of text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_json(path, value):
    """Indented JSON that any parser reads: an undefined number (NaN) is null, an infinite one the text "inf"."""
    with _replacing(path) as file:
        json.dump(_plain(value), file, indent=1, allow_nan=False)
        file.write("\n")


def read_json(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_text(path, text):
    with _replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def _replacing(path):
    temporary = path + ".tmp"
    try:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            yield file
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
