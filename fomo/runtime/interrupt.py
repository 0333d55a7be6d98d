"""Stopping on request: SIGTERM, SIGINT and SIGUSR1 ask for a stop at the next safe point; a second one ends at once."""

import contextlib
import os
import signal

_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")  # a scheduler's, the keyboard's, Slurm's warning before its time limit
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_received = []


class Interrupted(Exception):
    """The run has stopped on request, with everything saved; the same command continues it."""

    exit_code = 75  # EX_TEMPFAIL: try again later
    ends_run = True


@contextlib.contextmanager
def graceful():
    """While this lasts, a first signal is only noted (`requested`), and a second one ends the process."""
    _received.clear()
    previous = {number: signal.signal(number, _note) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def requested():
    return bool(_received)


def ignore_in_worker(worker_id):
    """Leave a signal to the training process; for the processes of a loader, which get it too."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note(number, frame):
    if _received:
        os._exit(128 + number)
    _received.append(number)
