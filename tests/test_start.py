"""What a command imports: nothing heavy before it is needed, and never what no run needs."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

IMPORTED = """
import sys
sys.path.insert(0, {root!r})
{script}
print(*sorted(name for name in {heavy!r} if name in sys.modules))
"""
HEAVY = ("torch", "nibabel", "pydicom", "scipy.special", "scipy.stats", "scipy.ndimage", "matplotlib", "sympy")
DYNAMO = ("torch._dynamo", "torch._inductor", "sympy", "scipy.stats")
COMMAND = "import cv\ntry: cv.cli.run(cv.main)\nexcept SystemExit as end: print(end.code)"


def heavy_after(script, heavy=HEAVY, arguments=(), cwd=None):
    """(what a script prints but for its last line, those of `heavy` that it has imported)."""
    script = IMPORTED.format(root=str(ROOT), script=script, heavy=heavy)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    return printed, last.split()


@pytest.mark.parametrize("arguments", (["--help"], ["configs/demo_task1.yaml", "train.epochs=0"]), ids=" ".join)
def test_help_and_a_wrong_config_import_nothing_heavy(arguments):
    printed, heavy = heavy_after(COMMAND, arguments=arguments, cwd=ROOT)
    assert printed[-1] == ("0" if arguments == ["--help"] else "2") and not heavy


PREPARES = """
import cv
from fomo import kinds, tasks
from fomo.data import sources
config = kinds.load(sys.argv[1])
wanted = tasks.wanted(config)
print(len(sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted)))
"""


def test_preprocessing_imports_no_torch(tiny_config, tmp_path):
    """Its processes import the command anew, and what prepares a case."""
    data = {"root": str(tmp_path), "cache": str(tmp_path / "cache"), "phantom_cases": 4}
    printed, heavy = heavy_after(PREPARES, ("torch", "scipy.stats"), [tiny_config("segmentation", data=data)])
    assert printed == ["4"] and not heavy


TRAINS = """
from fomo import kinds, tasks
from fomo.runs import crossval
config = kinds.load(sys.argv[1])
crossval.run(config, one_split=tasks.kind(config).pretrains)
"""


@pytest.mark.parametrize("type", ["classification", "mae"])
def test_a_run_imports_no_compiler(tiny_config, tmp_path, type):
    """torch's own optimizers would: it takes longer than all else before the first step."""
    printed, heavy = heavy_after(TRAINS, DYNAMO, [tiny_config(type, train={"epochs": 1}, cv={"folds_to_run": [1]})])
    assert not heavy


@pytest.mark.parametrize("name", ["embed", "look", "probe", "probe_stages", "scoreboard"])
def test_help_of_tools_imports_nothing_heavy(name):
    run = f"runpy.run_path('tools/{name}.py', run_name='__main__')"
    script = f"import runpy\ntry: {run}\nexcept SystemExit as end: print(end.code)"
    printed, heavy = heavy_after(script, arguments=["--help"], cwd=ROOT)
    assert printed[-1] == "0" and not heavy
