"""Shared fixtures: one thread, the real volumes when they are beside the checkout, tiny phantom configs."""

import os
import pathlib
import subprocess
import sys

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
            "train": {"epochs": 2, "batch_size": 4, "steps_per_epoch": 3, "workers": 0, "patience": None, "log_every": 1},
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
