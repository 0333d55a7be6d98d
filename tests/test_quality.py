"""The code keeps its shape: short and simple functions, short lines, one formatter, kinds that only their rooms know.

Each test lists all offenders as file:line.
"""

import ast
import importlib.util
import pathlib
import subprocess
import sys

import pytest

from fomo.nets import NETWORKS

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("fomo", "tools", "tests")
FILES = sorted([ROOT / "cv.py", ROOT / "train.py", *(path for name in FOLDERS for path in (ROOT / name).rglob("*.py"))])
PACKAGE = [path for path in FILES if path.is_relative_to(ROOT / "fomo")]

LINES, COMPLEXITY, COLUMNS = 60, 19, 120
KIND_ROOMS = ("fomo/tasks/", "fomo/data/sources/", "fomo/nets/", "fomo/kinds.py")
CHOOSERS = {("task", "type"), ("data", "source"), ("model", "name")}  # keys of the config that choose a kind


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def nodes(path, *kinds):
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def none(offenders):
    assert not offenders, "\n".join(["", *offenders])


def ruff(*arguments):
    """(whether all is well, lines of ruff's text)."""
    done = subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode == 0, [line for line in (done.stdout or done.stderr).splitlines() if line]


def test_no_function_is_long():
    offenders = []
    for path in PACKAGE:
        for node in nodes(path, ast.FunctionDef, ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if lines > LINES:
                offenders.append(f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines")
    none(offenders)


def test_no_function_is_complex():
    if importlib.util.find_spec("radon") is None:
        limit = f"lint.mccabe.max-complexity={COMPLEXITY}"
        well, lines = ruff("check", "--select", "C901", "--config", limit, "--output-format", "concise", "fomo")
        return none([] if well else lines)
    from radon.complexity import cc_visit

    offenders = []
    for path in PACKAGE:
        for block in cc_visit(path.read_text()):
            if block.complexity > COMPLEXITY and block.letter != "C":  # not a class: its methods are listed
                offenders.append(f"{name_of(path)}:{block.lineno}: {block.name} has complexity {block.complexity}")
    none(offenders)


def test_no_line_is_long():
    none(
        [
            f"{name_of(path)}:{number}: {len(line)} characters"
            for path in FILES
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if len(line) > COLUMNS
        ]
    )


@pytest.mark.parametrize("command", (("check",), ("format", "--check")), ids=" ".join)
def test_ruff_is_content(command):
    well, lines = ruff(*command, "--output-format", "concise", ".")
    none([] if well else lines)


def is_chooser(node):
    """Whether it is an attribute such as `config.task.type`, or `task.type`."""
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value
    return (getattr(owner, "attr", getattr(owner, "id", None)), node.attr) in CHOOSERS


def networks_in(node):
    """Names of networks that stand in a list, tuple, set or dict."""
    values = node.keys if isinstance(node, ast.Dict) else node.elts
    return [value.value for value in values if isinstance(value, ast.Constant) and value.value in NETWORKS]


def test_only_their_own_rooms_know_the_kinds():
    offenders = []
    for path in PACKAGE:
        if name_of(path).startswith(KIND_ROOMS):
            continue
        for node in nodes(path, ast.Compare, ast.Match, ast.List, ast.Tuple, ast.Set, ast.Dict):
            if isinstance(node, ast.Compare):
                sides = [node.left, *node.comparators]
                named = [side for side in sides if isinstance(side, ast.Constant) and side.value in NETWORKS]
                wrong = named or any(map(is_chooser, sides))
            elif isinstance(node, ast.Match):
                wrong = is_chooser(node.subject)
            else:
                wrong = len(networks_in(node)) > 1
            if wrong:
                offenders.append(f"{name_of(path)}:{node.lineno}: {ast.unparse(node).splitlines()[0][:80]}")
    none(offenders)
