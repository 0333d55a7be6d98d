"""Answers of a run, or in the place of a run's, as the views of the tasks read them."""

from typing import NamedTuple

from ..tasks import Results


class Answered(NamedTuple):
    """What a task's view reads of a run."""

    config: object
    task: object
    results: Results

    @property
    def rows(self):
        return self.results.rows

    @property
    def units(self):
        """The rows that count: of scans where there are any."""
        return self.results.scans or self.results.rows
