"""`python -m tests.bench`: measures recalld beside its references, and says which targets it meets."""

from __future__ import annotations

import json
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from tests.bench import load, results
from tests.bench.chart import draw
from tests.bench.results import Results
from tests.bench.rounds import FULL, QUICK, Effort, Outcome
from tests.bench.site import Site, site
from tests.bench.tables import medians_table, targets_table
from tests.bench.targets import CURVES, LARGE, TARGETS, Experiment

_CONSOLE: Final = Console(soft_wrap=True)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer and shorter rounds, and 100,000 where the full run has a million.")
@click.option("--only", multiple=True, metavar="NAME", help="Measure this only; may be given again.")
@click.option("--rounds", type=click.IntRange(1, 100), help="How often all contenders take their turn.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write the results to this file.")
@click.option("--chart", "chart_file", type=click.Path(path_type=Path), help="Draw the curves in this file, as SVG.")
def main(
    quick: bool, only: tuple[str, ...], rounds: int | None, json_file: Path | None, chart_file: Path | None
) -> None:
    """Measures recalld beside its references. Exit status 1 if a target is missed, or was not measured."""
    known = [*(target.name for target in TARGETS), *(curve.__name__ for curve in CURVES)]
    if unknown := set(only) - set(known):
        raise click.UsageError(f"no such measurement: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    if not load.is_there():
        raise click.UsageError("no ghz to make the load: install Go, then `make .tools/ghz`")
    effort = QUICK if quick else FULL
    if rounds:
        effort = replace(effort, rounds=rounds)
    begun = time.monotonic()
    with site() as made:
        found = run(made, effort, only or tuple(known))
    found["seconds"] = round(time.monotonic() - begun)
    if chart_file:
        draw(found, chart_file)
    if json_file:
        json_file.write_text(json.dumps(found, indent=1) + "\n")
    _CONSOLE.print(targets_table(found))
    sys.exit(any(not target["met"] for target in found["targets"]))


def run(site: Site, effort: Effort, names: tuple[str, ...]) -> Results:
    """Runs what the names need, telling what it measures as it goes."""
    found = results.begin(site, effort)
    wanted = [target for target in TARGETS if target.name in names]
    curves = [curve for curve in CURVES if curve.__name__ in names]
    # What makes large data sets comes last: the others are not to run beside them.
    experiments = sorted(
        dict.fromkeys([*(target.experiment for target in wanted), *curves]),
        key=lambda experiment: experiment in LARGE,
    )
    outcomes = {experiment: _measure(site, effort, found, experiment) for experiment in experiments}
    for target in wanted:
        outcome = outcomes[target.experiment]
        if isinstance(outcome, str):
            results.judge(found, target, None, outcome)
        else:
            results.judge(found, target, outcome)
    return found


def _measure(site: Site, effort: Effort, found: Results, experiment: Experiment) -> Outcome | str:
    """What it measured, or why it failed: one experiment that cannot run leaves the others theirs."""
    name = experiment.__name__
    begun = time.monotonic()
    with _CONSOLE.status(name):
        try:
            outcome = experiment(site, effort)
        except Exception as error:
            _CONSOLE.print(traceback.format_exc(), markup=False)
            return f"{type(error).__name__}: {error}"
    results.add(found, name, outcome)
    _CONSOLE.print(medians_table(f"{name} ({time.monotonic() - begun:.0f} s)", found["experiments"][name]))
    for note in outcome.notes:
        _CONSOLE.print(note, markup=False)
    return outcome


if __name__ == "__main__":
    main()
