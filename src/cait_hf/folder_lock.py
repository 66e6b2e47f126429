# Copyright 2026 The cait-hf authors. Licensed under the Apache License, Version 2.0.
"""One run at a time in an output folder: a lock that the system releases with the process, however that ends."""

import errno
import logging
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # a module elsewhere
    import msvcrt


logger = logging.getLogger(__name__)

LOCK_FILE = ".run.lock"
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # by another process; other errors: there are no locks here
BEYOND = 1 << 30  # Windows locks bytes for reading, too: one behind those that say who has the lock


class FolderLock:
    """A folder that one process at a time may write to, for `with`; made if it does not exist.

    The lock is of the process, not of its forks such as data workers, and a kill releases it. On NFS it holds between
    machines where the server has locks (NFSv4 does); where a file system has none, a warning says so.

    Raises:
        ValueError: by `check` and `with`, if another process has it; with its number and host.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / LOCK_FILE
        self._file: int | None = None

    def check(self) -> None:
        """Take the lock and release it, if there is a file of one: early, and without making anything."""
        if self.path.is_file():
            with self:
                pass

    def __enter__(self) -> "FolderLock":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while not self._take():
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if fcntl is None:  # Windows removes no file that is open
            os.close(self._file)
        with suppress(OSError):
            self.path.unlink()  # elsewhere before its lock ends: whoever opened it meanwhile sees that it is gone
        if fcntl is not None:
            os.close(self._file)
        self._file = None

    def _take(self) -> bool:
        """Whether it is ours now; False if another process has released and removed the file meanwhile."""
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file)
        except OSError as error:
            os.close(file)
            if error.errno in HELD:
                raise ValueError(
                    f"another run writes to --output_dir {self.path.parent} ({self._owner()}): wait for its end, stop "
                    "it, or choose another --output_dir."
                ) from None
            logger.warning("%s has no locks (%s): never start two runs in it at once.", self.path.parent, error)
            return True
        if not self.path.exists() or not os.path.samestat(os.fstat(file), os.stat(self.path)):
            os.close(file)
            return False
        os.truncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._file = file
        return True

    def _owner(self) -> str:
        with suppress(OSError, UnicodeDecodeError):
            return self.path.read_text(encoding="utf-8").strip() or "unknown process"
        return "unknown process"


def _lock(file: int) -> None:
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        os.lseek(file, BEYOND, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        os.lseek(file, 0, os.SEEK_SET)
