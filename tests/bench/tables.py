"""The results as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from tests.bench.results import Results


def targets_table(results: Results) -> Table:
    """Every target with what was measured, and whether it is met."""
    table = Table("what", "measured", "rounds", "target", "", title="Targets", title_justify="left")
    for target in results["targets"]:
        verdict = {True: "[green]met[/]", False: "[red]missed[/]", None: "[yellow]not measured[/]"}[target["met"]]
        table.add_row(target["what"], measured(target), spread(target), bound(target), verdict)
    return table


def medians_table(name: str, experiment: dict[str, Any]) -> Table:
    """The median of each figure of each contender."""
    names = list(dict.fromkeys(figure for figures in experiment["medians"].values() for figure in figures))
    table = Table(title=name, title_justify="left")
    table.add_column()
    for figure in names:
        table.add_column(figure, justify="right")
    for contender, figures in experiment["medians"].items():
        table.add_row(contender, *(number(figures[figure]) if figure in figures else "" for figure in names))
    return table


def measured(target: dict[str, Any]) -> str:
    """The median of a target with its unit, or why there is none."""
    return with_unit(target["median"], target) if target["median"] is not None else target["failure"]


def spread(target: dict[str, Any]) -> str:
    """The lowest and highest round."""
    return f"{number(target['low'])} to {number(target['high'])}" if target["values"] else ""


def bound(target: dict[str, Any]) -> str:
    """What the median has to be."""
    least = target["at_least"] is not None
    return f"at {'least' if least else 'most'} {with_unit(target['at_least'] if least else target['at_most'], target)}"


def with_unit(value: float, target: dict[str, Any]) -> str:
    return f"{number(value)} {target['unit']}".rstrip()


def number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
