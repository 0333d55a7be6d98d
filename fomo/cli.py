"""What every command shares: the argument forms, one line for the user's mistakes, and the exit codes.

0 done; 2 the user's configuration or data is wrong; 75 stopped by a signal, saved; 130 interrupted; 1 anything else.
"""

import argparse
import difflib
import faulthandler
import multiprocessing
import os
import sys
import time
import traceback

import yaml

from . import kinds
from .config import UserError, one_line, to_dict
from .runtime import dist, interrupt

_LAST_WORD_S = 10  # torchrun ends all ranks at the first exit: the one that has something to say comes first


def parse_config(description, arguments):
    """`CONFIG [key=value ...] [--dry-run]` -> (Config, dry_run); --help lists every key."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys (in the YAML file, or key=value here; paths given here are relative to the working directory):\n"
        + kinds.describe_keys(),
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key, for example optim.lr=3e-4")
    parser.add_argument("--dry-run", action="store_true", help="check and show cases, folds and network; train nothing")
    parser.add_argument("--print-config", action="store_true", help="print all keys as they are resolved")
    options, unknown = parser.parse_known_intermixed_args(arguments)
    _refuse(unknown, options.config)
    config = kinds.load(options.config, options.overrides)
    if options.print_config and dist.is_main():
        print(yaml.safe_dump(to_dict(config), sort_keys=False), end="", flush=True)
    return config, options.dry_run


def _refuse(unknown, config):
    """Raise UserError with the hint that helps, for arguments that are not understood, or without a config."""
    flags = ("--dry-run", "--print-config", "--help")
    for argument in unknown:
        name, equals, value = argument.lstrip("-").partition("=")
        near = difflib.get_close_matches(argument, flags, n=1, cutoff=0.75)
        if "." in name or equals:
            wanted = f"keys without dashes: {name}={value or 'VALUE'}"
        elif name in ("resume", "continue", "restart"):
            wanted = "nothing: the same command continues a run that was stopped"
        else:
            wanted = near[0] if near else f"one of {', '.join(flags)}, or key=value"
        raise UserError(f"command line: got {argument}, wanted {wanted}")
    if config is None:
        raise UserError("command line: got no config, wanted a YAML file, as configs/demo_task1.yaml (see --help)")
    if "=" in config and not os.path.exists(config):
        raise UserError(f"command line: got {config} first, wanted the YAML file, and then key=value")


def run(main):
    """Call main(arguments) and end the process with the right code.

    An error with an `exit_code` is an expected one: its message is printed as one line, unless `error.reported` says
    that it has been. Any other keeps its traceback. Before the process group exists every rank meets the same error,
    and only rank 0 prints it.
    """
    faulthandler.enable()  # a crash in native code shows where it was
    sys.stdout.reconfigure(errors="backslashreplace")  # a path that the terminal cannot show ends nothing
    code, others_speak = 0, False
    try:
        main(sys.argv[1:])
    except dist.OtherRankFailed as error:
        code, others_speak = error.exit_code, True
    except interrupt.Interrupted as error:
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # who read the output has gone (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:  # the outermost frame: reports whatever is left
        code = getattr(error, "exit_code", 1)
        others_speak = not (hasattr(error, "reported") or dist.is_main() or dist.is_initialized())
        if not hasattr(error, "exit_code"):
            traceback.print_exc()
        elif not (others_speak or getattr(error, "reported", False)):
            print(f"error: {one_line(error)}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    sys.stderr.flush()
    if others_speak:
        time.sleep(_LAST_WORD_S)
    if dist.world_size() > 1:
        os._exit(code)  # torch's communication threads, still held by an error's frames, can abort a normal exit
    for worker in multiprocessing.active_children():  # a loader's ignores the signal by which Python would end it
        worker.kill()
    sys.exit(code)
