"""CSV, JSON and text files, replaced at once: a reader never sees half a file, and a full disk leaves none behind."""

import contextlib
import csv
import json
import math
import os


class Damaged(ValueError):
    """A file that was written here is not as it was written."""

    exit_code = 2

    def __init__(self, path, why):
        super().__init__(f"cannot read {path} ({getattr(why, 'strerror', None) or why}), wanted it as it was written: restore it")


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


def read_json(path, *names):
    """The dict in a JSON file, which has at least the keys `names`; Damaged where it has not."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:  # also: not UTF-8
        raise Damaged(path, error) from error
    if not isinstance(content, dict):
        raise Damaged(path, f"it is a {type(content).__name__}")
    for name in names:
        if name not in content:
            raise Damaged(path, f"it has no {name}")
    return content


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
