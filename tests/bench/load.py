"""Load by ghz, a compiled client: so many calls in flight, each a request from a file that was made beforehand.

ghz spends most of its time on turning messages into its own dynamic ones and back. So it is told that all messages are
of one type that has no fields: bytes that it does not know pass through unread. Of requests in a file it takes the
next for each call, whatever the connection, and begins again after the last: so they spread evenly over sessions.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from google.protobuf.proto import serialize_length_prefixed

CALLS: Final = 64
CONNECTIONS: Final = 8

# Nothing here runs longer or calls more often, whatever the machine.
MOST_SECONDS: Final = 300.0
MOST_CALLS: Final = 2_000_000

_GHZ: Final = os.environ.get("GHZ") or shutil.which(
    "ghz", path=f"{Path(__file__).resolve().parents[2] / '.tools'}{os.pathsep}{os.environ.get('PATH', '')}"
)

# Seconds after which ghz has begun for sure.
_START_TIME: Final = 0.5

# Seconds that ghz has to wait for the last answers and to write its report.
_REPORT_TIME: Final = 60.0


class LoadError(Exception):
    """The load did not run, or calls failed; the text says how."""


@dataclass(frozen=True)
class Load:
    """What one run of ghz saw. Times are in seconds; `cpu` is ghz's own."""

    calls: int
    seconds: float
    p50: float
    p95: float
    p99: float
    cpu: float

    @property
    def rate(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


def is_there() -> bool:
    """Whether there is a ghz to run."""
    return _GHZ is not None


def version() -> str:
    """Which ghz it is: as `go install` builds it, it cannot say, but Go notes the module in the program."""
    noted = re.search(rb"mod\tgithub\.com/bojand/ghz\t(\S+)", Path(_require()).read_bytes())
    return noted[1].decode() if noted else "unknown"


def write_requests(path: Path, requests: Iterable[Message]) -> Path:
    """Requests as ghz reads them: each with its length before it."""
    buffer = BytesIO()
    for request in requests:
        serialize_length_prefixed(request, buffer)
    path.write_bytes(buffer.getvalue())
    return path


def run(
    address: str,
    method: str,
    requests: Path,
    *,
    seconds: float = MOST_SECONDS,
    most: int = MOST_CALLS,
    calls: int = CALLS,
    connections: int = CONNECTIONS,
    streams: bool = False,
    until: threading.Event | None = None,
) -> Load:
    """Calls until the time is over, or so many calls are made.

    Args:
        address: HOST:PORT of the server.
        method: in full, as recall.v1.MemoryService/AddMemory.
        requests: a file that `write_requests` made.
        seconds: after them, no new call is made.
        most: calls in all.
        calls: how many are in flight at a time.
        connections: how many there are; at least one call in flight for each.
        streams: whether the method answers with a stream, which is read to its end.
        until: when it is set, no new call is made either.

    Raises LoadError when a call fails.
    """
    with tempfile.TemporaryDirectory(prefix="recalld-ghz-") as name:
        protoset, output = Path(name, "protoset"), Path(name, "output")
        protoset.write_bytes(_stand_in(method, streams).SerializeToString())
        command = [_require(), "--insecure", "--protoset", str(protoset), "--call", method, "-B", str(requests)]
        command += ["-c", str(calls), "--connections", str(min(calls, connections)), "-n", str(min(most, MOST_CALLS))]
        command += ["--timeout", "120s", "--duration-stop", "wait", "-O", "json", "-o", str(output), address]
        before = _cpu_of_children()
        popen = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            _wait(popen, min(seconds, MOST_SECONDS), until)
            # Its own limit of time would do away with that of calls. On SIGINT it waits for answers, then reports.
            if popen.poll() is None:
                popen.send_signal(signal.SIGINT)
            said, _ = popen.communicate(timeout=_REPORT_TIME)
        finally:
            if popen.poll() is None:
                popen.kill()
        if popen.returncode or not output.exists():
            raise LoadError(f"ghz ended with status {popen.returncode}: {said.strip()}")
        return parse(json.loads(output.read_text()), _cpu_of_children() - before)


def parse(report: dict[str, Any], cpu: float) -> Load:
    """What ghz reports as JSON. Raises LoadError when a call failed, or there was none."""
    failed = {status: number for status, number in report["statusCodeDistribution"].items() if status != "OK"}
    if failed or not report["count"]:
        raise LoadError(f"calls failed: {failed}; {list(report.get('errorDistribution', {}))[:3]}")
    latency = {entry["percentage"]: entry["latency"] / 1e9 for entry in report["latencyDistribution"]}
    return Load(report["count"], report["total"] / 1e9, latency[50], latency[95], latency[99], cpu)


def _wait(popen: subprocess.Popen[str], seconds: float, until: threading.Event | None) -> None:
    """Returns when it has ended, or the time is over, or the event is set, but not before ghz takes signals."""
    deadline = time.monotonic() + seconds
    with suppress(subprocess.TimeoutExpired):
        popen.wait(min(seconds, _START_TIME))
        return
    while popen.poll() is None and time.monotonic() < deadline and not (until and until.is_set()):
        time.sleep(0.01)


def _stand_in(method: str, streams: bool) -> FileDescriptorSet:
    service, _, name = method.partition("/")
    package, _, service = service.rpartition(".")
    file = FileDescriptorProto(name="stand_in.proto", package=package, syntax="proto3")
    file.message_type.add(name="Unread")
    types = {"input_type": f".{package}.Unread", "output_type": f".{package}.Unread"}
    file.service.add(name=service).method.add(name=name, server_streaming=streams, **types)
    return FileDescriptorSet(file=[file])


def _cpu_of_children() -> float:
    """Seconds of all children that have ended; nothing else ends here while ghz runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _require() -> str:
    if _GHZ is None:
        raise LoadError("no ghz: install Go, then `make .tools/ghz`")
    return _GHZ
