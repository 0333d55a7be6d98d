"""The scoreboard on synthetic heads: all tasks from a masked autoencoder and from random weights, and the probes."""

import os

from .. import kinds, tasks
from ..config import UserError
from ..data import sources
from ..run_folder import RunFolder
from ..runtime import dist
from . import crossval, scoreboard

PRETRAINING = "demo_mae"
GROUPS = ("gender", "age:57|68")


def run(configs, output, log, overrides=()):
    """Pretrain and run the scoreboard into `output`; configs: the folder of the configs. Returns the page's path."""
    output, folder = os.path.abspath(output), os.path.join(configs, "fomo26")
    files = [os.path.join(folder, f"demo_task{number}.yaml") for number in range(1, 6)]
    shared = [f"data.root={os.path.join(output, 'phantoms')}", f"data.cache={os.path.join(output, 'cache')}"]
    config = kinds.load(os.path.join(folder, f"{PRETRAINING}.yaml"), [*shared, f"output={output}"])
    best = RunFolder(os.path.join(output, config.name)).fold(1)
    if not dist.on_main(lambda: best.is_finished):
        crossval.run(config, one_split=True)
    probed = scoreboard.Probed(_table(folder, shared), "cohort", GROUPS, "t1", "multistage", subject_column="PatientID")
    found = [path for path in files if os.path.exists(path)]
    if not found:
        raise UserError(f"{folder}: got no demo_task?.yaml, wanted the configs of this project beside tools/")
    return scoreboard.run([best.best], found, output, log, [*shared, *overrides], probed)


def _table(folder, shared):
    """The table of the phantoms that are embedded, which is made where it is not there."""
    config = kinds.load(os.path.join(folder, "demo_embeddings.yaml"), shared)
    case = sources.list_cases(config.data, tasks.wanted(config))[0]
    return os.path.join(os.path.dirname(os.path.dirname(case.files[0].path)), "table.csv")
