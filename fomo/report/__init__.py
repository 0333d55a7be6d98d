"""What a run has to say, as one HTML file that needs no network; and whether one run is better than another.

- `run`: what a run folder holds, finished or not
- `parts`: the parts of the page of a run, from top to bottom; `head`: the headline and what it means, in words
- `shortcuts`: what simple rivals reach on the same folds
- `browser`: the slices of each case; `cohort`: who was in the study
- `differences`: paired differences of runs on the same cases; `differences_page`: as text, CSV and HTML
- `probe_page`: linear probes of embeddings, and groups of subjects; `scoreboard_page`: checkpoints over all tasks
- `search_page`: which settings were tried
- `stress_page`: what changed images cost
- what is shown of a task's cases: tasks/views
"""

import dataclasses

from ..pages import page
from ..run_folder import RunFolder
from . import parts, run
from .differences import compare
from .differences_page import comparison_text, write_comparison
from .probe_page import write_probe
from .scoreboard_page import write_scoreboard
from .search_page import Search, write_search
from .stress_page import write_stress

__all__ = [
    "Search",
    "compare",
    "comparison_text",
    "write",
    "write_comparison",
    "write_probe",
    "write_scoreboard",
    "write_search",
    "write_stress",
]


def write(folder, radiological=None):
    """Write the report in a run folder, whether the run is finished or not; returns its path.

    radiological: in place of eval.radiological of the run. Its images are read from the cache. Raises UserError for a
    folder that holds no run.
    """
    found = run.Run(folder)
    if radiological is not None:
        own = dataclasses.replace(found.config.eval, radiological=radiological)
        found.config = dataclasses.replace(found.config, eval=own)
    return page.save(RunFolder(folder).report_path, parts.of_run(found))
