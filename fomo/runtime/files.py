"""Files that are replaced at once: a reader never sees half a file, and a full disk leaves none behind."""

import contextlib
import csv
import json
import math
import os
import re
import shutil
import tempfile
import uuid


class Damaged(ValueError):
    """A file is not as it was written here."""

    exit_code = 2

    def __init__(self, path, why):
        why = getattr(why, "strerror", None) or why
        super().__init__(f"cannot read {path} ({why}), wanted it as it was written: restore it")


def write_csv(path, rows):
    """Write rows (dicts) below all their keys, in order of appearance; missing values stay empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    """The rows, as dicts of text."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_numbers(path):
    """The rows of a CSV that was written here, with numbers (an empty field: NaN). Raises Damaged for other files."""
    try:
        rows = [{name: _value(name, text) for name, text in row.items()} for row in read_csv(path)]
    except (OSError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise Damaged(path, error) from error
    if not rows:
        raise Damaged(path, "it has no lines below a header")
    return rows


_TEXT = ("id", "subject", "scan", "metric", "input")  # columns that are no numbers


def _value(column, text):
    """What was written: text or a number; folds, classes and decisions are whole numbers."""
    return text if column in _TEXT else int(text) if text.isdecimal() else float(text or "nan")


def write_json(path, value):
    """Write indented JSON that any parser reads: an undefined number (NaN) is null, an infinite one the text "inf"."""
    with replacing(path) as file:
        json.dump(_plain(value), file, indent=1, allow_nan=False)
        file.write("\n")


def read_json(path, *names):
    """The dict in a JSON file. Raises Damaged unless it has at least the keys `names`."""
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
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path, durable=False, previous=None):
    """A file to write text to, which takes the place of `path` at the end; another process may write the same file.

    durable: bytes, for a large file that only this process writes. It is on the disk before it takes the place, and the
        temporary name is always the same, so that the next write replaces what a kill leaves behind.
    previous: where the file that was at `path` is kept; a crash may then leave only that one.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{'tmp' if durable else uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") if durable else open(temporary, "x", newline="", encoding="utf-8") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if previous is not None and os.path.exists(path):
            os.replace(path, previous)
        os.replace(temporary, path)
        if durable and os.name == "posix":  # the new name must be on the disk, too
            descriptor = os.open(folder or ".", os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextlib.contextmanager
def new_folder(path, mode=0o755):
    """A folder to fill, which gets the name `path` at the end; FileExistsError where that has content by then."""
    parent, name = os.path.split(os.path.abspath(path))
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f".{name}-{os.getpid()}-", dir=parent)
    try:
        os.chmod(temporary, mode)
        yield temporary
        try:
            os.rename(temporary, path)
        except OSError as error:
            if os.path.isdir(path) and os.listdir(path):
                raise FileExistsError(f"{path} is there already") from error
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_left_by(pid, parent):
    """Remove the folders in `parent` that a killed process was filling, see `new_folder`."""
    for entry in os.scandir(parent):
        if re.fullmatch(rf"\..+-{pid}-\w{{8}}", entry.name):
            shutil.rmtree(entry.path, ignore_errors=True)


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
