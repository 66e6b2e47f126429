# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""A Hub of our own instead of the network, one thread, no cache of the user's, and repeatable random numbers."""

import atexit
import functools
import gc
import os
import shutil
import socket
import sys
import tempfile
import time
import uuid
from pathlib import Path

from hub_server import LoopbackHub


# huggingface_hub reads its environment once, when it is imported: afterwards it would talk to the real Hub.
if "huggingface_hub" in sys.modules:
    raise RuntimeError("huggingface_hub was imported before tests/conftest.py could point it at the loopback Hub.")

_FOLDER = Path(tempfile.mkdtemp(prefix="cait-hf-tests-"))
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
_HUB = LoopbackHub(_FOLDER / "hub")

# What the user has set (token, caches, offline mode, mirrors) is not for tests. Child processes inherit these values.
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGINGFACE_", "HUGGING_FACE_"))]:
    del os.environ[_name]
os.environ.update(
    HF_ENDPOINT=_HUB.url,
    HF_TOKEN=_HUB.token,
    HF_HOME=str(_FOLDER / "hf_home"),
    HF_HUB_OFFLINE="0",
    HF_HUB_DISABLE_XET="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    HF_DATASETS_OFFLINE="1",
    HF_EVALUATE_OFFLINE="1",
    NO_PROXY="127.0.0.1",
    no_proxy="127.0.0.1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)

_refused_hosts = []


def _loopback_only(function, host_of):
    @functools.wraps(function)
    def guarded(*args, **kwargs):
        host = host_of(*args, **kwargs)
        if host not in ("127.0.0.1", "::1", "localhost", "", None):
            _refused_hosts.append(host)
            raise OSError(f"A test tried to reach {host!r}; only the loopback interface is allowed.")
        return function(*args, **kwargs)

    return guarded


# Addresses of Unix sockets are strings. Code in Rust or C++ and child processes are not seen here.
for _name in ("connect", "connect_ex"):
    _guarded = _loopback_only(getattr(socket.socket, _name), lambda _, to: to[0] if isinstance(to, tuple) else None)
    setattr(socket.socket, _name, _guarded)
socket.getaddrinfo = _loopback_only(socket.getaddrinfo, lambda host, *_, **__: host)

import pytest  # noqa: E402
import torch  # noqa: E402


torch.set_num_threads(1)


def pytest_collection_finish():
    """What is loaded by now stays: `gc.collect`, which Trainer calls after each training, need not visit it again."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def refused_hosts():
    """Fails a test that tried to leave the machine, also where a library swallowed the error."""
    _refused_hosts.clear()
    yield _refused_hosts
    assert _refused_hosts == []


@pytest.fixture
def hub():
    """The loopback Hub, with an empty log. Repositories of other tests may be there: take the name `repo_id`."""
    _HUB.requests.clear()
    yield _HUB
    unused, _HUB.faults, _HUB.token_role = _HUB.faults, [], "write"
    assert unused == [], "a fault was ordered that no request met"


@pytest.fixture
def repo_id(hub):
    """Name of a repository that no other test uses. The test creates it, and it is deleted after the test."""
    name = f"tester/repo-{uuid.uuid4().hex[:12]}"
    yield name
    if name in hub.repositories:
        hub.delete(name)


@pytest.fixture
def no_waiting(monkeypatch):
    """The Hub client waits 1, 2, 4, 8 and 8 seconds between its attempts; in this test it does not."""
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))


@pytest.fixture
def no_plots(monkeypatch):
    """Reports of trainings as without matplotlib: the plots take half of a training of a few steps."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def auto_image_processor():
    """Skips a test of code that imports the class as users do."""
    from transformers import AutoImageProcessor

    if hasattr(AutoImageProcessor, "_backends"):
        pytest.skip("in Transformers 5.17 AutoImageProcessor is a stand-in that needs torchvision")
