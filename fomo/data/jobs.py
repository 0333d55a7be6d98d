"""Many jobs in several processes."""

import concurrent.futures
import multiprocessing
import time

_EVERY_S = 10.0  # between reports


def run(function, jobs, workers, report):
    """Yield function(job) of each of the list `jobs` as it finishes.

    workers: processes; 0: this one, in order.
    report: function (jobs done, seconds left), called now and then and after the last.
    """
    begin = shown = time.monotonic()
    for done, result in enumerate(_results(function, jobs, workers), start=1):
        yield result
        now = time.monotonic()
        if done == len(jobs) or now > shown + _EVERY_S:
            shown = now
            report(done, (now - begin) / done * (len(jobs) - done))


def _results(function, jobs, workers):
    if workers == 0:
        yield from map(function, jobs)
        return
    # spawn: the parent may hold threads (BLAS, a process group) that a fork would break
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            pending = set()
            for job in jobs:
                pending.add(pool.submit(function, job))
                if len(pending) > 4 * workers:  # no more at once: each holds its job
                    done, pending = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in concurrent.futures.as_completed(pending))
        finally:
            pool.shutdown(cancel_futures=True)
