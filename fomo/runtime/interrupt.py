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


def stop_if_requested():
    """Raise Interrupted where a stop was asked for."""
    if requested():
        raise Interrupted("stopped by a signal")


@contextlib.contextmanager
def shielded():
    """While this lasts, signals wait; processes that are started meanwhile get none of them until they `unshield`."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unshield():
    """Let SIGTERM come through again, in a process that was started shielded; the others are its parent's."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def leave(number, frame):
    """A handler: end this process by an exception, so that what is open is tidied up."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(Interrupted.exit_code)


def ignore_in_worker(worker_id):
    """Leave a signal to the training process; for the processes of a loader, which get it too."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _note(number, frame):
    if _received:
        os._exit(128 + number)
    _received.append(number)
