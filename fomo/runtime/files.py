"""Files that are replaced at once: a reader never sees half a file, and a full disk leaves none behind."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import uuid

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how cells begin that a spreadsheet may run, behind quotes of ours or not


class Damaged(ValueError):
    """A file is not as it was written here."""

    exit_code = 2

    def __init__(self, path, why, remedy="restore it"):
        why = getattr(why, "strerror", None) or why
        super().__init__(f"cannot read {path} ({why}), wanted it as it was written: {remedy}")


def write_csv(path, rows):
    """Write rows (dicts) below all their keys, in order of appearance; missing values stay empty.

    A text that a spreadsheet would run as a formula gets a single quote in front, see `plain_text`.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(map(_cell, columns))
        writer.writerows([_cell(row.get(name, "")) for name in columns] for row in rows)


def as_text(row):
    """A row as `read_csv` will give it back."""
    return {name: "" if value is None else str(value) for name, value in row.items()}


def _cell(value):
    """A value as it is written: numbers, also as text, are no formulas."""
    runs = isinstance(value, str) and _FORMULA.match(value) and not NUMBER.fullmatch(value.replace("inf", "0"))
    return f"'{value}" if runs else value


def plain_text(cell):
    """A cell without the quote that `write_csv` has put in front of it."""
    return cell[1:] if cell[:1] == "'" and _FORMULA.match(cell) else cell


def read_csv(path, *columns, remedy="restore it"):
    """The rows, as dicts of text. Raises Damaged for a file that was cut or lacks one of `columns`."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            content = file.read()
        lines = [list(map(plain_text, cells)) for cells in csv.reader(io.StringIO(content), strict=True)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Damaged(path, error, remedy) from error
    if not lines:
        raise Damaged(path, "it is empty", remedy)
    header, *rows = lines
    lacking = [name for name in columns if name not in header]
    if lacking or not content.endswith("\n"):
        raise Damaged(path, f"it has no column {lacking[0]}" if lacking else "it is cut at its end", remedy)
    for line, cells in enumerate(rows, start=2):
        if len(cells) != len(header):
            raise Damaged(path, f"line {line} has {len(cells)} cells and the header {len(header)}", remedy)
    return [dict(zip(header, cells)) for cells in rows]


def read_numbers(path, remedy="restore it"):
    """The rows of a CSV that was written here, with numbers (an empty field: NaN). Raises Damaged for other files."""
    try:
        rows = [{name: _value(name, text) for name, text in row.items()} for row in read_csv(path, remedy=remedy)]
    except Damaged:
        raise
    except ValueError as error:
        raise Damaged(path, error, remedy) from error
    if not rows:
        raise Damaged(path, "it has no lines below a header", remedy)
    return rows


_TEXT = ("id", "subject", "scan", "metric", "input", "missing")  # columns that are no numbers


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


def append_line(path, values):
    """Add a line of texts to a file, which has it on the disk when this returns; see `read_lines`."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path, check, remedy="restore it"):
    """What `append_line` has added, but for a last line that a crash has cut; [] without a file.

    check: raises ValueError or TypeError for a line that is not as it was written.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = [json.loads(line) for line in file if line.endswith("\n")]
        for line in found:
            check(line)
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(path, error, remedy) from error


def sha256(path):
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path, text):
    with replacing(path) as file:
        file.write(text)


@contextlib.contextmanager
def replacing(path, large=False, previous=None):
    """A file to write text to, which takes the place of `path` at the end; another process may write the same file.

    It is on the disk before it takes the place: after a crash there is the old file or the new one.

    large: bytes, for a file that only this process writes. The temporary name is always the same, so that the next
        write replaces what a kill leaves behind.
    previous: where the file that was at `path` is kept; a crash may then leave only that one.
    """
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{'tmp' if large else uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") if large else open(temporary, "x", newline="", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None and os.path.exists(path):
            os.replace(path, previous)
        os.replace(temporary, path)
        if os.name == "posix":  # the new name must be on the disk, too
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
