"""The scoreboard on synthetic heads: all tasks from a masked autoencoder and from random weights, and the probes."""

import os

from .. import kinds
from ..config import UserError, as_user_error
from ..data.phantoms import heads
from ..run_folder import RunFolder
from ..runtime import dist
from . import crossval, scoreboard

TARGET, GROUPS = "cohort", ("gender", "age:57|68")  # columns of the table of heads; ages are 45 to 80
_SIZE = 34  # voxels along the longest axis
_PRETRAINED, _PROBED, _CASES = 80, 160, 40  # heads of each of the two layouts, scans of the table, cases of a task
_OTHERS = 1  # seed of the heads to pretrain on


def run(configs, output, log, overrides=()):
    """Pretrain and run the scoreboard into `output`; configs: the folder of the configs. Returns the page's path.

    What is finished is not run again. overrides: `key=value` for all tasks.
    """
    output, folder = os.path.abspath(output), os.path.join(configs, "fomo26")
    files = [os.path.join(folder, f"demo_task{number}.yaml") for number in range(1, 6)]
    files = [path for path in files if os.path.exists(path)]
    if not files:
        raise UserError(f"{folder}: got no demo_task?.yaml, wanted the configs of this project, beside tools/")
    scans, table = os.path.join(output, "heads"), os.path.join(output, "table")
    cache = f"data.cache={os.path.join(output, 'cache')}"
    pretraining = [f"data.root={scans}", cache, f"output={output}"]
    config = kinds.load(os.path.join(folder, "demo_mae.yaml"), pretraining)
    if dist.is_main():
        for task in (1, 3):
            _make(os.path.join(scans, f"task{task}"), task, _PRETRAINED, _OTHERS)
        _make(table, "table", _PROBED, 0)
    fold = RunFolder(os.path.join(output, config.name)).fold(1)
    if not fold.is_finished:
        crossval.run(config, one_split=True)
    probed = scoreboard.Probed(os.path.join(table, "table.csv"), TARGET, GROUPS, "t1")
    probed = probed._replace(subject_column="PatientID")
    shared = [f"data.root={os.path.join(output, 'phantoms')}", cache, f"data.phantom_cases={_CASES}"]
    return scoreboard.run([fold.best], files, output, log, [*shared, *overrides], probed)


def _make(folder, task, cases, seed):
    """Make a data set of heads where it is not there."""
    if not os.path.isdir(folder):
        with as_user_error(f"cannot make {folder}", OSError):
            heads.make(folder, task, cases, _SIZE, seed=seed)
