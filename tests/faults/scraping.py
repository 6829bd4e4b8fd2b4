"""Asking a server for its metrics, as Prometheus does."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.processes import DEADLINE


def metric(address: str, name: str, **labels: str) -> float:
    """The sum of the samples of this name that have these labels, at HOST:PORT."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE) as response:
        text = response.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
