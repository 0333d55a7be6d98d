"""The page of a run that goes on: written when a fold ends, so that its reader can load it again."""

import time

from .. import report
from ..config import one_line

_SHARE = 0.03  # of a run's time that its pages may take
_GUESS_S = 2.0  # of the first page


class Pages:
    """Of a RunFolder; where folds are short most are left out, so that nobody waits for them."""

    def __init__(self, folder):
        self._folder, self._took_s, self._since = folder, _GUESS_S, time.monotonic()

    def write(self, log):
        """Write the page, unless the run is finished or the last page is too new. A failure is a warning."""
        start = time.monotonic()
        if self._took_s > _SHARE * (start - self._since):
            return
        try:
            if self._folder.is_open:
                log("report", path=report.write(self._folder.path), finished=False)
        except Exception as error:  # of whatever kind: the folds go on
            log.warn("the page of the run so far cannot be written", error=one_line(error))
        self._since = time.monotonic()
        self._took_s = self._since - start
