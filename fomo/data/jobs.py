"""Many jobs in several processes. A process that is killed, as where memory is short, takes only its job along."""

import contextlib
import multiprocessing
import multiprocessing.connection
import signal
import time
from multiprocessing.pool import ExceptionWithTraceback
from typing import NamedTuple

from ..runtime import interrupt

_EVERY_S = 10.0  # between reports
_LOOK_S = 0.2  # between looks whether a stop was asked for
_PATIENCE_S = 10.0  # until a process that is asked to stop has tidied up


class Killed(NamedTuple):
    """Instead of a result: the process that did the job is gone."""

    job: object
    pid: int
    exitcode: int  # negative: the number of a signal

    def __str__(self):
        how = f"killed by signal {-self.exitcode}" if self.exitcode < 0 else f"ended with code {self.exitcode}"
        return f"its process was {how}, as happens where memory is short"


def run(function, jobs, workers, report):
    """Yield function(job) of each of the list `jobs` as it finishes, or Killed.

    workers: processes; 0: this one, in order.
    report: function (jobs done, seconds left), called now and then and after the last.
    Raises interrupt.Interrupted when a stop is asked for; the jobs that are done stay done.
    """
    shown, spent, at_once = time.monotonic(), 0.0, max(1, min(workers, len(jobs)))
    results = _in_processes(function, jobs, at_once) if workers else _in_this_one(function, jobs)
    for done, (result, seconds) in enumerate(results, start=1):
        yield result
        spent += seconds  # of the jobs alone: the start of the processes is no measure of what is left
        if done == len(jobs) or time.monotonic() > shown + _EVERY_S:
            shown = time.monotonic()
            report(done, spent / done * (len(jobs) - done) / at_once)


def _in_this_one(function, jobs):
    """Yield (result, seconds) of each job."""
    for job in jobs:
        interrupt.stop_if_requested()
        yield _timed(function, job)


def _timed(function, job):
    begin = time.monotonic()
    return function(job), time.monotonic() - begin


def _in_processes(function, jobs, workers):
    """Yield (result or Killed, seconds) of each job as it finishes."""
    left, busy, idle = iter(jobs), {}, []  # busy: {connection: (process, its job)}

    def give(connection, process):
        """Give the next job to a process, or let it end."""
        job = next(left, idle)
        if job is idle:
            connection.close()  # which ends it
            idle.append(process)
        else:
            with contextlib.suppress(OSError):  # of one that is gone: it is found below
                connection.send(job)
            busy[connection] = process, job

    try:
        for _ in range(workers):
            give(*_start(function))
        while busy:
            for connection in multiprocessing.connection.wait(list(busy), timeout=_LOOK_S):
                process, job = busy.pop(connection)
                try:
                    ok, result = connection.recv()
                except (EOFError, OSError):
                    process.join()
                    if process.exitcode == interrupt.Interrupted.exit_code:  # the signal was for all of us
                        raise interrupt.Interrupted("stopped by a signal") from None
                    yield Killed(job, process.pid, process.exitcode), 0.0
                    connection, process = _start(function)
                else:
                    if not ok:
                        raise result
                    yield result
                give(connection, process)
            interrupt.stop_if_requested()
    finally:
        _stop([*(process for process, _ in busy.values()), *idle])


def _start(function):
    """(connection, process) of a new worker."""
    # spawn: the parent may hold threads (BLAS, a process group) that a fork would break
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    process = context.Process(target=_work, args=(function, its), daemon=True)
    with interrupt.shielded():
        process.start()
    its.close()
    return mine, process


def _work(function, connection):
    """Do jobs until there are none; a SIGTERM ends it by an exception, so that nothing half done stays behind."""
    signal.signal(signal.SIGTERM, interrupt.leave)
    interrupt.unshield()
    try:
        while True:
            job = connection.recv()
            try:
                answer = True, _timed(function, job)
            except Exception as error:  # any: it is raised again in the process that asked
                answer = False, ExceptionWithTraceback(error, error.__traceback__)
            connection.send(answer)
    except (EOFError, OSError):  # no more jobs, or nobody who asks
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing is open: an exception would only interrupt the exit


def _stop(processes):
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + _PATIENCE_S
    for process in processes:
        process.join(max(0, deadline - time.monotonic()))
        process.kill()
        process.join()
