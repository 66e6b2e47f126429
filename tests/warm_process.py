# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""`python -c` in a process of its own that need not import PyTorch and Transformers first, which takes it longest.

The processes are forked from a server that has imported them and done nothing else. They see no GPU: CUDA cannot be
set up in a fork of a process that has asked for devices, as some imports do. What is about a fresh interpreter (its
environment, its imports) is started by `subprocess`.
"""

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from torch import distributed


_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["cait_hf.training.trainer"])
SCRIPT = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"


def start(code: str, *arguments, log: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """What it prints goes to the file `log`, its error messages to `log` with `.err` added."""
    given = (code, [str(argument) for argument in arguments], dict(environment or {}), os.getcwd(), str(log))
    process = _CONTEXT.Process(target=_run, args=given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # of the server, which the first process starts
        process.start()
    return process


def run(code: str, *arguments) -> subprocess.CompletedProcess:
    """Like `subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)`."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        process = start(code, *arguments, log=log)
        process.join()
        return subprocess.CompletedProcess(code, process.exitcode, log.read_text(), Path(f"{log}.err").read_text())


def run_script(file: Path, *arguments) -> subprocess.CompletedProcess:
    return run(SCRIPT, file, *arguments)


@contextmanager
def two_ranks(file: Path, *arguments, log: Path) -> Iterator[list[BaseProcess]]:
    """A script in two processes on the CPU that talk over the loopback interface, as torchrun starts them.

    Those that are left at the end are killed. The process of rank 1 writes to `log` with `1` added.
    """
    # The store at which the processes meet is ours, so no port has to be guessed; torchrun does the same.
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GLOO_SOCKET_IFNAME": next(name for _, name in socket.if_nameindex() if name.startswith("lo")),
        "ACCELERATE_USE_CPU": "true",
    }
    processes = []
    try:
        for rank in ("0", "1"):
            own = environment | {"RANK": rank, "LOCAL_RANK": rank}
            processes.append(start(SCRIPT, file, *arguments, log=Path(f"{log}{rank}"), environment=own))
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


def _run(code: str, arguments: list[str], environment: dict[str, str], folder: str, log: str):
    for stream, name in ((sys.stdout, log), (sys.stderr, f"{log}.err")):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    os.environ.update(environment)
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # of its own processes the system's, not the server's
    sys.argv = ["-c", *arguments]
    try:
        exec(code, {"__name__": "__main__"})
    finally:
        if "RANK" in os.environ:  # one that is left can abort the process at its end
            assert not [name for name in map(Path.read_text, Path("/proc/self/task").glob("*/comm")) if "gloo" in name]
