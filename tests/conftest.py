"""Shared fixtures: one thread, the real volumes when they are beside the checkout, tiny phantom configs and runs."""

import csv
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: minutes long; deselected by the README's test command")


@pytest.fixture(scope="session")
def shared_data():
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real volumes are not here")
    return folder


def run_command(script, *arguments, ranks=1, cwd=None, timeout=300):
    """Run a script of the repository as a user would; returns the finished process with its text output."""
    launch = [sys.executable]
    if ranks > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launch, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


# guard.py WHERE-TO-WRITE TOOL arguments ...: no sockets, no processes, nothing written elsewhere
GUARD = """
    import os, runpy, sys

    output, tool = sys.argv[1:3]

    def forbid(event, values):
        if event.startswith("socket.") or event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system"):
            raise SystemExit(f"forbidden: {event} {values}")
        writes = event == "open" and isinstance(values[0], str) and values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        writes = writes or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink")
        if writes and not os.path.abspath(values[0]).startswith((output, "/dev/null")):
            raise SystemExit(f"forbidden: {event} {values}")

    sys.addaudithook(forbid)
    sys.argv = [tool, *sys.argv[3:]]
    runpy.run_path(tool, run_name="__main__")
"""


def close_image(root):
    """Put the guard beside root/app, which a container's file was followed to fill; anybody may read, nobody change."""
    (root / "guard.py").write_text(textwrap.dedent(GUARD))
    for path in (root, *root.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o555 if path.is_dir() else 0o444)


def run_image(root, writable, *arguments, **environment):
    """Run root/app/predict.py under the guard, as a user whom the system does not know (where that can be)."""
    environment |= {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment |= {"HOME": "/nowhere", "LC_ALL": "C.UTF-8"}
    nobody = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups"]
    command = nobody if os.geteuid() == 0 and shutil.which("setpriv") else []
    command = [*command, sys.executable, root / "guard.py", writable, root / "app" / "predict.py", *arguments]
    command = list(map(str, command))
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)


def one_line_error(done, *said):
    """Exit code 2, one line on stderr, no traceback."""
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for text in said:
        assert text in done.stderr, done.stderr


def wanted(type="classification", **section):
    """What a task reads of each case, by its section of a config."""
    from fomo import config, tasks

    section = config.Task(type=type, **section)
    return tasks.TASKS[type].variant(section).wanted(section)


def tool(name, *arguments, root=ROOT):
    """Call main() of tools/NAME.py in this process."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", root / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(argument) for argument in arguments])


TINY = {
    "classification": ["dwi_b1000", "flair", "adc", "swi|t2s"],
    "segmentation": ["dwi_b1000", "flair", "swi|t2s"],
    "regression": ["t1", "t2"],
    "mae": ["dwi_b1000", "flair", "adc", "swi|t2s"],
    "multilabel": ["ct"],
}


@pytest.fixture(scope="session")
def phantom_root(tmp_path_factory):
    """Where the tiny phantoms and their cache live for the whole session."""
    return tmp_path_factory.mktemp("phantoms")


@pytest.fixture
def tiny_config(tmp_path, phantom_root):
    """Function that writes a config of a few seconds' training and returns its path; keyword arguments are sections."""

    def write(task="classification", /, **sections):
        content = {
            "name": "run",
            "output": str(tmp_path / "runs"),
            "task": {"type": task},
            "data": {
                "source": "phantom",
                "root": str(phantom_root),
                "cache": str(phantom_root / "cache"),
                "channels": TINY[task],
                "patch": [32, 32, 32],
                "spacing_mm": [8.0, 8.0, 8.0],
                "phantom_cases": 16,
                "phantom_size": 24,
                "prepare_workers": 0,
            },
            "model": {"width": 2},
            "optim": {"lr": 1e-3},
            "train": {
                "epochs": 2,
                "batch_size": 4,
                "steps_per_epoch": 3,
                "workers": 0,
                "patience": None,
                "log_every": 1,
                "amp": "off",  # alike on every machine
            },
            "augment": {"preset": "none"},
            # too few masks without foreground to have them in every part
            "cv": {"folds": 2, "val_fraction": 0.25, "stratify": task != "segmentation"},
            "eval": {"bootstrap": 50},
        }
        for name, section in sections.items():
            content[name] = {**content.get(name, {}), **section} if isinstance(section, dict) else section
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory, phantom_root):
    """Function: task -> the run folder of a tiny cross-validation, trained once. Final models of all kinds."""
    from fomo import checkpoint, kinds, nets
    from fomo.runs import crossval

    done = {}
    content = {
        "data": {
            "source": "phantom",
            "cache": str(phantom_root / "cache"),
            "patch": [32, 32, 32],
            "prepare_workers": 0,
        },
        "model": {"width": 2},
        "optim": {"lr": 1e-3},
        "train": {"epochs": 1, "batch_size": 4, "steps_per_epoch": 3, "workers": 0, "amp": "off"},
        "augment": {"preset": "none"},
        "eval": {"bootstrap": 0, "overlap": 0.3},
    }
    special = {
        "classification": {"cv": {"final": "soup"}, "eval": {"pool_windows": "max"}},
        "segmentation": {"cv": {"final": "ensemble", "stratify": False}, "eval": {"postprocess": "auto"}},
        "regression": {"cv": {"final": "refit"}, "eval": {"mirror_axes": [0, 2]}, "data": {"cache_dtype": "float16"}},
    }

    def run(task):
        if task not in done:
            folder = tmp_path_factory.mktemp(task)
            pretrained = nets.build("unet_b_lw_dec", 1, 1, width=2)
            checkpoint.save(folder / "pretrained.pt", {"model": pretrained.state_dict()})
            mine = {
                "name": "run",
                "output": str(folder),
                "task": {"type": task},
                "weights": {"path": str(folder / "pretrained.pt")},
            }
            for name, section in content.items():
                mine[name] = {**section, **special[task].get(name, {})}
            mine["cv"] = {"folds": 2, "val_fraction": 0.25, **special[task]["cv"]}
            mine["data"].update(
                channels=TINY[task],
                root=str(phantom_root),
                phantom_cases=16,
                phantom_size=24,
                spacing_mm=[5.0, 5.0, 5.0],
            )
            (folder / "config.yaml").write_text(yaml.safe_dump(mine))
            crossval.run(kinds.load(folder / "config.yaml"))
            done[task] = folder / "run"
        return done[task]

    return run


@pytest.fixture(scope="session")
def scans(phantom_root, trained):
    """Function: task -> the folder of its phantoms, as a data set in the task's layout."""

    def root(task):
        trained(task)
        return next(phantom_root.glob(f"task{list(TINY).index(task) + 1}_16x24*"))

    return root


def members_of(path, **arguments):
    """What predicts: the networks of a run folder, a folder of checkpoints or a checkpoint, on the CPU."""
    from fomo.prediction import members

    return members.load_members(members.find_checkpoints(str(path)), torch.device("cpu"), **arguments)


def channel_paths(root, task, id):
    """{channel: path} of a phantom case."""
    subject, session = re.fullmatch(r"(.+)_(ses_\d+)", id).groups()
    [folder] = [
        place
        for place in root.glob(f"*/{subject}/{session}")
        if place.parts[-3] != "labels" and "masked" not in place.parts[-3]
    ]
    return {
        path.name.removesuffix(".nii.gz").removeprefix("ss_"): str(path) for path in sorted(folder.glob("*.nii.gz"))
    }


def write_table(path, rows):
    """Write a CSV of these rows, whatever their values, and return its path as text."""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)
