"""`python -m tests.soak --seconds 1200`: a steady server and one that is killed and restarted, on one Postgres.

The steady one is measured. Exit status 0 if nothing of it grew over the second half of the run, and every error was one
that its caller had coming.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Final

import psutil

from tests.faults.cluster import Cluster, cluster, free_port
from tests.processes import running
from tests.soak.load import Load
from tests.soak.measures import HEAD, Sample, judge, line, take
from tests.waiting import becomes

# How often the whole run is sampled, and the second server disturbed.
_SAMPLES: Final = 40
_DISTURBANCES: Final = 20

# The scheduled purge runs all the while.
_OFTEN_PURGED: Final = ["--purge-interval", "5s", "--retention", "2s"]


class Disturbed:
    """A server of two workers, one of which is killed now and then; every fourth time the server is restarted."""

    def __init__(self, directory: Path, url: str, pause: float) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.count = 0
        self.failure = ""
        self._directory = directory
        self._arguments = ["--listen", self.address, "--database-url", url, "--workers", "2", *_OFTEN_PURGED]
        self._pause = pause
        self._stopping = threading.Event()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="disturbed")

    def start(self) -> None:
        """Returns when it serves for the first time."""
        self._thread.start()
        while not self._up.wait(0.1):
            if not self._thread.is_alive():
                raise RuntimeError(self.failure)

    def stop(self) -> None:
        """Ends it, in order."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                with running(self._directory, self._arguments) as process:
                    self._up.set()
                    for _ in range(3):
                        if not self._stopping.wait(self._pause):
                            self._kill_a_worker(process.pid)
                    self._stopping.wait(self._pause)
                    self.count += 1
                    process.signal(signal.SIGTERM)
                    if status := process.wait():
                        raise RuntimeError(f"the disturbed server ended with status {status}")
        except Exception:
            self.failure = traceback.format_exc()

    def _kill_a_worker(self, pid: int) -> None:
        workers = [child for child in psutil.Process(pid).children() if "spawn_main" in " ".join(child.cmdline())]
        if workers:
            random.choice(workers).kill()
            self.count += 1


def soak(seconds: float) -> list[str]:
    """Runs for so long, printing a table on the way, and returns what was wrong; a line for each."""
    with tempfile.TemporaryDirectory(prefix="recalld-soak-") as name, cluster() as postgres:
        directory = Path(name)
        with running(directory, ["--database-url", postgres.url, *_OFTEN_PURGED]) as steady:
            disturbed = Disturbed(directory, postgres.url, seconds / _DISTURBANCES)
            disturbed.start()
            loads = [Load(steady.address), Load(disturbed.address, excused=["UNAVAILABLE"])]
            try:
                samples = _sample(seconds, psutil.Process(steady.pid), postgres, loads)
            finally:
                for load in loads:
                    load.stop()
                disturbed.stop()
            steady.signal(signal.SIGTERM)
            status = steady.wait()
        found = judge(samples)
        if status:
            found.append(f"the steady server ended with status {status}")
        if not becomes(lambda: _backends(postgres) == 0):
            found.append(f"{_backends(postgres)} backends are left of servers that have ended")
    print(f"the other server was killed or restarted {disturbed.count} times")
    for what, load in zip(("steady", "disturbed"), loads, strict=True):
        print(f"{what}: {load.calls} calls; errors: {dict(load.errors.most_common())}")
        found += [f"{what}: {number} unexpected errors, {error}" for error, number in load.unexpected.items()]
    if disturbed.failure:
        found.append(f"the disturbed server: {disturbed.failure.splitlines()[-1]}")
    return found


def _backends(postgres: Cluster) -> int:
    [(number,)] = postgres.execute("select count(*) from pg_stat_activity where application_name like 'recalld%'")
    return int(number)


def _sample(seconds: float, process: psutil.Process, postgres: Cluster, loads: list[Load]) -> list[Sample]:
    print(HEAD, flush=True)
    samples = []
    start = time.monotonic()
    for number in range(1, _SAMPLES + 1):
        time.sleep(max(0.0, start + seconds * number / _SAMPLES - time.monotonic()))
        calls, errors = (sum(getattr(load, what) for load in loads) for what in ("calls", "failed"))
        samples.append(take(time.monotonic() - start, process, postgres.port, calls, errors))
        print(line(samples[-1]), flush=True)
    return samples


def main() -> int:
    """Runs the command line, and returns its exit status."""
    parser = argparse.ArgumentParser(description="Runs recalld under mixed load, and looks for what grows or fails.")
    parser.add_argument("--seconds", type=float, default=1200, help="how long")
    found = soak(parser.parse_args().seconds)
    for what in found:
        print(f"FAIL: {what}")
    print("passed" if not found else "failed")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
