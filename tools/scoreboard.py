"""Which checkpoint is best at what? Runs the same tasks from each checkpoint and from random weights, and ranks them.

  python tools/scoreboard.py mae.pt resenc_unet_b.ckpt --tasks configs/fomo26/task?.yaml --output scoreboard
  torchrun --nproc_per_node=4 tools/scoreboard.py a.pt b.pt --tasks configs/fomo26/task?.yaml --output scoreboard \\
    --cases subjects.csv --target selected_cohort --groups sex age:25|50|75 train.epochs=50
  python tools/scoreboard.py --demo

Each task is a cross-validation in OUTPUT/CHECKPOINT/TASK. With --cases scans are embedded and probed as well (tasks 6
and 7, see tools/embed.py and tools/probe.py). The same command again continues; what is finished is not run again, and
an OUTPUT of other keys, weights or tables, or with more checkpoints or tasks, is refused before anything is written. A
task that fails is missing, with its reason, and has the last rank; the exit code is 1 then.
Writes scoreboard.html, scoreboard.json, scoreboard.csv (scores with intervals) and differences.csv (paired, with
Holm's correction). --demo shows it all on synthetic heads, in a quarter of an hour on two CPU cores.
"""

import argparse
import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from fomo import cli
from fomo.config import UserError
from fomo.runtime import dist
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", nargs="*", metavar="CHECKPOINT | key=value", help="files, and keys of all tasks")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="CONFIG", help="of cv.py")
    parser.add_argument("--output", metavar="DIR", help="folder of all runs (--demo: runs/scoreboard_demo)")
    parser.add_argument("--cases", metavar="TABLE.csv", help="tasks 6 and 7: a line per scan")
    parser.add_argument("--target", metavar="COLUMN", help="of its classes")
    parser.add_argument("--groups", nargs="+", default=[], metavar="COLUMN[:EDGES]", help="as sex age:25|50|75")
    parser.add_argument("--column", help="of its scans' files; default: image or nifti_path")
    parser.add_argument("--subject-column", default="subject", metavar="COLUMN", help="default: subject, or the id")
    text = "default: multistage, as the container of tasks 6 and 7 answers"
    parser.add_argument("--features", choices=("bottleneck", "multistage"), help=text)
    parser.add_argument("--demo", action="store_true", help="pretrain, and run all tasks, on synthetic heads")
    options = parser.parse_intermixed_args(arguments)
    overrides = [text for text in options.given if "=" in text and not os.path.exists(text)]
    checkpoints = [text for text in options.given if text not in overrides]
    if not options.demo and not (options.output and (options.tasks or options.cases)):
        parser.error("wanted --output, and --tasks or --cases; or --demo")
    if bool(options.cases) != bool(options.target):
        parser.error("--cases and --target go together")
    if options.demo and (checkpoints or options.tasks or options.cases):
        raise UserError("--demo: got checkpoints, tasks or cases, wanted none: it makes its own")
    from fomo.runs import demo, scoreboard  # torch, which a wrong argument does not wait for

    log = Log(active=dist.is_main())
    if options.demo:
        output = options.output or str(ROOT / "runs" / "scoreboard_demo")
        return demo.run(str(ROOT / "configs"), output, log, overrides)
    probed = None
    if options.cases:
        groups = tuple(name for text in options.groups for name in text.split(",") if name)
        probed = scoreboard.Probed(options.cases, options.target, groups, options.column)
        features = options.features or probed.features
        probed = probed._replace(subject_column=options.subject_column, features=features)
    scoreboard.run(checkpoints, options.tasks, options.output, log, overrides, probed)


if __name__ == "__main__":
    cli.run(main)
