"""Files that may change while the server runs: certificates, keys and identities."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Generic, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two checks for changes.
_INTERVAL: Final = 1.0

_Signature = list[tuple[int, ...]]


class FileError(Exception):
    """A file cannot be used; the text says which and why, in one line, and quotes nothing of what is in it."""


class Watched(Generic[T]):
    """A value read from files, read again when one of them changes.

    If the changed files cannot be used, that is logged and the old value stays: of two files that belong together, one
    is replaced first. Thread-safe.

    Args:
        paths: the files.
        read: reads the value; raises FileError.
        clock: seconds that never go backwards.

    Raises FileError when they cannot be read the first time.
    """

    def __init__(
        self, paths: Sequence[Path], read: Callable[[], T], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._paths = paths
        self._read = read
        self._clock = clock
        self._lock = threading.Lock()
        self._signature = self._sign()
        self._value = read()
        self._next_look = clock() + _INTERVAL

    def get(self) -> T:
        """The value as of at most a second ago."""
        if self._clock() >= self._next_look and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._value

    def _look(self) -> None:
        signature = self._sign()
        if signature != self._signature:
            try:
                self._value = self._read()
                log.info("read again: %s", self._names())
            except FileError as error:
                log.error("not replaced, the old one stays in use: %s", error)
            self._signature = signature
        self._next_look = self._clock() + _INTERVAL

    def _sign(self) -> _Signature:
        return [_signature(path) for path in self._paths]

    def _names(self) -> str:
        return ", ".join(str(path) for path in self._paths)


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises FileError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None


def _signature(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    # The ctime also tells of a chmod that makes a file readable, and of a copy that keeps the mtime.
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_size)
