"""Log lines: one event a line, in both forms, whatever is in it, and none lost."""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest

from recalld import logs
from tests.waiting import wait_until

# Line ends of every kind, a terminal's escape, quotes that would end a field, and what could pass for other fields.
HOSTILE = 'x" code=OK caller="root\n2026-01-01 ERROR forged\r\x1b[31m\u2028\x85\\" "'

SetUp = Callable[..., io.StringIO]

log = logging.getLogger("recalld.test")


@pytest.fixture
def set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetUp]:
    """Sets logging up as `recalld serve` does, and returns what it writes to; undone in the end."""
    root = logging.getLogger()
    libraries = {name: logging.getLogger(name) for name in ("alembic", "grpc", "psycopg.pool")}
    before = {name: (library.level, library.filters[:]) for name, library in libraries.items()}
    level = root.level
    for name in ("logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))

    def begin(style: Literal["text", "json"], level: str = "INFO") -> io.StringIO:
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr(root, "handlers", [])  # pytest's own wait meanwhile
        logs.set_up(level, style)
        return stream

    yield begin
    for handler in root.handlers:
        handler.close()
    root.setLevel(level)
    for name, library in libraries.items():
        library.level, library.filters = before[name]


def written(stream: io.StringIO) -> str:
    logging.getLogger().handlers[0].flush()
    return stream.getvalue()


def facts(**more: Any) -> dict[str, Any]:
    return {"method": "recall.v1.MemoryService/AddMemory", "code": "OK", "reason": "", "ms": 1.25, **more}


def test_text_shows_the_fields_of_a_call_behind_its_message_and_leaves_out_empty_ones(set_up: SetUp) -> None:
    stream = set_up("text")
    log.info("call", extra=facts(namespace="shop", caller="", peer="ipv4:127.0.0.1:9"))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO recalld\.test: call method=recall\.v1\.MemoryService/AddMemory"
        r" code=OK ms=1\.25 namespace=shop peer=ipv4:127\.0\.0\.1:9\n",
        written(stream),
    )


def test_json_is_an_object_with_typed_fields_and_a_time_in_utc(set_up: SetUp) -> None:
    stream = set_up("json")
    before = time.time()
    log.info("call %d", 7, extra=facts(namespace="shop", caller=""))
    event = json.loads(written(stream))
    moment = event.pop("time")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
    assert moment[:16] in {time.strftime("%Y-%m-%dT%H:%M", time.gmtime(at)) for at in (before, time.time())}
    assert event == {
        "level": "INFO",
        "logger": "recalld.test",
        "message": "call 7",
        "method": "recall.v1.MemoryService/AddMemory",
        "code": "OK",
        "ms": 1.25,
        "namespace": "shop",
    }


@pytest.mark.parametrize("name", ["request_id", "caller", "namespace", "peer"])
def test_nothing_that_a_caller_chose_forges_a_line_or_a_field_of_text(name: str, set_up: SetUp) -> None:
    stream = set_up("text")
    log.info("call", extra=facts(**{name: HOSTILE}))
    [line] = written(stream).splitlines()
    assert line.isascii()
    assert line.isprintable()
    fields = [word.partition("=")[::2] for word in shlex.split(line.partition(": call ")[2])]
    assert [key for key, _ in fields] == ["method", "code", "ms", name]
    assert fields[1] == ("code", "OK")


def test_a_field_that_is_not_quoted_would_forge_others(set_up: SetUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.setattr(logs, "_quoted", str)
    stream = set_up("text")
    log.info("call", extra=facts(request_id=HOSTILE))
    assert len(written(stream).splitlines()) > 1


def test_what_callers_chose_is_whole_and_on_one_line_in_json(set_up: SetUp) -> None:
    stream = set_up("json")
    log.info("call", extra=facts(request_id=HOSTILE, caller=HOSTILE))
    [line] = written(stream).splitlines()
    assert line.isascii()
    event = json.loads(line)
    assert (event["request_id"], event["caller"], event["code"]) == (HOSTILE, HOSTILE, "OK")


@pytest.mark.parametrize("style", ["text", "json"])
def test_a_message_of_several_lines_is_one(style: str, set_up: SetUp) -> None:
    stream = set_up(style)
    log.warning("libpq says:\n\tthis\n\tand that")
    assert len(written(stream).splitlines()) == 1


def test_a_traceback_is_a_field_of_json(set_up: SetUp) -> None:
    stream = set_up("json")
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed")
    [line] = written(stream).splitlines()
    assert "ValueError: broken" in json.loads(line)["traceback"]


def test_a_warning_is_written_at_once_with_what_came_before_it(set_up: SetUp) -> None:
    stream = set_up("text")
    log.info("first")
    log.warning("second")
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == ["first", "second"]


def test_what_is_less_urgent_is_written_soon_without_anybody_asking(set_up: SetUp) -> None:
    stream = set_up("text")
    log.info("only this")
    wait_until(stream.getvalue, "it is not written")
    assert stream.getvalue().endswith("only this\n")


def test_many_threads_lose_nothing_and_keep_their_order(set_up: SetUp) -> None:
    stream = set_up("json")

    def write(writer: int) -> None:
        for number in range(500):
            log.log(logging.INFO if number % 50 else logging.WARNING, "%d %d", writer, number)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [tuple(map(int, json.loads(line)["message"].split())) for line in written(stream).splitlines()]
    for writer in range(6):
        assert [number for other, number in found if other == writer] == list(range(500))


def test_closing_writes_what_is_left(set_up: SetUp) -> None:
    stream = set_up("text")
    log.info("the last")
    logging.getLogger().handlers[0].close()
    assert stream.getvalue().endswith("the last\n")


def test_an_event_shows_what_was_so_when_it_happened(set_up: SetUp) -> None:
    stream = set_up("text")
    changing = ["before"]
    log.info("%s", changing)
    changing[0] = "after"
    assert "before" in written(stream)


def test_lines_below_the_level_are_not_written(set_up: SetUp) -> None:
    stream = set_up("text", "WARNING")
    log.info("no")
    assert written(stream) == ""


def test_an_event_that_cannot_be_formatted_takes_no_other_along(set_up: SetUp) -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError("no words for it")

    stream = set_up("text")
    log.info("before")
    log.info(Unspeakable())
    log.info("after")
    wait_until(lambda: "recalld.test: after\n" in stream.getvalue(), "what came after it was not written")
    assert "recalld.test: before\n" in stream.getvalue()
    log.info("later")
    wait_until(lambda: "recalld.test: later\n" in stream.getvalue(), "nothing is written any more")
