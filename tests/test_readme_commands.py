"""The commands of the READMEs run: at toy size, in a folder that is like a user's, and in this process.

`TOY` is all that is changed in them. Commands for containers, an environment and the like are in `ONLY_READ`, with the
reason: of these files, configs, keys and options are looked at.
"""

import csv
import functools
import glob
import importlib.util
import os
import re
import shlex
import shutil
from typing import NamedTuple

import pytest
import torch
from conftest import ROOT, run_command, tool, write_table

from fomo import checkpoint, kinds, nets
from fomo.data.phantoms import heads
from fomo.pages import figures

PAGES = ["README.md", *(f"{folder}/README.md" for folder in ("configs", "fomo", "tools", "tests"))]
CASES, SIZE = 20, 24  # phantoms of a task, and their voxels

# a run of seconds: keys that are added to cv.py, train.py and tools/scoreboard.py
TINY = ["model.width=4", "train.epochs=1", "train.steps_per_epoch=1", "train.batch_size=2", "train.micro_batch=none"]
TINY += ["train.workers=0", "data.prepare_workers=0", "eval.bootstrap=20", "cv.folds=2", "cv.val_fraction=0.25"]
HEADS = ["data.spacing_mm=[8,8,8]", "data.patch=[32,32,32]"]
NO_WARMUP = "optim.warmup_epochs=0"
RESENC = ["data.spacing_mm=[8,8,8]", "data.patch=[64,32,32]"]  # the smallest that such a network takes
TOY = {  # what is added to a command that has this text: the first that fits
    "tools/scoreboard.py": [
        *TINY,
        *RESENC,
        "cv.final=none",
        "--tasks",
        "configs/fomo26/task1.yaml",
    ],  # one of the tasks
    "configs/demo_ct.yaml": [*TINY[:-2], NO_WARMUP],
    "configs/demo_slices_dino.yaml": [*TINY[:-2], NO_WARMUP],
    "configs/dino.yaml": [*TINY[:-2], *HEADS, NO_WARMUP, "task.global_size=[32,32,32]", "task.local_size=[32,16,16]"],
    "configs/mae.yaml": [*TINY[:-2], *HEADS, NO_WARMUP],
    "my.yaml": [NO_WARMUP],
    "configs/mae_resenc.yaml": [*TINY[:-2], *RESENC[1:]],
    "configs/fomo26/task": [*TINY, *RESENC],
    "cv.py": [*TINY, *HEADS, "data.phantom_cases=30", "data.phantom_size=24"],
    "tools/look.py": HEADS,
    "tools/preprocess.py": HEADS,
    "tools/probe_stages.py": [*TINY, *HEADS],
    "tools/make_phantoms.py": ["--cases", "12"],
    "--workers 8": ["--workers", "0"],
}
STAND_INS = {  # words that a reader replaces by his own; /data is a folder here
    "/data/": "data/",
    "[key=value ...]": "",
    "uniform|greedy": "uniform",
    "RUN_A": "runs/task1",
    "RUN_B": "runs/again",
    "RUN": "runs/task1",
    "CONFIG": "configs/task1.yaml",
    "CHECKPOINT": "runs/task1/fold_1/best.pt",
    "FILE": "data/unet_b.ckpt",
    "FOLDER": "heads",
    "runs/A runs/B": "runs/task1 runs/again",
}
AGAIN = "python cv.py configs/task1.yaml name=again optim.lr=0.02"
BEFORE = {  # commands that the others of a page presuppose
    "README.md": ["python cv.py configs/task2.yaml", AGAIN],
    "configs/README.md": [
        "python cv.py configs/fomo26/task4.yaml data.root=Task_4_new",
        "python tools/make_phantoms.py ct runs/phantom_ct --cases 300",
        "python tools/extract_slices.py runs/phantom_ct/volumes runs/phantom_slices --slices 8 --size 128",
    ],
    "tools/README.md": [f"python cv.py configs/task{number}.yaml weights.path=data/unet_b.ckpt" for number in (1, 2, 3)]
    + [AGAIN, "python train.py configs/mae.yaml data.root=/data/scans"],
}
ONLY_READ = {  # commands with this text: why they are not run here
    "git clone": "it is how a user got here",
    "cd fomo": "",
    "python3 -m venv": "an environment is there, and the network may not be",
    ". .venv/bin/activate": "",
    "pip install": "",
    "pytest": "this is the suite",
    "fuzz.py": "minutes long; it is run by hand",
    "docker build": "no containers here",
    "apptainer build": "",
    "--demo": "pretrains 80 heads: tests/test_scoreboard.py runs it at toy size",
    "--format vlm3d": "no run on CT scans here: tests/test_vlm3d.py predicts with one",
    "tools/search.py": "many trainings: tests/test_search.py runs it at toy size",
    "tools/stress.py": "a hundred passes: tests/test_stress.py runs it at toy size",
    "tools/benchmark": "tests/test_benchmark.py runs its parts at toy size",
}
DRAWN = ("tools/report.py", "tools/look.py", "demo_task1", "demo_ct")  # pages with figures, which take seconds
DRY = ("--nnodes", "--nproc_per_node=8", "--nproc_per_node=5", "sbatch", "fomo26/demo_task")  # looked at by --dry-run


class Command(NamedTuple):
    page: str
    text: str  # as it stands there, without the comment

    @property
    def only_read(self):
        return any(part in self.text for part in ONLY_READ)


def commands(page):
    """The Commands of a page's shell blocks, and those in its lines, in order."""
    text, found = (ROOT / page).read_text(), []
    for match in re.finditer(r"^```bash\n(.*?)^```|^```.*?^```|`([^`]+)`", text, re.DOTALL | re.MULTILINE):
        block, inline = match.groups()
        inline = " ".join((inline or "").split())
        if re.match(r"(python|torchrun|cv\.py|train\.py|tools/\w+\.py) [^-]", inline) and " ..." not in inline:
            found.append(Command(page, inline))
        for line in (block or "").replace("\\\n", " ").splitlines():
            found += [Command(page, text) for text in _parts(re.sub(r"\s+#.*", "", line))]
    return found


def _parts(line):
    """The single commands of a line of shell; those of a loop once for each value."""
    values, found = [""], []
    for part in filter(None, (part.strip() for part in re.split(r"&&|;", line))):
        if part.startswith("for "):
            values = part.split(" in ")[1].split()
        elif part not in ("done", ""):
            found += [part.removeprefix("do ").replace("$task", value) for value in values]
    return list(dict.fromkeys(found))


def words_of(command):
    """(script, arguments) of a command, with the reader's own words put in."""
    text = command.text
    for word, own in STAND_INS.items():
        text = text.replace(word, own)
    first, *words = shlex.split(re.sub(r"^[A-Z_]+=\S+ ", "", text))
    if first == "sbatch":
        return "cv.py", words[1:]
    if first == "torchrun":
        from torch.distributed.run import get_args_parser

        given = get_args_parser().parse_args(words)
        return given.training_script, given.training_script_args
    script, *words = [first, *words] if first.endswith(".py") else words
    return script, words


def run(command, monkeypatch):
    drawn = any(text in command.text for text in DRAWN)
    monkeypatch.setattr(figures, "available", lambda: drawn)
    script, words = words_of(command)
    words = [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else [word])]
    words += next((more for text, more in TOY.items() if text in command.text), [])
    words += ["--dry-run"] if any(text in command.text for text in DRY) else []
    if script in ("cv.py", "train.py"):
        spec = importlib.util.spec_from_file_location(script[:-3], ROOT / script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.main(words)
    else:
        assert script.startswith("tools/"), script
        tool(script.removeprefix("tools/").removesuffix(".py"), *words)


def furnish():
    """Fill the working folder with a user's data and checkpoints, under the names that the pages use."""
    shutil.copytree(ROOT / "configs", "configs")
    for task, edition in (("task1", 25), ("task2", 25), ("task3", 25), ("Task_1", 26), ("Task_3", 26), ("Task_4", 26)):
        heads.make(f"data/{task}", int(task[-1]), CASES, SIZE, edition=edition)
    os.mkdir("data/fomo26")
    os.mkdir("data/unlabelled")
    for name, place in {
        "data/fomo-task1": "task1",
        "data/new": "task2",
        "data/scans": "task3",
        "data/unlabelled/preprocessed": "../task2/preprocessed",
        "data/fomo26/Task_1": "../Task_1",
        "Task_1": "data/Task_1",
        "Task_4_new": "data/Task_4",
        "FOMO300K": "data/Task_3",
        "data/ct-rate": "../runs/phantom_ct/volumes",
        "multi_abnormality_labels.csv": "runs/phantom_ct/multi_abnormality_labels.csv",
    }.items():
        os.symlink(place, name)
    scan = os.path.dirname(sorted(glob.glob("data/task1/preprocessed/*/*/swi.nii.gz"))[0])
    for letter, channel in zip("dfas", ("dwi_b1000", "flair", "adc", "swi")):
        os.symlink(f"{scan}/{channel}.nii.gz", f"{letter}.nii.gz")
    for name, network in (("resenc_unet_b.ckpt", "resenc_unet_b"), ("data/unet_b.ckpt", "unet_b_lw_dec")):
        pretrained = nets.build(network, 1, 1, width=4).state_dict()
        torch.save({"state_dict": {f"model.{key}": value for key, value in pretrained.items()}}, name)
    for name in ("mine.pt", "a.pt", "b.pt"):
        checkpoint.save(name, {"model": nets.build("resenc_unet_b", 1, 1, width=4).state_dict()})
    _tables()


def _tables():
    heads.make("data/heads", "table", 40, SIZE)
    with open("data/heads/table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    own = [{**row, "t1": f"data/heads/{row['t1']}", "t2": f"data/heads/{row['t2']}"} for row in rows]
    write_table("table.csv", [{key: row[key] for key in ("id", "t1", "t2")} for row in own])
    names = {"image": "t1", "subject": "PatientID", "selected_cohort": "cohort", "sex": "gender", "age": "age"}
    write_table("subjects.csv", [{"id": row["id"], **{name: row[key] for name, key in names.items()}} for row in own])
    names = {"accession_number": "id", "PatientID": "PatientID", "V00COHORT": "cohort"}
    oai = [{**{name: row[key] for name, key in names.items()}, "dess": f"heads/{row['t1']}"} for row in rows]
    subjects = sorted({row["PatientID"] for row in oai})
    write_table("data/table.csv", [{**row, "fold": subjects.index(row["PatientID"]) % 20} for row in oai])
    keys = "data: {csv: data/table.csv, spacing_mm: [8, 8, 8], patch: [32, 32, 32], prepare_workers: 0}"
    train = "train: {epochs: 1, steps_per_epoch: 1, workers: 0, batch_size: 2}"
    base = "base: configs/table_classification.yaml\nname: my\noutput: runs\ntask: {targets: [V00COHORT], classes: 3}"
    with open("my.yaml", "w") as file:
        file.write(f"{base}\n{keys}\n{train}\nmodel: {{width: 4}}\n")


@pytest.mark.parametrize("page", [page for page in PAGES if page != "tests/README.md"])
def test_commands_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish()
    own = [*(Command(page, text) for text in BEFORE.get(page, ())), *commands(page)]
    for command in dict.fromkeys(command for command in own if not command.only_read):
        try:
            run(command, monkeypatch)
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and not error.code:  # --help
                continue
            raise AssertionError(f"{page}: `{command.text}` does not run: {error}") from error


@functools.cache
def help_of(script):
    done = run_command(script, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_not_run_are_understood(page):
    """Their scripts and configs exist, and their options stand in the help."""
    for command in filter(lambda command: command.only_read, commands(page)):
        words = shlex.split(command.text)
        for word in words:
            config = re.fullmatch(r"(?:configs|tools|tests)/[\w/.]+", word)
            assert not config or (ROOT / word).exists(), command.text
            if config and word.endswith(".yaml"):
                kinds.load(ROOT / word)
        script = next((word for word in words if word.startswith(("tools/", "tests/")) and "." in word), None)
        if script and script.endswith(".py") and "pytest" not in words:
            options = {word.split("=")[0] for word in words if word.startswith("--")}
            assert not [option for option in options if option not in help_of(script)], command.text
