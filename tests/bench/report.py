"""`python -m tests.bench.report FILE`: the results of a run as tables in Markdown, for docs/performance.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.bench.results import Results
from tests.bench.rounds import split
from tests.bench.tables import bound, measured, number, spread

_VERDICTS = {True: "met", False: "missed", None: "not measured"}


def report(results: Results) -> str:
    """All tables, with where and how the run was made."""
    return "\n".join([*_circumstances(results), "", *_targets(results), *_experiments(results)]) + "\n"


def _circumstances(results: Results) -> Iterator[str]:
    machine, messages = results["machine"], results["messages"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    yield f"- Command: `{results['command']}`, {results['date']}"
    yield (
        f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
    )
    yield f"- Versions: {versions}"
    yield f"- Messages of {messages['bytes']} bytes: {messages['source']}"


def _targets(results: Results) -> Iterator[str]:
    rows = [
        [target["what"], measured(target), spread(target), bound(target), _VERDICTS[target["met"]]]
        for target in results["targets"]
    ]
    yield from _table(["what", "median", "rounds", "target", ""], rows)


def _experiments(results: Results) -> Iterator[str]:
    for name, experiment in results["experiments"].items():
        figures = list(dict.fromkeys(figure for one in experiment["medians"].values() for figure in one))
        rows = [
            [_shown(contender), *(number(one[figure]) if figure in one else "" for figure in figures)]
            for contender, one in experiment["medians"].items()
        ]
        yield from ("", f"### {name}", "")
        yield from _table([name, *figures], rows)
        yield from ("", *(f"- {note}" for note in experiment["notes"]))


def _shown(contender: str) -> str:
    series, size = split(contender)
    return series if size is None else f"{series}, {size:,}"


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| --- |{' ---: |' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


if __name__ == "__main__":
    print(report(json.loads(Path(sys.argv[1]).read_text())), end="")
