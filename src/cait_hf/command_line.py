# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Shared code of the commands: errors of the user as one line, without a traceback."""

import argparse
import os
import select
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging


SIGPIPE_EXIT_CODE = 128 + 13  # of a program that the signal ends, as it does those written in C


def run_command(command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run `command(args)`; what goes wrong becomes one error message on the standard error and exit code 1.

    Errors of the kinds that users cause always; any other where the command has the flag `--debug`, which shows where
    an error comes from. Where the reader of the standard output has left, as `head` does, the command ends without a
    message.
    """
    try:
        with quiet_transformers():
            code = command(args) or 0
        sys.stdout.flush()  # here rather than at exit, where Python would complain
        return code
    except (ValueError, OSError, ImportError, StrictDataclassError, SafetensorError) as error:  # of a full disk
        if isinstance(error, BrokenPipeError) and reader_has_left():
            return SIGPIPE_EXIT_CODE
        if getattr(args, "debug", False):
            raise
        print(f"error: {one_line(error)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("error: interrupted.", file=sys.stderr)
    except Exception as error:
        if getattr(args, "debug", True):
            raise
        print(f"error: {type(error).__name__}: {one_line(error)} (see --debug)", file=sys.stderr)
    return 1


def reader_has_left() -> bool:
    """Whether nobody reads the standard output any more; then what is still in its buffer is dropped.

    A connection to the Hub that breaks raises the same error.
    """
    stdout = sys.__stdout__
    if stdout is None or not hasattr(select, "poll"):  # as under Windows, which has no SIGPIPE either
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # errors are reported in any case
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
    return True


def add_debug_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="Show where an error comes from.")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def disable_bars() -> None:
    """No bars of reading and writing, by Transformers; those of downloads stay."""
    download_bars = not are_progress_bars_disabled()
    logging.disable_progress_bar()
    if download_bars:
        enable_progress_bars()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Neither warnings nor the bars of reading and writing; those of downloads stay."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    disable_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
