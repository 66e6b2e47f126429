# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""Shared code of the commands: errors of the user as one line, without a traceback."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging


def run_command(command: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run `command(args)`; what goes wrong becomes one error message on the standard error and exit code 1.

    Errors of the kinds that users cause always; any other where the command has the flag `--debug`, which shows where
    an error comes from.
    """
    try:
        with quiet_transformers():
            return command(args) or 0
    except (ValueError, OSError, ImportError, StrictDataclassError, SafetensorError) as error:  # of a full disk
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


def add_debug_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="Show where an error comes from.")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Neither warnings nor the bars of reading and writing; those of downloads stay."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    download_bars = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if download_bars:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
