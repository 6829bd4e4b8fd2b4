"""AddMemory beside other ways to keep chat history in the same Postgres, each in processes of the application's own."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from tests.bench.calls import ADD, WARM_UP
from tests.bench.cpu import Tree
from tests.bench.rounds import Effort, Figures, Outcome, interleaved
from tests.bench.site import LAST_N, SESSIONS, WORKERS, Site

_ROOT: Final = Path(__file__).resolve().parents[2]
_VENV: Final = _ROOT / ".tools" / "peers"

# Programs by name, with their arguments. What is called a peer is as an application has it: a graph is compiled with
# one saver, which lets one thread at it at a time. For information, the last does without that.
PEERS: Final = {
    "peer google-adk": ("google_adk",),
    "peer openai-agents": ("openai_agents",),
    "peer langgraph-checkpoint": ("langgraph_checkpoint", "one saver", str(LAST_N)),
    "langgraph-checkpoint, a saver a writer": ("langgraph_checkpoint", "a saver a writer", str(LAST_N)),
}


class PeerError(Exception):
    """A peer does not run; the text says why, in one line."""


class Peer:
    """A peer's processes: as many as recalld has workers, each with a share of the sessions."""

    def __init__(self, site: Site, programs: list[tuple[subprocess.Popen[str], Path]]) -> None:
        self._site = site
        self._programs = programs
        self._trees = [Tree(process.pid) for process, _ in programs]
        self.writers = 0

    def find_best(self, choice: Sequence[int]) -> None:
        """Settles on the number of writers that appends the most."""
        self.append(choice[0], WARM_UP)
        self.writers = max(choice, key=lambda writers: self.append(writers, WARM_UP)["rate"])

    def append(self, writers: int, seconds: float) -> Figures:
        """Appends for so long, with so many writers in each process. The client's CPU is in the server's place."""
        before = sum(tree.seconds() for tree in self._trees), self._site.postgres.seconds()
        for process, _ in self._programs:
            assert process.stdin is not None
            print(writers, seconds, file=process.stdin, flush=True)
        reports = [json.loads(_line(process, log)) for process, log in self._programs]
        used = sum(tree.seconds() for tree in self._trees) - before[0]
        postgres = self._site.postgres.seconds() - before[1]
        took = [one for report in reports for one in report["took"]]
        percentiles = statistics.quantiles(took, n=100)
        return {
            "rate": sum(len(report["took"]) / report["seconds"] for report in reports),
            "p50_ms": percentiles[49] * 1e3,
            "p95_ms": percentiles[94] * 1e3,
            "p99_ms": percentiles[98] * 1e3,
            "server_us": used / len(took) * 1e6,
            "postgres_us": postgres / len(took) * 1e6,
            "calls": len(took),
        }


def peers(site: Site, effort: Effort) -> Outcome:
    """AddMemory over the network, and each peer's append of the same messages, without one."""
    notes = []
    with ExitStack() as closing:
        contenders = {"AddMemory": partial(site.call, site.recalld, ADD, "AddMemory", seconds=effort.seconds)}
        contenders["AddMemory"]()
        for number, (name, program) in enumerate(PEERS.items()):
            try:
                url = closing.enter_context(site.database(f"peer_{number}"))
                peer = closing.enter_context(_running(site, url, *program))
                peer.find_best(effort.writers)
            except PeerError as error:
                notes.append(f"{name}: {error}")
                continue
            notes.append(f"{name}: {peer.writers} writers in each of {WORKERS} processes")
            contenders[name] = partial(peer.append, peer.writers, effort.seconds)
        return Outcome(interleaved(contenders, effort.rounds), notes)


@contextmanager
def _running(site: Site, url: str, program: str, *arguments: str) -> Iterator[Peer]:
    python = _VENV / "bin" / "python"
    if not python.exists():
        raise PeerError("not installed: `make .tools/peers` does it")
    said = site.directory / "texts.json"
    said.write_text(json.dumps(site.texts))
    with ExitStack() as closing:
        programs = []
        for number in range(WORKERS):
            share = [str(SESSIONS * number // WORKERS), str(SESSIONS * (number + 1) // WORKERS)]
            log = closing.enter_context((site.directory / f"{program}-{number}.log").open("w"))
            process = subprocess.Popen(
                [python, "-m", f"tests.bench.peers.{program}", url, said, *share, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=_ROOT,
            )
            closing.enter_context(process)
            closing.callback(process.kill)
            _line(process, Path(log.name))  # one after the other: they make tables
            programs.append((process, Path(log.name)))
        yield Peer(site, programs)


def _line(process: subprocess.Popen[str], log: Path) -> str:
    assert process.stdout is not None
    if line := process.stdout.readline():
        return line
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise PeerError(lines[-1] if lines else f"ended with status {process.wait()}")
