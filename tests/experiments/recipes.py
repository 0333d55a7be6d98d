"""Which settings learn best in the time that there is? On real brains with planted signals (shared/make_semi_real.py).

  python shared/make_semi_real.py --out semi/train --subjects 60 --seed 1
  python shared/make_semi_real.py --out semi/test --subjects 100 --seed 2
  python tests/experiments/recipes.py semi/train semi/test runs/recipes --task 2 \\
      --arm "shipped:" --arm "all augmentations: augment.preset=all" --seeds 0 1 2

Trains configs/taskN.yaml at 2.5 mm on subjects of the first folder, chooses the epoch on others of it, and tests on all
subjects of the second. An arm is a name and further key=value. Each seed has other random weights and
other subjects. Prints what `arms.report` says. Runs that are finished are kept: the same command goes on.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import arms
import torch

from fomo import kinds
from fomo.config import to_dict
from fomo.runtime import files

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"
TASKS = {
    1: ("classification", "skull_stripped", "ss_", ("dwi_b1000", "flair", "adc", "swi|t2s")),
    2: ("segmentation", "preprocessed", "", ("dwi_b1000", "flair", "swi|t2s")),
    3: ("regression", "preprocessed_2", "ss_", ("t1", "t2")),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=pathlib.Path)
    parser.add_argument("test", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path, help="where tables and runs go")
    parser.add_argument("--task", type=int, default=2, choices=sorted(TASKS))
    parser.add_argument("--labelled", type=int, default=40, help="subjects to train on")
    parser.add_argument("--selecting", type=int, default=8, help="further ones, to choose the epoch")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--arm", action="append", required=True, help="NAME: key=value key=value ...")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for arm in options.arm:
        name, _, overrides = arm.partition(":")
        results[name] = [train(options, name, overrides.split(), seed) for seed in options.seeds]
    arms.report(TASKS[options.task][0], results)


def train(options, arm, overrides, seed):
    """Rows of the test cases of one run."""
    fold = arms.run(to_dict(config_of(options, arm, overrides, seed)))
    print(f"run arm={arm!r} seed={seed}", *(f"{key}={value:.4g}" for key, value in fold.scores().items()), flush=True)
    return fold.results().rows


def config_of(options, arm, overrides, seed):
    """The Config of one run, whose table is made here."""
    channels, folder = TASKS[options.task][3], options.folder.resolve()
    settings = dict(source="table", csv=make_table(options, seed), mask_column="mask", fold_column="fold")
    settings |= dict(train_folds="[train]", test_folds="[test]", val_folds="[val]", spacing_mm="[2.5,2.5,2.5]")
    settings |= dict(channels=f"[{','.join(channels)}]", cache=folder / "cache", prepare_workers=1)
    given = [f"data.{key}={value}" for key, value in settings.items() if options.task != 3 or key != "mask_column"]
    given += [] if options.task == 2 else ["task.targets=[target]"]
    name = f"task{options.task}_n{options.labelled}_w{options.width}_{arm.replace(' ', '-')}_{seed}"
    given += [f"name={name}", f"output={folder / 'runs'}", f"seed={seed}", f"model.width={options.width}"]
    return kinds.load(CONFIGS / f"task{options.task}.yaml", [*given, "train.workers=0", "cv.final=none", *overrides])


def make_table(options, seed):
    """CSV of the labelled subjects of a seed and of all test subjects."""
    path = options.folder.resolve() / f"task{options.task}_n{options.labelled}_{seed}.csv"
    found, wanted = list(cases(options.train, options.task)), options.labelled + options.selecting
    if len(found) < wanted:
        sys.exit(f"{options.train}: got {len(found)} subjects, wanted {wanted}")
    first = seed * options.labelled % (len(found) - wanted + 1)
    chosen = enumerate(found[first : first + wanted])
    rows = [{**row, "fold": "train" if place < options.labelled else "val"} for place, row in chosen]
    rows += [{**row, "fold": "test"} for row in cases(options.test, options.task)]
    os.makedirs(path.parent, exist_ok=True)
    files.write_csv(path, rows)
    return path


def cases(root, task):
    """A row for each subject: id, subject, a path for each channel (of each name that it may have), target, mask."""
    root = root.resolve() / f"fomo-task{task}"
    _, _, prefix, channels = TASKS[task]
    for session in sorted((root / "labels").glob("*/*")):
        place = pathlib.Path(session.parent.name, session.name)
        row = {
            "id": f"{root.parent.name}_{session.parent.name}",
            "subject": f"{root.parent.name}_{session.parent.name}",
        }
        for channel in (name for text in channels for name in text.split("|")):
            found = sorted(root.glob(f"*/{place}/{prefix}{channel}.nii.gz"))
            row[channel] = str(found[0]) if found else ""
        text, masks = session / "label.txt", sorted(root.glob(f"labels*/{place}/seg*.nii.gz"))
        row["target"] = text.read_text().split()[0] if text.exists() else ""
        row["mask"] = str(masks[0]) if masks else ""
        yield row


if __name__ == "__main__":
    main()
