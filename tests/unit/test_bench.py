"""What the bench makes of what it measures. That it measures is for `make bench` to show."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from google.protobuf.message_factory import GetMessageClassesForFiles

from recall.v1.memory_pb2 import AddMemoryRequest
from tests.bench import load, pgbench, results
from tests.bench.chart import PANELS, draw, series
from tests.bench.report import report
from tests.bench.rounds import (
    Figures,
    Outcome,
    Rounds,
    at_largest,
    interleaved,
    medians,
    ratio,
    ratio_of_sizes,
    ratio_to_best,
)
from tests.bench.targets import CURVES, TARGETS, Target
from tests.bench.texts import SIZE, _cut, _generated, texts

_GHZ: dict[str, Any] = {
    "count": 4000,
    "total": 2_000_000_000,
    "statusCodeDistribution": {"OK": 4000},
    "errorDistribution": {},
    "latencyDistribution": [
        {"percentage": percentage, "latency": latency}
        for percentage, latency in ((50, 1_000_000), (95, 3_000_000), (99, 7_000_000))
    ],
}

_PGBENCH = """\
number of transactions actually processed: 4124
number of failed transactions: 0 (0.000%)
latency average = 3.862 ms
tps = 4146.123456 (without initial connection time)
"""

# The rows of the table of targets: a word of each, and its bound.
_TABLE = {
    "AddMemory throughput / echo throughput": 0.60,
    "GetMemory last 20 / echo": 0.55,
    "Postgres CPU per AddMemory / pgbench": 0.50,
    "the fastest in-process peer": 2.0,
    "64 writers on one hot session": 0.8,
    "AddMemory p50 at 1,000,000 messages": 1.3,
    "GetMemory p50 at 1,000,000 messages": 1.3,
    "last page of 1,000,000 sessions / first page": 1.3,
    "DeleteSession with 1,000,000 messages": 2,
    "StreamSessions sessions/s at 100 a chunk": 0.65,
    "Purge messages/s / the bare range DELETE": 0.6,
    "AddMemory p99 during a Purge": 2,
    "AddMemory of 100 messages": 8,
    "server memory while one client streams": 50,
    "disk per message beyond its content": 280,
}


def test_a_report_of_ghz_is_read_in_seconds() -> None:
    read = load.parse(_GHZ, cpu=0.5)
    assert (read.rate, read.p50, read.p95, read.p99, read.cpu) == (2000, 0.001, 0.003, 0.007, 0.5)


@pytest.mark.parametrize(
    "report",
    [_GHZ | {"statusCodeDistribution": {"OK": 3999, "Unavailable": 1}}, _GHZ | {"count": 0}],
    ids=["one call failed", "no call was made"],
)
def test_a_load_with_a_failed_call_or_none_is_no_measurement(report: dict[str, Any]) -> None:
    with pytest.raises(load.LoadError):
        load.parse(report, cpu=0)


def test_ghz_reads_each_request_after_its_length(tmp_path: Path) -> None:
    requests = [AddMemoryRequest(session_id="a"), AddMemoryRequest(session_id="bc")]
    assert load.write_requests(tmp_path / "requests", requests).read_bytes() == b"\x03\x0a\x01a\x04\x0a\x02bc"


def test_what_ghz_takes_for_the_request_passes_its_bytes_on() -> None:
    [file] = load._stand_in("recall.v1.MemoryService/AddMemory", streams=False).file
    [(name, unread)] = GetMessageClassesForFiles([file.name], _pool(file)).items()
    request = AddMemoryRequest(session_id="a", user_id="b").SerializeToString()
    assert name == "recall.v1.Unread"
    assert unread.FromString(request).SerializeToString() == request


def _pool(file: Any) -> Any:
    from google.protobuf.descriptor_pool import DescriptorPool

    pool = DescriptorPool()
    pool.Add(file)
    return pool


def test_pgbench_is_read_and_a_failed_transaction_refused() -> None:
    assert pgbench.parse(_PGBENCH) == (4124, 4146.123456, 3.862)
    with pytest.raises(ValueError, match="pgbench said"):
        pgbench.parse(_PGBENCH.replace("transactions: 0", "transactions: 3"))


def test_pgbench_sees_no_variable_in_a_text() -> None:
    assert pgbench._quoted("it's 10:30 :D \\") == r"E'it\x27s 10\x3a30 \x3aD \x5c'"


def test_contenders_take_turns() -> None:
    turns: list[str] = []

    def measure(name: str) -> Figures:
        turns.append(name)
        return {"rate": float(len(turns))}

    measured = interleaved({"a": partial(measure, "a"), "b": partial(measure, "b")}, 2)
    assert turns == ["a", "b", "a", "b"]
    assert measured == {"a": [{"rate": 1}, {"rate": 3}], "b": [{"rate": 2}, {"rate": 4}]}


_ROUNDS: Rounds = {
    "ours": [{"rate": 10.0}, {"rate": 30.0}, {"rate": 20.0}],
    "peer a": [{"rate": 1.0}, {"rate": 90.0}, {"rate": 2.0}],
    "peer b": [{"rate": 5.0}, {"rate": 10.0}, {"rate": 5.0}],
    "ours @ 9": [{"rate": 2.0}],
    "ours @ 100": [{"rate": 3.0}],
}


def test_each_round_is_compared_with_itself() -> None:
    assert ratio("ours", "peer b", "rate")(_ROUNDS) == [2, 3, 4]


def test_the_best_is_who_has_the_best_median() -> None:
    assert ratio_to_best("ours", "peer ", "rate")(_ROUNDS) == [2, 3, 4]


def test_sizes_are_compared_as_numbers() -> None:
    assert ratio_of_sizes("ours", "rate")(_ROUNDS) == [1.5]
    assert at_largest("ours", "theirs", "rate")(_ROUNDS | {"theirs @ 100": [{"rate": 2.0}]}) == [1.5]


def test_a_median_is_over_the_rounds() -> None:
    assert medians(_ROUNDS)["ours"] == {"rate": 20}


@pytest.mark.parametrize(
    ("bounds", "value", "met"),
    [
        ({"at_least": 0.6}, 0.6, True),
        ({"at_least": 0.6}, 0.59, False),
        ({"at_most": 1.3}, 1.3, True),
        ({"at_most": 1.3}, 1.31, False),
    ],
)
def test_a_target_is_met_at_its_bound_and_not_beyond(bounds: dict[str, float], value: float, met: bool) -> None:
    assert _target("any", **bounds).met_by(value) is met


def test_every_row_of_the_table_is_measured() -> None:
    bounds = {target.what: target.at_least or target.at_most for target in TARGETS}
    for row, bound in _TABLE.items():
        assert [value for what, value in bounds.items() if row in what] == [bound], row
    assert len(TARGETS) == len(_TABLE)


def test_names_on_the_command_line_are_told_apart() -> None:
    names = [target.name for target in TARGETS] + [curve.__name__ for curve in CURVES]
    assert len(set(names)) == len(names)


def test_texts_have_their_size_and_differ() -> None:
    for found in (texts(1000)[0], _cut(_generated(1000), 1000)):
        assert {len(text.encode()) for text in found} == {SIZE}
        assert len(set(found)) == 1000


# --- results


def _target(name: str, at_least: float | None = None, at_most: float | None = None) -> Target:
    value = ratio("ours", "peer b", "rate")
    return Target(name, f"what {name} is", lambda _site, _effort: Outcome({}), value, at_least, at_most)


def _results() -> dict[str, Any]:
    """Those of a small run, as they come out of a file."""
    found: dict[str, Any] = {
        "date": "2030-01-01T00:00:00+00:00",
        "command": "python -m tests.bench --quick",
        "machine": {"processor": "one", "cores": 2, "memory_gib": 4, "system": "Linux"},
        "versions": {"python": "3.13.0"},
        "messages": {"bytes": 240, "source": "generated"},
        "experiments": {},
        "targets": [],
    }
    figures = {"rate": 100.0, "p50_ms": 1.0, "p99_ms": 9.0}
    curve = {f"AddMemory @ {size}": [figures, figures | {"rate": 300.0}] for size in (64, 1, 8)}
    for panel in PANELS:
        results.add(found, panel.experiment, Outcome(curve, ["a note"]))
    results.judge(found, _target("good", at_least=2), Outcome(_ROUNDS))
    results.judge(found, _target("bad", at_most=2.9), Outcome(_ROUNDS))
    results.judge(found, _target("absent", at_least=1), Outcome({}, ["it is not installed"]))
    results.judge(found, _target("broken", at_least=1), None, "it | broke")
    return dict(json.loads(json.dumps(found)))


def test_what_could_not_be_measured_is_neither_met_nor_missed_and_says_why() -> None:
    judged = {target["name"]: (target["met"], target["failure"]) for target in _results()["targets"]}
    assert judged == {
        "good": (True, ""),
        "bad": (False, ""),
        "absent": (None, "it is not installed"),
        "broken": (None, "it | broke"),
    }


def test_a_report_has_a_row_for_each_target_and_point() -> None:
    lines = report(_results()).splitlines()
    assert "| what good is | 3.00 | 2.00 to 4.00 | at least 2.00 | met |" in lines
    assert "| what bad is | 3.00 | 2.00 to 4.00 | at most 2.90 | missed |" in lines
    assert "| what absent is | it is not installed |  | at least 1.00 | not measured |" in lines
    assert "| what broken is | it &#124; broke |  | at least 1.00 | not measured |" in lines
    assert "| AddMemory, 64 | 200 | 1.00 | 9.00 |" in lines
    assert "- a note" in lines


def test_a_curve_goes_from_the_smallest_size_to_the_largest() -> None:
    assert series(_results(), PANELS[0]) == {"AddMemory": [(1, 200, 100, 300), (8, 200, 100, 300), (64, 200, 100, 300)]}


def test_the_chart_is_an_image_that_names_its_panels_and_lines(tmp_path: Path) -> None:
    draw(_results(), tmp_path / "chart.svg")
    said = "".join(ElementTree.parse(tmp_path / "chart.svg").getroot().itertext())
    assert "AddMemory" in said
    assert all(panel.title in said for panel in PANELS)
