"""The command line: `python -m instaflow_core COMMAND`. Thin: each command reads its arguments and calls the core."""

import argparse
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from .commands.decoder import add_distill_decoder
from .commands.deltas import add_extract_delta, add_merge_delta
from .commands.downloading import add_download
from .commands.evaluation import add_evaluate
from .commands.files import add_convert, add_info
from .commands.generating import add_generate
from .commands.memory import memory_advice
from .commands.training import add_distill, add_reflow, add_triplets
from .memory import is_out_of_memory


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 for bad input, also for more than fits into memory, 130 when interrupted, by
    Ctrl-C or SIGTERM."""
    # A name that the console cannot show is printed escaped, and does not make a failure of a command that has ended.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    options = parser.parse_args(arguments)
    for name, value in vars(options).items():
        if isinstance(value, Path):
            setattr(options, name, value.expanduser())
    try:
        with _terminable():
            options.run(options)
    except (ValueError, OSError) as error:
        # Bad input by the core's rule: what was found, what was expected, what to do next.
        print(f"{parser.prog} {options.command}: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"{parser.prog} {options.command}: error: {memory_advice(error, options)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, so that nothing half-done is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m instaflow_core",
        description="InstaFlow without a host: pictures, the files models are in, and training.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_generate(commands)
    add_download(commands)
    add_info(commands)
    add_convert(commands)
    add_extract_delta(commands)
    add_merge_delta(commands)
    add_triplets(commands)
    add_reflow(commands)
    add_distill(commands)
    add_distill_decoder(commands)
    add_evaluate(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
