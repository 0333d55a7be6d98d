"""What a run has to say, as one HTML file that needs no network; and whether one run is better than another.

- `run`: what a run folder holds, finished or not
- `sections`: the parts of report.html, from top to bottom; `head`: the headline and what it means, in words
- `views`: what each task shows of its cases; `cases`: what their tables of cases share
- `overlays`: heat maps of where the networks looked
- `figures`: curves and plots, a file for each view that has its own; `slices`: outlines of masks over the image (both by
  matplotlib, which is optional)
- `comparison`: paired differences of runs on the same cases; `comparison_page`: as text, CSV and HTML
- `page`, `style`: HTML
"""

import os

from ..pages import page
from . import run, sections
from .comparison import compare
from .comparison_page import comparison_text, write_comparison

__all__ = ["compare", "comparison_text", "write", "write_comparison"]


def write(folder, cases=None):
    """Write report.html in a run folder, whether the run is finished or not; returns its path.

    cases: the run's sources.Case list where it is at hand; otherwise, for the pictures of a segmentation, it is listed
    again, which reads every mask. Raises UserError for a folder that holds no run.
    """
    content = sections.of_run(run.read(folder), cases)
    return page.save(os.path.join(folder, "report.html"), content)
