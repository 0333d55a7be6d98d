"""Damaged and malicious inputs by the thousand: each is read, or refused with one line.

  python tests/faults/fuzz.py                            10,000 each of config, nifti, array, table and checkpoint
  python tests/faults/fuzz.py nifti --inputs 500 --seed 3
  python tests/faults/fuzz.py nifti --seed 3 --only 17   that input again; its files are kept in ./fuzz_nifti_3_17

A failure is any other exception than the room's own (UserError; ValueError where no config is known), a message that
is longer than 2000 characters, a crash, more than 10 s of computing, more than 2 GB beyond what the libraries take, and
whatever an audit hook sees: a file written outside the scratch folder, a process started, a socket, a canary in the
inputs run.
"""

import argparse
import collections
import faulthandler
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE)]

SECONDS, GIGABYTES, CHARACTERS = 10, 2, 2000
KINDS = ("config", "nifti", "array", "table", "checkpoint")


class TooSlow(BaseException):
    """Not an Exception, so that nothing takes it for an error of its own."""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {' '.join(KINDS)} (all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="one input, by its number")
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)  # in the process that reads
    options = parser.parse_args()
    if options.first is not None:
        return read_inputs(options.kinds[0], options.first, options.inputs, options.seed)
    if options.only is not None:
        return read_one(options.kinds[0], options.only, options.seed)
    failed = sum(run(kind, options.inputs, options.seed) for kind in options.kinds or KINDS)
    return 1 if failed else 0


# ----------------------------------------------------------------------------- the process that watches


def run(kind, inputs, seed):
    """Number of failures; a process that dies is started again after the input that it died of."""
    outcomes, failures, start, first = collections.Counter(), [], time.monotonic(), 0
    slowest, memory_mb = 0.0, 0.0
    while first < inputs:
        command = [sys.executable, __file__, kind, f"--inputs={inputs}", f"--seed={seed}", f"--first={first}"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in process.stdout:
            message = json.loads(line)
            if "at" in message:
                first = message["at"] + 1
                continue
            outcomes[message["outcome"]] += 1
            slowest, memory_mb = max(slowest, message["seconds"]), max(memory_mb, message["memory_mb"])
            if message["failure"]:
                failures.append(message)
                print(f"{kind} {first - 1}: {message['failure']}", flush=True)
        errors = process.stderr.read()
        if process.wait() or not errors == "":
            failures.append(errors)
            print(f"{kind} {first - 1}: the process died (code {process.returncode}):\n{errors[-4000:]}", flush=True)
            if not first:
                break
    seconds = time.monotonic() - start
    print(
        f"fuzz kind={kind} inputs={inputs} seed={seed} read={outcomes['read']} refused={outcomes['refused']} "
        f"failures={len(failures)} slowest_s={slowest:.2f} memory_mb={memory_mb:.0f} seconds={seconds:.0f}",
        flush=True,
    )
    return len(failures)


# ------------------------------------------------------------------------------ the process that reads


def tell(**message):
    sys.__stdout__.write(json.dumps(message) + "\n")
    sys.__stdout__.flush()


def read_inputs(kind, first, inputs, seed):
    scratch = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        watch = Watch(scratch)
        import fuzz_inputs

        make, check = fuzz_inputs.KINDS[kind]
        check_harmless(kind, make, check, scratch, watch)
        watch.limit_memory()
        for number in range(first, inputs):
            tell(at=number)
            clock = time.process_time()
            outcome, failure = one(make, check, scratch, watch, [seed, number])
            tell(outcome=outcome, failure=failure, seconds=time.process_time() - clock, memory_mb=watch.growth_mb())
    finally:
        watch.off()
        shutil.rmtree(scratch, ignore_errors=True)


def check_harmless(kind, make, check, scratch, watch):
    """The undamaged inputs must be read: else nothing behind the first check would ever be reached."""
    outcome, failure = one(lambda folder, rng: make(folder, None), check, scratch, watch, 0)
    if outcome != "read":
        raise SystemExit(f"{kind}: the undamaged input was not read: {failure or outcome}")


def read_one(kind, number, seed):
    import fuzz_inputs
    import numpy as np

    folder = pathlib.Path(f"fuzz_{kind}_{seed}_{number}").resolve()
    folder.mkdir()
    make, check = fuzz_inputs.KINDS[kind]
    given = make(folder, np.random.default_rng([seed, number]))
    print(folder, given)
    check(folder, given)


def one(make, check, scratch, watch, seed):
    """(read, refused or failed, what is wrong or None) for one input."""
    import numpy as np

    from fomo.config import UserError

    folder = scratch / "in"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    given = make(folder, np.random.default_rng(seed))
    outcome, failure = "read", None
    with watch:
        try:
            check(folder, given)
        except (UserError, *check.refuses) as error:
            text = " ".join(str(error).split())
            outcome = "refused"
            if not text or len(text) > CHARACTERS + len(str(folder)):
                failure = f"a message of {len(text)} characters: {text[:200]}"
            while error is not None:
                # the parser of Python raises it, too, for too many brackets
                if isinstance(error, MemoryError) and traceback.extract_tb(error.__traceback__)[-1].name != "parse":
                    failure = f"asked for too much memory:\n{''.join(traceback.format_exception(error))[-3000:]}"
                error = error.__cause__ or error.__context__
        except TooSlow:
            failure = f"more than {SECONDS} s:\n{traceback.format_exc()[-3000:]}"
        except BaseException as error:
            failure = f"{type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc()[-3000:]}"
    failure = failure or watch.complaint()
    return ("failed" if failure else outcome), failure


class Watch:
    """Within it: the time limit, and every event that must not happen."""

    def __init__(self, scratch):
        self.scratch, self.on, self.seen = str(scratch), False, []
        sys.addaudithook(self.hook)
        signal.signal(signal.SIGPROF, self.stop)

    def stop(self, *_):
        raise TooSlow

    def hook(self, event, arguments):
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                return
            self.note(event, path)
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"):
            self.note(event, arguments[0])
        elif event in ("os.rename", "os.link", "os.symlink"):
            self.note(event, arguments[0])
            self.note(event, arguments[1])
        elif event in (
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.posix_spawn",
            "os.fork",
            "os.spawn",
            "os.startfile",
        ):
            self.seen.append(f"{event} {arguments}"[:300])
        elif event.startswith(("pickle.find_class", "socket.", "ctypes.dlopen", "webbrowser.", "shutil.move")):
            self.seen.append(f"{event} {arguments}"[:300])

    def note(self, event, path):
        path = os.path.realpath(os.fsdecode(path))
        if not (path + "/").startswith(os.path.realpath(self.scratch) + "/in/") and path != os.devnull:
            self.seen.append(f"{event} {path}")

    def limit_memory(self):
        """The limit is on addresses, so that it stops a too large allocation before anything is touched."""
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        resource.setrlimit(resource.RLIMIT_AS, (now + GIGABYTES * 10**9,) * 2)

    def growth_mb(self):
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - self.before) / 1024

    def __enter__(self):
        self.seen.clear()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # of computing: the machine may be busy with other things
        faulthandler.dump_traceback_later(6 * SECONDS, exit=True)  # where nothing is computed, or no signal handled
        self.on = True

    def __exit__(self, *_):
        self.on = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()

    def off(self):
        self.on = False

    def complaint(self):
        return f"did what it must not: {'; '.join(self.seen[:5])}" if self.seen else None


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", RuntimeWarning)  # of numpy: it would stand between the lines of a log
    sys.exit(main())
