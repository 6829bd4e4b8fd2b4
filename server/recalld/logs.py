"""Log lines: one event a line, as text or as JSON, to stderr.

What users wrote is never logged; ids and names that callers chose are, with everything escaped that a terminal or a
log collector could take for something else.
"""

from __future__ import annotations

import functools
import json
import logging
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Literal, TextIO

# What a record can hold of a call, in the order in which it is shown.
_FIELDS: Final = ("method", "code", "reason", "ms", "namespace", "caller", "request_id", "peer", "trace_id")

# Seconds for which events are collected before they are written, and how many at most. One by one they would take a
# sixth of the CPU that an AddMemory takes, in batches they take a twentieth.
_INTERVAL: Final = 0.1
_MOST_EVENTS: Final = 10_000

# Seconds between two reports of why the database cannot be reached.
_REMINDER_INTERVAL: Final = 30.0


def set_up(level: str, style: Literal["text", "json"]) -> None:
    """Sets up the root logger: events of this level and above, to stderr."""
    handler = _Batches(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    # Otherwise looked up for each event, though no format shows them.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("psycopg.pool").addFilter(_why_not_connected())
    # Reports each step of a migration, which we report too.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # Quotes what it could not decode, a credential too; what matters of it is in the answer.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)


def _why_not_connected() -> Callable[[logging.LogRecord], bool]:
    """A filter of the pool's events: why it cannot connect, once an interval; of all others, only errors."""
    last = float("-inf")

    def passes(record: logging.LogRecord) -> bool:
        nonlocal last
        if not record.msg.startswith("error connecting"):
            return record.levelno >= logging.ERROR
        if record.created - last < _REMINDER_INTERVAL:
            return False
        last = record.created
        return True

    return passes


def escaped(text: str) -> str:
    """The text with control characters, line breaks of every kind and other invisible ones as escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


class _Batches(logging.Handler):
    """Formats and writes events in batches, a moment later; a warning, and what came before it, immediately.

    A process that is killed loses the events of that moment. When the stream blocks, callers wait at _MOST_EVENTS, so
    that memory does not grow.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._events: deque[logging.LogRecord] = deque()
        self._writing = threading.Lock()
        self._filled = threading.Event()
        self._ended = threading.Event()
        # The new thread takes no signals, not even before the server blocks those that it waits for.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._write_behind, name="recalld-log", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if record.args:  # they may change before the event is formatted
                record.msg, record.args = record.getMessage(), None
            self._events.append(record)
        except Exception:
            self.handleError(record)
        if record.levelno >= logging.WARNING or len(self._events) >= _MOST_EVENTS:
            self.flush()
        elif not self._filled.is_set():
            self._filled.set()

    def flush(self) -> None:
        with self._writing, suppress(OSError, ValueError):  # nobody reads any more, or the stream is closed
            lines = [self._line(self._events.popleft()) for _ in range(len(self._events))]
            if lines:
                self._stream.write("".join(lines))
                self._stream.flush()

    def _line(self, record: logging.LogRecord) -> str:
        """The event as text; "" for one that cannot be formatted, which must not take the others along."""
        try:
            return self.format(record) + "\n"
        except Exception:
            self.handleError(record)
            return ""

    def close(self) -> None:
        self._ended.set()
        self._filled.set()
        self.flush()
        super().close()

    def _write_behind(self) -> None:
        while not self._ended.is_set():
            self._filled.wait()
            self._ended.wait(_INTERVAL)
            self._filled.clear()
            self.flush()


class _Text(logging.Formatter):
    """One line for each event, without the line breaks of libpq's messages; a traceback follows on more lines."""

    def format(self, record: logging.LogRecord) -> str:
        moment = f"{_local_time(int(record.created))},{int(record.msecs):03}"
        message = escaped(" ".join(record.getMessage().split()))
        line = f"{moment} {record.levelname} {record.name}: {message}"
        known = record.__dict__
        for name in _FIELDS:
            if (value := known.get(name, "")) != "":
                line += f" {name}={_quoted(value)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    """One JSON object for each event, on one line of ASCII, with the traceback as a field."""

    _encode = json.JSONEncoder(default=str).encode

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": f"{_utc(int(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        known = record.__dict__
        for name in _FIELDS:
            if (value := known.get(name, "")) != "":
                event[name] = value
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return self._encode(event)


# The latest result serves all events of the same second.
@functools.lru_cache(maxsize=1)
def _local_time(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


@functools.lru_cache(maxsize=1)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _quoted(value: Any) -> str:
    """The value as it stands if it is one word; else in quotes, so that it cannot pass for the fields behind it."""
    text = escaped(str(value))
    if " " in text or '"' in text or "\\" in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'
    return text
