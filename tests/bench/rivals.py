"""AddMemory beside other ways to keep chat history in the same Postgres, each in processes of the application's own."""

from __future__ import annotations

import json
import statistics
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
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


class Program:
    """A process that is told what to do in lines, and answers in lines."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.tree = Tree(process.pid)
        self._process = process
        self._log = log

    def tell(self, *words: object) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `answer` says why
            print(*words, file=self._process.stdin, flush=True)

    def answer(self) -> str:
        """The next line. Raises PeerError with its last words when it has ended."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return line
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        raise PeerError(lines[-1] if lines else f"ended with status {self._process.wait()}")


class Peer:
    """A peer's processes: as many as recalld has workers, each with a share of the sessions."""

    def __init__(self, site: Site, programs: list[Program]) -> None:
        if not programs:
            raise PeerError("not installed: `make .tools/peers/installed` does it")
        self._site = site
        self._programs = programs
        self.writers = 0
        for program in programs:  # one after the other: the first makes tables
            program.tell("go")
            program.answer()

    def find_best(self, choice: Sequence[int]) -> None:
        """Settles on the number of writers that appends the most."""
        self.append(choice[0], WARM_UP)
        self.writers = (
            choice[0] if len(choice) == 1 else max(choice, key=lambda writers: self.append(writers, WARM_UP)["rate"])
        )

    def append(self, writers: int, seconds: float) -> Figures:
        """Appends for so long, with so many writers in each process. The client's CPU is in the server's place."""
        before = self._cpu(), self._site.postgres.seconds()
        for program in self._programs:
            program.tell(writers, seconds)
        reports = [json.loads(program.answer()) for program in self._programs]
        used, postgres = self._cpu() - before[0], self._site.postgres.seconds() - before[1]
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

    def _cpu(self) -> float:
        return sum(program.tree.seconds() for program in self._programs)


def peers(site: Site, effort: Effort) -> Outcome:
    """AddMemory over the network, and each peer's append of the same messages, without one."""
    notes = []
    with ExitStack() as closing:
        # Importing their packages takes some of them longer than a round, so all begin with that now.
        started = {
            name: _start(site, closing, number, *program)
            for number, (name, program) in enumerate(PEERS.items())
            if name.startswith("peer") or effort.name == "full"
        }
        contenders = {"AddMemory": partial(site.call, site.recalld, ADD, "AddMemory", seconds=effort.seconds)}
        for name, programs in started.items():
            try:
                peer = Peer(site, programs)
                peer.find_best(effort.writers)
            except PeerError as error:
                notes.append(f"{name}: {error}")
                continue
            notes.append(f"{name}: {peer.writers} writers in each of {WORKERS} processes")
            contenders[name] = partial(peer.append, peer.writers, effort.seconds)
        contenders["AddMemory"]()
        return Outcome(interleaved(contenders, effort.rounds), notes)


def _start(site: Site, closing: ExitStack, peer: int, program: str, *arguments: str) -> list[Program]:
    """A program in as many processes as recalld has workers, on a database of its own."""
    python = _VENV / "bin" / "python"
    if not python.exists():
        return []
    url = closing.enter_context(site.database(f"peer_{peer}"))
    texts = site.directory / "texts.json"
    texts.write_text(json.dumps(site.texts))
    programs = []
    for number in range(WORKERS):
        share = [str(SESSIONS * number // WORKERS), str(SESSIONS * (number + 1) // WORKERS)]
        log = site.directory / f"peer-{peer}-{number}.log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [python, "-m", f"tests.bench.peers.{program}", url, texts, *share, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=_ROOT,
            )
        closing.callback(_end, process)
        programs.append(Program(process, log))
    return programs


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()
