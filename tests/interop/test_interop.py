"""The programs of README.md against a server process: what they see, and what is stored when calls get lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from recall.v1.memory_pb2 import AddMemoryRequest
from tests.interop.comparison import differences
from tests.interop.languages import Program
from tests.interop.proxy import Edit, Fate, Proxy, dropping
from tests.interop.server import Endpoint

# The first test of a language builds its program.
pytestmark = [pytest.mark.interop, pytest.mark.timeout(1200)]

EXPECTATIONS = json.loads((Path(__file__).parent / "expectations.json").read_text(encoding="utf-8"))
CALLS = 2000
SESSIONS = 10

# What the load sends: (session_id, role, content) of every message.
Sent = Counter[tuple[str, str, str]]
SENT: Sent = Counter(
    (f"load-{number % SESSIONS}", role, f"{word} {number}")
    for number in range(CALLS)
    for role, word in [("user", "question"), ("assistant", "answer")]
)


def test_the_tour_sees_what_the_api_promises(program: Program, endpoint: Endpoint) -> None:
    seen = json.loads(program.run("tour", environment=endpoint.environment()))
    assert differences(EXPECTATIONS, seen) == []


def test_what_is_acknowledged_is_stored_once_however_many_answers_are_lost(
    program: Program, endpoint: Endpoint, database_url: str
) -> None:
    proxy = _load(program, endpoint)
    # Of more than 2,000 attempts, a tenth each: 100 is 7 standard deviations away.
    assert proxy.fates[Fate.LOST] > 100
    assert proxy.fates[Fate.UNANSWERED] > 100
    assert _stored(database_url) == SENT


def test_with_a_new_request_id_for_each_attempt_what_was_unanswered_is_stored_again(
    python_program: Program, endpoint: Endpoint, database_url: str
) -> None:
    """The negative control: of the same load, the messages that only a kept request_id saves are doubled."""
    proxy = _load(python_program, endpoint, _with_a_new_request_id)
    doubled = _stored(database_url) - SENT
    assert doubled.total() == 2 * proxy.fates[Fate.UNANSWERED] > 0


def _load(program: Program, endpoint: Endpoint, edit: Edit | None = None) -> Proxy:
    """Has the program write through a proxy that loses a fifth of the calls, and gives the proxy, with its counts."""
    with endpoint.channel() as upstream, dropping(upstream, edit=edit) as proxy:
        printed = program.run("load", str(CALLS), environment=endpoint.through(proxy.address).environment())
    assert json.loads(printed) == {"acknowledged": CALLS}
    return proxy


def _with_a_new_request_id(method: str, request: bytes) -> bytes:
    assert method == "/recall.v1.MemoryService/AddMemory"
    call = AddMemoryRequest.FromString(request)
    call.request_id = str(uuid4())
    return call.SerializeToString()


def _stored(database_url: str) -> Sent:
    """The messages in the database, and that the seqs of each session have neither gaps nor a call torn apart."""
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "select session_id, last_seq, seq, role, content"
            " from recalld.session join recalld.message using (session_key) order by session_id, seq"
        ).fetchall()
    sessions: dict[str, list[str]] = {}
    for session_id, last_seq, seq, _, content in rows:
        contents = sessions.setdefault(session_id, [])
        contents.append(content)
        assert seq == len(contents) <= last_seq
    assert {session_id: last_seq for session_id, last_seq, *_ in rows} == {
        session_id: len(contents) for session_id, contents in sessions.items()
    }
    for contents in sessions.values():
        for question, answer in zip(contents[::2], contents[1::2], strict=True):
            assert answer == question.replace("question", "answer")
    return Counter((session_id, role, content) for session_id, _, _, role, content in rows)
