"""The rules that a reader relies on: levels of imports, relative imports, few packages, no side effects, vendoring."""

import ast
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "fomo"
FILES = sorted(PACKAGE.rglob("*.py"))

# Rooms by level: an import goes to a lower level only, and rooms of one level do not import each other.
LEVELS = {
    0: ["config", "runtime"],
    1: ["nets", "transforms", "metrics", "losses", "folds", "ridge", "schedule", "space"],
    2: ["data", "checkpoint", "inference", "pages"],
    3: ["tasks"],
    4: ["kinds"],
    5: ["training", "run_folder"],
    6: ["report", "prediction"],
    7: ["evaluation"],
    8: ["runs"],
    9: ["cli"],
}
LEVEL = {room: level for level, rooms in LEVELS.items() for room in rooms}
RUN_TIME = {"torch", "nibabel", "numpy", "scipy", "yaml"}
OPTIONAL = {"matplotlib", "pydicom"}  # inside the function that needs them
KERNELS = {"fomo/nets/norm_kernels.py": {"triton"}}  # which comes with torch for CUDA; the file is imported where it is


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """(node, absolute top-level package or None, fomo room or None, at module level) of every import of a file."""
    tree = ast.parse(path.read_text())
    top = set(ast.walk(ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])))
    depth = len(path.relative_to(PACKAGE).parts)  # 1: directly in fomo/
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name.split(".")[0], None, node in top
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node, node.module.split(".")[0], None, node in top
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= depth, f"{path}: reaches out of the package"
            if node.level < depth:
                yield node, None, room_of(path), node in top
            elif node.module:
                yield node, None, node.module.split(".")[0], node in top
            else:
                for alias in node.names:
                    yield node, None, alias.name, node in top
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy.Module":
            name = ast.literal_eval(node.args[0])
            package, inside = name.lstrip("."), name.startswith(".")
            assert not inside or len(name) - len(package) == depth, f"{path}: {name} is in another room"
            yield node, *((None, package.split(".")[0]) if inside else (package.split(".")[0], None)), False


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down_and_name_only_allowed_packages(path):
    room = room_of(path)
    if room == "__init__":
        assert not list(imports(path)), "importing the package imports nothing"
        return
    assert room in LEVEL, f"{room} has no level: add it to LEVELS"
    for node, package, target, at_top in imports(path):
        where = f"{path.relative_to(ROOT)}:{node.lineno}"
        if package is not None:
            assert package != "fomo", f"{where}: absolute import of the package"
            allowed = RUN_TIME | OPTIONAL | sys.stdlib_module_names | KERNELS.get(str(path.relative_to(ROOT)), set())
            assert package in allowed, f"{where}: {package} is not allowed"
            assert not (package in OPTIONAL and at_top), f"{where}: {package} is optional"
        elif target != room:
            assert LEVEL[target] < LEVEL[room], f"{where}: {room} (L{LEVEL[room]}) imports {target} (L{LEVEL[target]})"
            assert LEVEL[room] > 1, f"{where}: {room} is a leaf and imports {target}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_depends_on_its_place_or_on_the_environment(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            assert node.id != "__file__"
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            # a tracker (ClearML) is told its folder by a variable, and by nothing else
            allowed = path.name in ("dist.py", "tracking.py")
            assert allowed, f"{path}:{node.lineno}: only dist.py reads the environment"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_importing_a_file_only_defines_things(path):
    for node in ast.parse(path.read_text()).body:
        allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        registration = isinstance(node, ast.Expr) and ast.unparse(node).startswith("_StrictLoader.add_constructor(")
        assert isinstance(node, allowed) or docstring or registration, f"{path}:{node.lineno}: {ast.unparse(node)[:60]}"


def test_no_inheritance_deeper_than_one():
    bases = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [ast.unparse(base) for base in node.bases]
    for name, parents in bases.items():
        for parent in parents:
            assert not bases.get(parent), f"{name} inherits from our own {parent}, which inherits from {bases[parent]}"


def test_top_level_of_the_repository():
    allowed = {"fomo", "train.py", "cv.py", "configs", "tests", "tools", "requirements.txt", "README.md", "LICENSE"}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    assert {line.split("/")[0] for line in tracked if line and not line.startswith(".")} <= allowed


VENDORED = """
import torch
from {name} import checkpoint, losses, nets
from {name}.training import optimization, step
network = nets.build("unet_b", 1, 2, mode="classification", width=2)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)

class Task:
    def loss(self, outputs, batch):
        return losses.cross_entropy(outputs, batch["target"])

batch = {{"image": torch.randn(2, 1, 32, 32, 32), "target": torch.tensor([0, 1]), "id": ["a", "b"]}}
autocast, scaler = optimization.precision("off", torch.device("cpu"))
before = [p.clone() for p in network.parameters()]
step.train_step(network, Task(), [batch], optimizer, scaler, autocast, clip_norm=1.0)
assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters()))
import {name}.runs.crossval, {name}.cli, sys
assert "fomo" not in sys.modules
"""


def test_a_copy_under_another_name_trains_a_step_from_another_directory(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "theirs" / "copied", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "work").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "theirs"), "OMP_NUM_THREADS": "1"}
    script = VENDORED.format(name="copied")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "work", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


LEAVES = [path for path in FILES if LEVEL.get(room_of(path)) == 1 and path.parent == PACKAGE]


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.name)
def test_a_leaf_file_works_alone(path, tmp_path):
    shutil.copy(path, tmp_path / "alone.py")
    done = subprocess.run([sys.executable, "-c", "import alone"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
