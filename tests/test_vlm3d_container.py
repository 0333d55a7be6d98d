"""VLM3D's container: what its Dockerfile puts into it, its call, and what it answers of slices and of whole volumes."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from conftest import ROOT, close_image, run_image, tool, write_table

from fomo import kinds
from fomo.config import UserError
from fomo.data import ct, extract
from fomo.data.phantoms import chests
from fomo.prediction import vlm3d
from fomo.runs import crossval
from fomo.runtime import files
from fomo.runtime.log import Log


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Phantom CTs in raw/, their slices in out/, and three of the CTs as the challenge gives them in input/."""
    folder = tmp_path_factory.mktemp("vlm3d")
    chests.make(str(folder / "raw"), 16, 40)
    settings = ct.Settings(slices=2, size=64, strategy="uniform")
    extract.extract(str(folder / "raw" / "volumes"), str(folder / "out"), settings, Log(active=False), workers=0)
    for path in sorted((folder / "raw" / "volumes").iterdir())[:3]:
        write_mha(folder / "input" / "nested" / path.name.replace(".nii.gz", ".mha"), nibabel.load(path))
    return folder


def write_mha(path, image):
    """A NIfTI image in ITK's format, packed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(image.dataobj).astype("<i2")
    affine = np.diag([-1, -1, 1, 1]) @ image.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)

    def text(values):
        return " ".join(f"{value:.17g}" for value in np.ravel(values))

    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "CompressedData": "True",
        "TransformMatrix": text((affine[:3, :3] / sizes).T),
        "Offset": text(affine[:3, 3]),
        "ElementSpacing": text(sizes),
        "DimSize": text(array.shape),
        "ElementType": "MET_SHORT",
        "ElementDataFile": "LOCAL",
    }
    header = "".join(f"{key} = {value}\n" for key, value in lines.items())
    path.write_bytes(header.encode() + zlib.compress(array.tobytes(order="F")))


@pytest.fixture(scope="module")
def best(root):
    """Function: `slices` or `volumes` -> a checkpoint of networks that see them."""
    done = {}

    def train(kind):
        if kind not in done:
            content = {
                "name": kind,
                "output": str(root / "runs"),
                "task": {"type": "multilabel", "targets": list(chests.LABELS)},
                "train": {"epochs": 1, "batch_size": 4, "steps_per_epoch": 2, "workers": 0, "patience": None},
                "augment": {"preset": "none"},
                "cv": {"folds": 2, "val_fraction": 0.3, "folds_to_run": [1], "stratify": False},
                "eval": {"bootstrap": 0, "calibrate": "half"},
            }
            labels = root / "raw" / "multi_abnormality_labels.csv"
            if kind == "slices":
                content["data"] = {"source": "slices", "csv": str(root / "out" / "splits" / "all_slices.csv"),
                                   "labels_csv": str(labels), "channels": ["ct"], "normalize": "none",
                                   "patch": [64, 64, 1]}  # fmt: skip
                content["model"] = {"name": "resnet50", "width": 4}
            else:
                rows = files.read_csv(labels)
                rows = [{"id": row["VolumeName"], "subject": row["VolumeName"].split("_a_")[0],
                         "ct": f"raw/volumes/{row['VolumeName']}", **row} for row in rows]  # fmt: skip
                table = write_table(root / "table.csv", rows)
                content["data"] = {"source": "table", "csv": table, "channels": ["ct"], "patch": [32, 32, 32],
                                   "spacing_mm": [12, 12, 12], "cache": str(root / "cache"),
                                   "prepare_workers": 0}  # fmt: skip
                content |= {"model": {"width": 2}, "audit": {"rivals": False}}
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(crossval.report, "write", lambda *_, **__: None)  # has tests of its own
                crossval.run(kinds.from_dict(content, "here"))
            done[kind] = root / "runs" / kind / "fold_1" / "best.pt"
        return done[kind]

    return train


@pytest.fixture(scope="module")
def image(best):
    """The folder that tools/vlm3d.Dockerfile makes, which anybody may read and nobody may change."""
    docker = (ROOT / "tools" / "vlm3d.Dockerfile").read_text()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="vlm3d-", dir="/tmp"))
    folder.chmod(0o755)
    for source, target in re.findall(r"^COPY (\S+) /app/(\S+)$", docker, re.M):
        path = best("slices") if "CHECKPOINTS" in source else ROOT / source
        place = folder / "app" / target / ("best.pt" if "CHECKPOINTS" in source else "")
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if path.is_dir() else shutil.copy)(path, place)
    install, _, steps, user = re.findall(r"^RUN (.+)$", re.sub(r" \\\n +", " ", docker), re.M)
    needed = (ROOT / "requirements.txt").read_text().split()
    assert re.findall(r'"(.+?)"', install) == [name for name in needed if not name.startswith(("torch", "matplotlib"))]
    assert "useradd" in user and "chown user /output" in user and re.search(r"^USER user$", docker, re.M)
    shell = re.sub(r"(?<![\w.])/(?=(app|input|output)\b)", f"{folder}/", steps)
    python = pathlib.Path(sys.executable).parent
    subprocess.run(["sh", "-ec", f"PATH={python}:$PATH; {shell}"], check=True)  # its last step loads the checkpoints
    close_image(folder)
    yield folder
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def scored(path):
    """{name of a volume: {label: probability}} as the challenge's scorer reads results.json (json_to_csv.py)."""
    content = json.loads(path.read_text())
    assert set(content) == {"name", "type", "version", "predictions"}
    found = {}
    for entry in content["predictions"]:
        name = pathlib.Path(entry["input_image_name"]).stem.replace(".nii", "")
        assert name == entry["input_image_name"] and name not in found
        assert set(entry["probabilities"]) == set(chests.LABELS)
        assert all(isinstance(p, float) and 0 <= p <= 1 for p in entry["probabilities"].values())
        found[name] = entry["probabilities"]
    return found


def test_the_container_runs_as_anybody_without_network_home_or_a_place_to_write(root, best, image, tmp_path):
    with tempfile.TemporaryDirectory(prefix="vlm3d-", dir="/tmp") as place:
        place = pathlib.Path(place)
        place.chmod(0o755)
        shutil.copytree(root / "input", place / "input")
        (place / "output").mkdir()
        (place / "output").chmod(0o777)
        done = run_image(image, place / "output", "--input", place / "input", "--output", place / "output")
        assert done.returncode == 0, (done.stdout, done.stderr)
        assert [path.name for path in (place / "output").iterdir()] == ["results.json"]
        answers = scored(place / "output" / "results.json")
    assert set(answers) == {path.stem for path in (root / "input" / "nested").iterdir()} and len(answers) == 3
    volumes = [root / "raw" / "volumes" / f"{name}.nii.gz" for name in answers]
    tool("predict", best("slices"), "--volumes", *volumes, "--output", tmp_path, "--format", "vlm3d", "--device", "cpu")
    assert scored(tmp_path / "results.json") == answers, "the same volumes in another format, by the other tool"


def test_networks_of_whole_volumes_answer_a_folder(root, best, tmp_path):
    arguments = ["--input", root / "input", "--output", tmp_path / "out", "--checkpoints", best("volumes")]
    tool("predict_vlm3d", *arguments)
    answers = scored(tmp_path / "out" / "results.json")
    assert len(answers) == 3 and len({tuple(values.values()) for values in answers.values()}) == 3


def test_a_volume_that_is_no_ct_fails_alone(root, best, tmp_path, capsys):
    shutil.copytree(root / "input", tmp_path / "in")
    noise = nibabel.Nifti1Image(np.random.default_rng(0).random((20, 20, 20)), np.eye(4))
    nibabel.save(noise, tmp_path / "in" / "noise.nii.gz")
    (tmp_path / "in" / "notes.json").write_text("{}")
    with pytest.raises(UserError, match="volume noise.nii.gz: .*Hounsfield"):
        tool("predict_vlm3d", "--input", tmp_path / "in", "--output", tmp_path / "o", "--checkpoints", best("slices"))
    assert len(scored(tmp_path / "o" / "results.json")) == 3 and "volume failed" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "in" / "nested")
    with pytest.raises(UserError, match="volume noise.nii.gz"):
        tool("predict_vlm3d", "--input", tmp_path / "in", "--output", tmp_path / "p", "--checkpoints", best("slices"))
    assert not (tmp_path / "p" / "results.json").exists(), "there is no answer to write"


def test_what_the_container_cannot_answer_is_refused_in_one_line(root, best, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    for place, said in (
        ("empty", "no volumes below it, wanted .nii, .nii.gz, .mha"),
        ("none", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=said):
            tool(
                "predict_vlm3d",
                "--input",
                tmp_path / place,
                "--output",
                tmp_path / "o",
                "--checkpoints",
                best("slices"),
            )
    shutil.copytree(root / "input", tmp_path / "in")
    one = next((tmp_path / "in" / "nested").iterdir())
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), tmp_path / "in" / f"{one.stem}.nii.gz")
    with pytest.raises(UserError, match=f"which the challenge would call {one.stem}: rename one"):
        tool("predict_vlm3d", "--input", tmp_path / "in", "--output", tmp_path / "o", "--checkpoints", best("slices"))
    assert not (tmp_path / "o").exists()
    [member] = vlm3d.load([best("volumes")], "cpu")
    two = replace(member.config, data=replace(member.config.data, channels=("ct", "pet")))
    monkeypatch.setattr(vlm3d, "load_members", lambda *_: [replace(member, config=two)])
    with pytest.raises(UserError, match="got a network of the channels ct, pet, wanted one"):
        vlm3d.load([best("volumes")])
